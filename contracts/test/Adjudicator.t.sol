// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Adjudicator} from "../src/Adjudicator.sol";
import {FixedPart, Signature} from "../src/ChannelHashes.sol";
import {Base} from "./Base.sol";

contract AdjudicatorTest is Base {
    bytes private constant APP_DATA = hex"c0ffee";
    bytes32 private constant OUTCOME = keccak256("outcome");

    function _sign(FixedPart memory f, uint48 turnNum) private view returns (Signature[2] memory) {
        return _bothSign(_stateDigest(f, turnNum, true, APP_DATA, OUTCOME));
    }

    function test_concludes() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _sign(f, 7);
        vm.expectEmit(true, false, false, true, address(adjudicator));
        emit Adjudicator.Concluded(_channelId(f), 7, OUTCOME);
        vm.prank(stranger);
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
        eq(adjudicator.outcomeOf(_channelId(f)), OUTCOME, "outcome");
    }

    function testFuzz_concludesAnyTurnNonceAndData(
        uint48 nonce,
        uint48 turnNum,
        bytes calldata appData,
        bytes32 outcome
    ) public {
        vm.assume(outcome != 0);
        FixedPart memory f = _fixedPart(nonce);
        Signature[2] memory signatures = _bothSign(_stateDigest(f, turnNum, true, appData, outcome));
        adjudicator.conclude(f, turnNum, appData, outcome, signatures);
        eq(adjudicator.outcomeOf(_channelId(f)), outcome, "outcome");
    }

    function test_onceOnly() public {
        FixedPart memory f = _fixedPart(1);
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, _sign(f, 7));
        Signature[2] memory signatures = _sign(f, 8);
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorAlreadyConcluded.selector, _channelId(f)));
        adjudicator.conclude(f, 8, APP_DATA, OUTCOME, signatures);
    }

    function test_wrongChain() public {
        FixedPart memory f = _fixedPart(1);
        f.chainId = 5;
        Signature[2] memory signatures = _sign(f, 7);
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorWrongChain.selector, 5));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function test_otherDeployment() public {
        FixedPart memory f = _fixedPart(1);
        f.appDefinition = address(0xBEEF);
        Signature[2] memory signatures = _sign(f, 7);
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorWrongAppDefinition.selector, address(0xBEEF)));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function _refuseParticipants(address[] memory participants) private {
        FixedPart memory f = _fixedPart(1);
        f.participants = participants;
        Signature[2] memory signatures = _sign(f, 7);
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorInvalidParticipants.selector));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function test_participants() public {
        address[] memory list = new address[](2);
        (list[0], list[1]) = (brokerB, brokerA); // descending
        _refuseParticipants(list);
        (list[0], list[1]) = (brokerA, brokerA); // the same
        _refuseParticipants(list);
        (list[0], list[1]) = (address(0), brokerA);
        _refuseParticipants(list);
        list = new address[](1);
        list[0] = brokerA;
        _refuseParticipants(list);
        list = new address[](3);
        (list[0], list[1], list[2]) = (brokerA, brokerB, address(type(uint160).max));
        _refuseParticipants(list);
        _refuseParticipants(new address[](0));
    }

    function test_appDataIsBounded() public {
        FixedPart memory f = _fixedPart(1);
        bytes memory longest = new bytes(64 * 1024);
        bytes memory tooLong = new bytes(64 * 1024 + 1);
        Signature[2] memory signatures = _bothSign(_stateDigest(f, 7, true, tooLong, OUTCOME));
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorAppDataTooLong.selector, 64 * 1024 + 1));
        adjudicator.conclude(f, 7, tooLong, OUTCOME, signatures);
        adjudicator.conclude(f, 7, longest, OUTCOME, _bothSign(_stateDigest(f, 7, true, longest, OUTCOME)));
    }

    function test_zeroOutcome() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _bothSign(_stateDigest(f, 7, true, APP_DATA, 0));
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorZeroOutcome.selector));
        adjudicator.conclude(f, 7, APP_DATA, 0, signatures);
    }

    function test_aStateThatIsNotFinal() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _bothSign(_stateDigest(f, 7, false, APP_DATA, OUTCOME));
        vm.expectRevert(); // recovers to some address: AdjudicatorWrongSigner
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
        eq(adjudicator.outcomeOf(_channelId(f)), 0, "nothing concluded");
    }

    function test_signaturesInTheWrongOrder() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _sign(f, 7);
        (signatures[0], signatures[1]) = (signatures[1], signatures[0]);
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorWrongSigner.selector, 0, brokerB));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function test_oneBrokerCannotSignForBoth() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _sign(f, 7);
        signatures[1] = signatures[0];
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorWrongSigner.selector, 1, brokerA));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function test_highS() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _sign(f, 7);
        signatures[1].s = bytes32(ORDER - uint256(signatures[1].s));
        signatures[1].v = signatures[1].v == 27 ? 28 : 27;
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorHighS.selector, 1));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function test_v() public {
        FixedPart memory f = _fixedPart(1);
        Signature[2] memory signatures = _sign(f, 7);
        signatures[0].v -= 27;
        vm.expectRevert(abi.encodeWithSelector(Adjudicator.AdjudicatorInvalidSignature.selector, 0));
        adjudicator.conclude(f, 7, APP_DATA, OUTCOME, signatures);
    }

    function testFuzz_aChangedStateIsRefused(uint48 turnNum, bytes32 outcome, bytes calldata appData) public {
        FixedPart memory f = _fixedPart(1);
        vm.assume(turnNum != 7 || outcome != OUTCOME || keccak256(appData) != keccak256(APP_DATA));
        Signature[2] memory signatures = _sign(f, 7);
        vm.expectRevert();
        adjudicator.conclude(f, turnNum, appData, outcome, signatures);
    }
}
