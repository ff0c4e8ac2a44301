// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {BrokerCustody} from "../src/BrokerCustody.sol";
import {ExitFormat} from "../src/ExitFormat.sol";
import {Base} from "./Base.sol";
import {FeeToken, HostileToken, Payee, SilentToken} from "./Tokens.sol";

contract PayoutTest is Base {
    address private constant PAYEE = address(0x9A1D);

    /// @dev One row of custody A: `amount` of `token` to `to`.
    function _outcome(address token, address to, uint256 amount) private view returns (bytes memory) {
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](1);
        exits[0] = _row(token, block.chainid, address(custodyA), to, amount);
        return abi.encode(exits);
    }

    /// @dev With the gas of a real transaction, so that a row that burns its share would starve the others.
    function _payout(bytes32 id, bytes memory outcome, address[] memory tokens, uint256[] memory amounts) private {
        custodyA.payout{gas: 4_000_000}(
            id, outcome, tokens, amounts, _attest(custodyA, id, keccak256(outcome), tokens, amounts, 2)
        );
    }

    // --------------------------------------------------------------------------------------------- the good road

    function test_bothCustodiesPayEachOther() public {
        vm.deal(address(custodyB), 3 ether);
        usd.mint(address(custodyA), 500);
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](2);
        exits[0] = _row(NATIVE, block.chainid, address(custodyB), address(custodyA), 1 ether);
        exits[1] = _row(address(usd), block.chainid, address(custodyA), address(custodyB), 200);
        bytes memory outcome = abi.encode(exits);
        bytes32 id = _conclude(1, outcome);

        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(address(usd)), _one(uint256(200)), 2);
        vm.expectEmit(true, true, true, true, address(custodyA));
        emit BrokerCustody.PaidOut(id, address(usd), address(custodyB), 200);
        vm.expectEmit(true, false, false, true, address(custodyA));
        emit BrokerCustody.PayoutExecuted(id, keccak256(outcome));
        vm.prank(stranger);
        custodyA.payout(id, outcome, _one(address(usd)), _one(uint256(200)), signatures);

        signatures = _attest(custodyB, id, keccak256(outcome), _one(NATIVE), _one(uint256(1 ether)), 2);
        vm.expectEmit(true, true, true, true, address(custodyA));
        emit BrokerCustody.ChannelFundsReceived(id, NATIVE, 1 ether, address(custodyB));
        vm.expectEmit(true, true, true, true, address(custodyB));
        emit BrokerCustody.PaidOut(id, NATIVE, address(custodyA), 1 ether);
        custodyB.payout(id, outcome, _one(NATIVE), _one(uint256(1 ether)), signatures);

        eq(usd.balanceOf(address(custodyB)), 200, "custody B got dollars");
        eq(usd.balanceOf(address(custodyA)), 300, "custody A keeps the rest");
        eq(address(custodyA).balance, 1 ether, "custody A got ether");
        eq(address(custodyB).balance, 2 ether, "custody B keeps the rest");
        isTrue(custodyA.paidOut(id) && custodyB.paidOut(id), "paidOut");
    }

    function test_severalPayeesAndOtherChainsRows() public {
        vm.deal(address(custodyA), 10);
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](3);
        exits[0] = _row(NATIVE, block.chainid, address(custodyA), PAYEE, 3);
        ExitFormat.Allocation memory first = exits[0].allocations[0];
        exits[0].allocations = new ExitFormat.Allocation[](2);
        exits[0].allocations[0] = first;
        exits[0].allocations[1] = ExitFormat.Allocation(bytes32(uint256(uint160(stranger))), 4, 0, "");
        exits[1] = _row(NATIVE, block.chainid + 1, address(custodyA), PAYEE, 1); // same holder, other chain
        exits[2] = _row(NATIVE, block.chainid, address(custodyB), PAYEE, 1);
        bytes memory outcome = abi.encode(exits);
        _payout(_conclude(1, outcome), outcome, _one(NATIVE), _one(uint256(10)));
        eq(PAYEE.balance, 3, "first payee");
        eq(stranger.balance, 4, "second payee");
        eq(address(custodyA).balance, 3, "the rest stays");
    }

    function test_payoutWithoutRows() public {
        bytes memory outcome = abi.encode(new ExitFormat.SingleAssetExit[](0));
        bytes32 id = _conclude(1, outcome);
        _payout(id, outcome, new address[](0), new uint256[](0));
        isTrue(custodyA.paidOut(id), "paidOut");
    }

    // --------------------------------------------------------------------------------------------- what it refuses

    function _refuse(bytes32 id, bytes memory outcome, bytes[] memory signatures, bytes memory why) private {
        vm.expectRevert(why);
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(5)), signatures);
        eq(address(custodyA).balance, 10, "money moved");
        isTrue(!custodyA.paidOut(id), "paidOut");
    }

    function test_withoutEnoughAttestations() public {
        vm.deal(address(custodyA), 10);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 5);
        bytes32 id = _conclude(1, outcome);
        bytes memory why = abi.encodeWithSelector(BrokerCustody.CustodyUnattested.selector, id);
        bytes[] memory good = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(5)), 3);
        bytes32 digest = _attestationDigest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(5)));

        _refuse(id, outcome, new bytes[](0), why); // none
        bytes[] memory signatures = new bytes[](1);
        signatures[0] = good[0];
        _refuse(id, outcome, signatures, why); // one of two
        signatures = new bytes[](2);
        (signatures[0], signatures[1]) = (good[0], good[0]);
        _refuse(id, outcome, signatures, why); // the same twice
        (signatures[0], signatures[1]) = (good[1], good[0]);
        _refuse(id, outcome, signatures, why); // not ascending
        (signatures[0], signatures[1]) = (good[0], _highS(good[1]));
        _refuse(id, outcome, signatures, why);
        (signatures[0], signatures[1]) = (good[0], bytes(""));
        _refuse(id, outcome, signatures, why);
        // the broker and a stranger are no attestors, wherever they stand in the order
        (signatures[0], signatures[1]) = (_signature(keyA, digest), good[2]);
        _refuse(id, outcome, signatures, why);
        (signatures[0], signatures[1]) = (good[0], _signature(keyA, digest));
        _refuse(id, outcome, signatures, why);
        (signatures[0], signatures[1]) = (_signature(STRANGER_KEY, digest), good[2]);
        _refuse(id, outcome, signatures, why);
        bytes[] memory four = new bytes[](4);
        (four[0], four[1], four[2], four[3]) = (good[0], good[1], good[2], good[2]);
        _refuse(id, outcome, four, why);

        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(5)), good); // three of three is fine
        eq(PAYEE.balance, 5, "paid");
    }

    function test_anAttestationForSomethingElse() public {
        vm.deal(address(custodyA), 10);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 5);
        bytes32 id = _conclude(1, outcome);
        bytes32 hash = keccak256(outcome);
        bytes memory why = abi.encodeWithSelector(BrokerCustody.CustodyUnattested.selector, id);
        _refuse(id, outcome, _attest(custodyB, id, hash, _one(NATIVE), _one(uint256(5)), 2), why);
        _refuse(id, outcome, _attest(custodyA, hash, hash, _one(NATIVE), _one(uint256(5)), 2), why);
        _refuse(id, outcome, _attest(custodyA, id, id, _one(NATIVE), _one(uint256(5)), 2), why);
        _refuse(id, outcome, _attest(custodyA, id, hash, _one(address(usd)), _one(uint256(5)), 2), why);
        _refuse(id, outcome, _attest(custodyA, id, hash, _one(NATIVE), _one(uint256(4)), 2), why);
    }

    function test_withoutConclusionOrWithAnotherOutcome() public {
        vm.deal(address(custodyA), 10);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 5);
        bytes32 hash = keccak256(outcome);
        bytes32 id = _channelId(_fixedPart(1));
        bytes[] memory signatures = _attest(custodyA, id, hash, _one(NATIVE), _one(uint256(5)), 2);
        _refuse(
            id, outcome, signatures, abi.encodeWithSelector(BrokerCustody.CustodyOutcomeMismatch.selector, id, 0, hash)
        );
        _conclude(1, outcome);
        bytes memory more = _outcome(NATIVE, PAYEE, 6); // attested, but not concluded
        signatures = _attest(custodyA, id, keccak256(more), _one(NATIVE), _one(uint256(5)), 2);
        _refuse(
            id,
            more,
            signatures,
            abi.encodeWithSelector(BrokerCustody.CustodyOutcomeMismatch.selector, id, hash, keccak256(more))
        );
    }

    function test_oncePerChannel() public {
        vm.deal(address(custodyA), 100);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 5);
        bytes32 id = _conclude(1, outcome);
        _payout(id, outcome, _one(NATIVE), _one(uint256(5)));
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(50)), 3);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyAlreadyPaidOut.selector, id));
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(50)), signatures);
        eq(PAYEE.balance, 5, "paid once");
        eq(custodyA.channelReserve(id, NATIVE), 0, "reserve");
    }

    function test_lengths() public {
        bytes memory outcome = _outcome(NATIVE, PAYEE, 5);
        bytes32 id = _conclude(1, outcome);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyLengthMismatch.selector));
        custodyA.payout(id, outcome, _one(NATIVE), new uint256[](2), new bytes[](0));
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyTooManyRows.selector));
        custodyA.payout(id, outcome, new address[](65), new uint256[](65), new bytes[](0));
    }

    function _many(uint256 assets, uint256 payees) private returns (bytes32 id, bytes memory outcome) {
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](assets);
        for (uint256 i = 0; i < assets; ++i) {
            exits[i] = _row(NATIVE, block.chainid, address(custodyA), PAYEE, 1);
            ExitFormat.Allocation memory allocation = exits[i].allocations[0];
            exits[i].allocations = new ExitFormat.Allocation[](payees);
            for (uint256 j = 0; j < payees; ++j) {
                exits[i].allocations[j] = allocation;
            }
        }
        outcome = abi.encode(exits);
        id = _conclude(1, outcome);
    }

    function _refuseMany(uint256 assets, uint256 payees) private {
        (bytes32 id, bytes memory outcome) = _many(assets, payees);
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(99)), 2);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyTooManyRows.selector));
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(99)), signatures);
    }

    function test_sixtyFourRowsAreTheMost() public {
        vm.deal(address(custodyA), 100);
        (bytes32 id, bytes memory outcome) = _many(64, 1);
        _payout(id, outcome, _one(NATIVE), _one(uint256(99)));
        eq(PAYEE.balance, 64, "paid");
    }

    function test_sixtyFiveAssets() public {
        _refuseMany(65, 1);
    }

    function test_sixtyFivePayees() public {
        _refuseMany(1, 65);
    }

    function test_sixtyFiveAssetsWithoutPayees() public {
        _refuseMany(65, 0);
    }

    function test_outcomesOfAnotherKind() public {
        bytes memory outcome = hex"1234";
        bytes32 id = _conclude(1, outcome);
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(5)), 2);
        vm.expectRevert();
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(5)), signatures);

        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](1);
        exits[0] = _row(NATIVE, block.chainid, address(custodyA), PAYEE, 5);
        exits[0].assetMetadata.assetType = 1;
        outcome = abi.encode(exits);
        id = _conclude(2, outcome);
        signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(5)), 2);
        vm.expectRevert(abi.encodeWithSelector(ExitFormat.ExitFormatInvalid.selector));
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(5)), signatures);
    }

    function test_innerCallsAreNotForOthers() public {
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyOnlySelf.selector));
        vm.prank(brokerA);
        custodyA.payFromSelf(0, NATIVE, brokerA, 1);
        vm.deal(stranger, 1);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyOnlyCustody.selector, stranger));
        vm.prank(stranger);
        custodyA.receiveChannelFunds{value: 1}(0);
    }

    // ------------------------------------------------------------------------------------------ short, and claims

    function test_neverAboveWhatWasAttested() public {
        vm.deal(address(custodyA), 100);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 50);
        bytes32 id = _conclude(1, outcome);
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(20)), 2);
        vm.expectEmit(true, true, true, true, address(custodyA));
        emit BrokerCustody.PaidOut(id, NATIVE, PAYEE, 20);
        vm.expectEmit(true, true, false, true, address(custodyA));
        emit BrokerCustody.PayoutShort(id, NATIVE, PAYEE, 30);
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(20)), signatures);
        eq(custodyA.claims(id, NATIVE), 30, "claim");
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyNothingPaid.selector, id, NATIVE));
        custodyA.payClaim(id, NATIVE);
        eq(PAYEE.balance, 20, "paid");
    }

    function test_anUnattestedTokenBecomesAClaim() public {
        usd.mint(address(custodyA), 100);
        bytes memory outcome = _outcome(address(usd), PAYEE, 50);
        bytes32 id = _conclude(1, outcome);
        _payout(id, outcome, _one(NATIVE), _one(uint256(50)));
        eq(usd.balanceOf(PAYEE), 0, "paid");
        eq(custodyA.claims(id, address(usd)), 50, "claim");
    }

    /// @dev Rows of dollars and ether, of any size, with any attestation and any funds; then the funds grow.
    function testFuzz_conservation(
        uint64[2] memory rows,
        uint64[2] memory attested,
        uint64[2] memory held,
        uint64 later
    ) public {
        usd.mint(address(custodyA), held[0]);
        vm.deal(address(custodyA), held[1]);
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](2);
        exits[0] = _row(address(usd), block.chainid, address(custodyA), address(custodyB), rows[0]);
        exits[1] = _row(NATIVE, block.chainid, address(custodyA), address(custodyB), rows[1]);
        bytes memory outcome = abi.encode(exits);
        bytes32 id = _conclude(1, outcome);
        address[] memory tokens = new address[](2);
        tokens[0] = address(usd);
        uint256[] memory amounts = new uint256[](2);
        (amounts[0], amounts[1]) = (attested[0], attested[1]);
        _payout(id, outcome, tokens, amounts);

        uint256[2] memory paid = [usd.balanceOf(address(custodyB)), address(custodyB).balance];
        for (uint256 i = 0; i < 2; ++i) {
            eq(paid[i] + custodyA.claims(id, tokens[i]), rows[i], "paid + claim = row");
            eq(paid[i] + custodyA.channelReserve(id, tokens[i]), attested[i], "paid + reserve = attested");
            eq(paid[i], _min(rows[i], _min(attested[i], held[i])), "pays all it can");
        }

        usd.mint(address(custodyA), later);
        try custodyA.payClaim(id, address(usd)) {} catch {}
        uint256 total = usd.balanceOf(address(custodyB));
        eq(total + custodyA.claims(id, address(usd)), rows[0], "after the claim: paid + claim = row");
        eq(total, _min(rows[0], _min(attested[0], uint256(held[0]) + later)), "after the claim: pays all it can");
        eq(total + usd.balanceOf(address(custodyA)), uint256(held[0]) + later, "nothing is made or lost");
    }

    function _min(uint256 a, uint256 b) private pure returns (uint256) {
        return a < b ? a : b;
    }

    function test_claimsOfTwoPayeesArePaidInOrder() public {
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](2);
        exits[0] = _row(address(usd), block.chainid, address(custodyA), PAYEE, 30);
        exits[1] = _row(address(usd), block.chainid, address(custodyA), stranger, 40);
        bytes memory outcome = abi.encode(exits);
        bytes32 id = _conclude(1, outcome);
        _payout(id, outcome, _one(address(usd)), _one(uint256(70)));
        eq(custodyA.claims(id, address(usd)), 70, "claims");
        usd.mint(address(custodyA), 50);
        vm.expectEmit(true, true, true, true, address(custodyA));
        emit BrokerCustody.PaidOut(id, address(usd), PAYEE, 30);
        vm.expectEmit(true, true, true, true, address(custodyA));
        emit BrokerCustody.PaidOut(id, address(usd), stranger, 20);
        custodyA.payClaim(id, address(usd));
        eq(custodyA.claims(id, address(usd)), 20, "claims left");
        usd.mint(address(custodyA), 50);
        custodyA.payClaim(id, address(usd));
        eq(usd.balanceOf(stranger), 40, "second payee");
        eq(usd.balanceOf(address(custodyA)), 30, "the rest stays");
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyNothingPaid.selector, id, address(usd)));
        custodyA.payClaim(id, address(usd));
    }

    // ------------------------------------------------------------------------------------- hostile tokens, payees

    function testFuzz_aHostileTokenBlocksNobody(uint8 mode) public {
        HostileToken token = new HostileToken();
        token.mint(address(custodyA), 100);
        token.set(HostileToken.Mode(bound(mode, 1, 4)));
        usd.mint(address(custodyA), 100);
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](3);
        exits[0] = _row(address(token), block.chainid, address(custodyA), PAYEE, 10);
        exits[1] = _row(address(0xDEAD), block.chainid, address(custodyA), PAYEE, 10); // no contract there
        exits[2] = _row(address(usd), block.chainid, address(custodyA), PAYEE, 10);
        bytes memory outcome = abi.encode(exits);
        address[] memory tokens = new address[](3);
        (tokens[0], tokens[1], tokens[2]) = (address(token), address(0xDEAD), address(usd));
        uint256[] memory amounts = new uint256[](3);
        (amounts[0], amounts[1], amounts[2]) = (10, 10, 10);
        bytes32 id = _conclude(1, outcome);
        _payout(id, outcome, tokens, amounts);
        eq(usd.balanceOf(PAYEE), 10, "the honest row");
        eq(custodyA.claims(id, address(token)), 10, "claim");
        eq(custodyA.claims(id, address(0xDEAD)), 10, "claim on nothing");
        eq(custodyA.channelReserve(id, address(token)), 10, "the reserve is back");

        token.set(HostileToken.Mode.Honest);
        custodyA.payClaim(id, address(token));
        eq(token.balanceOf(PAYEE), 10, "paid later");
        eq(custodyA.claims(id, address(token)), 0, "no claim left");
    }

    function testFuzz_aHostilePayeeBlocksNobody(bool burn) public {
        Payee hostile = new Payee();
        hostile.set(!burn, burn);
        vm.deal(address(custodyA), 100);
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](2);
        exits[0] = _row(NATIVE, block.chainid, address(custodyA), address(hostile), 10);
        exits[1] = _row(NATIVE, block.chainid, address(custodyA), PAYEE, 10);
        bytes memory outcome = abi.encode(exits);
        bytes32 id = _conclude(1, outcome);
        _payout(id, outcome, _one(NATIVE), _one(uint256(20)));
        eq(PAYEE.balance, 10, "the other row");
        eq(custodyA.claims(id, NATIVE), 10, "claim");
        hostile.set(false, false);
        custodyA.payClaim(id, NATIVE);
        eq(address(hostile).balance, 10, "paid later");
    }

    function test_feeTokenAndSilentToken() public {
        FeeToken fee = new FeeToken();
        fee.mint(address(custodyA), 1000);
        SilentToken silent = new SilentToken();
        silent.mint(address(custodyA), 1000);
        ExitFormat.SingleAssetExit[] memory exits = new ExitFormat.SingleAssetExit[](2);
        exits[0] = _row(address(fee), block.chainid, address(custodyA), PAYEE, 100);
        exits[1] = _row(address(silent), block.chainid, address(custodyA), PAYEE, 100);
        bytes memory outcome = abi.encode(exits);
        address[] memory tokens = new address[](2);
        (tokens[0], tokens[1]) = (address(fee), address(silent));
        uint256[] memory amounts = new uint256[](2);
        (amounts[0], amounts[1]) = (100, 100);
        _payout(_conclude(1, outcome), outcome, tokens, amounts);
        eq(fee.balanceOf(PAYEE), 99, "the token keeps its fee");
        eq(fee.balanceOf(address(custodyA)), 900, "the custody does not pay it");
        eq(silent.balanceOf(PAYEE), 100, "silent token");
    }

    function test_aReentrantPayeeIsPaidOnce() public {
        Payee hostile = new Payee();
        vm.deal(address(custodyA), 100);
        bytes memory outcome = _outcome(NATIVE, address(hostile), 10);
        bytes32 id = _conclude(1, outcome);
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(50)), 2);
        hostile.hook(
            address(custodyA),
            abi.encodeCall(custodyA.payout, (id, outcome, _one(NATIVE), _one(uint256(50)), signatures))
        );
        custodyA.payout(id, outcome, _one(NATIVE), _one(uint256(50)), signatures);
        eq(address(hostile).balance, 10, "paid once");
        isTrue(!hostile.lastCallOk(), "reentered");
        eq(custodyA.channelReserve(id, NATIVE), 40, "reserve");
    }

    function test_tooLittleGasForAPaymentIsRefused() public {
        vm.deal(address(custodyA), 100);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 10);
        bytes32 id = _conclude(1, outcome);
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(10)), 2);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyInsufficientGas.selector));
        custodyA.payout{gas: 300_000}(id, outcome, _one(NATIVE), _one(uint256(10)), signatures);
    }

    /// @dev Whoever sends the payout must not be able to turn a payment into a claim by giving too little gas.
    function testFuzz_tooLittleGasIsNoClaim(uint256 gasLimit) public {
        vm.deal(address(custodyA), 100);
        bytes memory outcome = _outcome(NATIVE, PAYEE, 10);
        bytes32 id = _conclude(1, outcome);
        bytes[] memory signatures = _attest(custodyA, id, keccak256(outcome), _one(NATIVE), _one(uint256(10)), 2);
        try custodyA.payout{gas: bound(gasLimit, 30_000, 800_000)}(
            id, outcome, _one(NATIVE), _one(uint256(10)), signatures
        ) {
            eq(PAYEE.balance, 10, "paid");
        } catch {
            isTrue(!custodyA.paidOut(id), "paidOut");
        }
        eq(custodyA.claims(id, NATIVE), 0, "claim");
    }
}
