// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Adjudicator} from "../src/Adjudicator.sol";
import {BrokerCustody} from "../src/BrokerCustody.sol";
import {FixedPart, Signature} from "../src/ChannelHashes.sol";
import {CustodyFactory} from "../src/CustodyFactory.sol";
import {ExitFormat} from "../src/ExitFormat.sol";
import {TestToken} from "../src/TestToken.sol";
import {XlnCollateral} from "../src/XlnCollateral.sol";

/// @dev The cheatcodes that these tests use; forge-std is not on npm.
interface Vm {
    struct Log {
        bytes32[] topics;
        bytes data;
        address emitter;
    }

    function addr(uint256 key) external pure returns (address);
    function sign(uint256 key, bytes32 digest) external pure returns (uint8 v, bytes32 r, bytes32 s);
    function prank(address sender) external;
    function deal(address account, uint256 amount) external;
    function warp(uint256 timestamp) external;
    function chainId(uint256 id) external;
    function expectRevert(bytes calldata data) external;
    function expectRevert() external;
    function expectEmit(bool topic1, bool topic2, bool topic3, bool data, address emitter) external;
    function recordLogs() external;
    function getRecordedLogs() external returns (Log[] memory);
    function readFile(string calldata path) external view returns (string memory);
    function keyExistsJson(string calldata json, string calldata key) external view returns (bool);
    function parseJsonAddress(string calldata json, string calldata key) external pure returns (address);
    function parseJsonAddressArray(string calldata json, string calldata key) external pure returns (address[] memory);
    function parseJsonBool(string calldata json, string calldata key) external pure returns (bool);
    function parseJsonBytes(string calldata json, string calldata key) external pure returns (bytes memory);
    function parseJsonBytes32(string calldata json, string calldata key) external pure returns (bytes32);
    function parseJsonUint(string calldata json, string calldata key) external pure returns (uint256);
    function toString(uint256 value) external pure returns (string memory);
    function assume(bool condition) external pure;
}

/// @dev Assertions, and a small network: two brokers with custodies (three attestors, two must agree), XLN, two tokens.
abstract contract Base {
    Vm internal constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));

    uint256 internal constant HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0;
    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    uint64 internal constant DELAY = 1 days;
    address internal constant NATIVE = address(0);

    uint256 internal constant XLN_KEY = 0x71;
    uint256 internal constant USER_KEY = 0x05E7;
    uint256 internal constant STRANGER_KEY = 0x57A6;
    uint256 internal keyA; // the broker with the lower address
    uint256 internal keyB;
    uint256[] internal attestorKeys; // ascending by address

    address internal brokerA;
    address internal brokerB;
    address internal xln;
    address internal user;
    address internal stranger;

    Adjudicator internal adjudicator;
    CustodyFactory internal factory;
    XlnCollateral internal collateral;
    BrokerCustody internal custodyA;
    BrokerCustody internal custodyB;
    TestToken internal usd;
    TestToken internal gold;

    function setUp() public virtual {
        vm.warp(1_700_000_000);
        uint256[] memory brokers = _sortedKeys(0xA, 2);
        (keyA, keyB) = (brokers[0], brokers[1]);
        attestorKeys = _sortedKeys(0x700, 3);
        (brokerA, brokerB) = (vm.addr(keyA), vm.addr(keyB));
        (xln, user, stranger) = (vm.addr(XLN_KEY), vm.addr(USER_KEY), vm.addr(STRANGER_KEY));

        adjudicator = new Adjudicator();
        factory = new CustodyFactory(adjudicator);
        collateral = new XlnCollateral(xln, factory, DELAY);
        vm.prank(brokerA);
        custodyA = BrokerCustody(factory.create(_attestors(), 2));
        vm.prank(brokerB);
        custodyB = BrokerCustody(factory.create(_attestors(), 2));
        usd = new TestToken("Test Dollar", "USD", 6);
        gold = new TestToken("Test Gold", "XAU", 18);
    }

    // ---------------------------------------------------------------------------------------------- assertions

    function eq(uint256 actual, uint256 expected, string memory what) internal pure {
        if (actual != expected) {
            revert(string.concat(what, ": ", vm.toString(actual), ", expected ", vm.toString(expected)));
        }
    }

    function eq(bytes32 actual, bytes32 expected, string memory what) internal pure {
        require(actual == expected, what);
    }

    function eq(address actual, address expected, string memory what) internal pure {
        require(actual == expected, what);
    }

    function isTrue(bool condition, string memory what) internal pure {
        require(condition, what);
    }

    function bound(uint256 value, uint256 low, uint256 high) internal pure returns (uint256) {
        return low + value % (high - low + 1);
    }

    // ------------------------------------------------------------------------------------------------- signing

    function _sortedKeys(uint256 first, uint256 count) internal pure returns (uint256[] memory keys) {
        keys = new uint256[](count);
        for (uint256 i = 0; i < count; ++i) {
            uint256 key = first + i;
            uint256 j = i;
            for (; j > 0 && vm.addr(keys[j - 1]) > vm.addr(key); --j) {
                keys[j] = keys[j - 1];
            }
            keys[j] = key;
        }
    }

    function _attestors() internal view returns (address[] memory list) {
        list = new address[](attestorKeys.length);
        for (uint256 i = 0; i < list.length; ++i) {
            list[i] = vm.addr(attestorKeys[i]);
        }
    }

    function _signature(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function _highS(bytes memory signature) internal pure returns (bytes memory) {
        (bytes32 r, bytes32 s) = abi.decode(signature, (bytes32, bytes32));
        return abi.encodePacked(r, bytes32(ORDER - uint256(s)), uint8(signature[64]) == 27 ? uint8(28) : uint8(27));
    }

    /// @dev EIP-712 by hand, so that the contracts' use of the library is checked against something else.
    function _digest(string memory name, address verifier, bytes32 structHash) internal view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256(bytes(name)),
                keccak256("1"),
                block.chainid,
                verifier
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    // ----------------------------------------------------------------------------------------- channel, payout

    function _fixedPart(uint48 nonce) internal view returns (FixedPart memory fixedPart) {
        fixedPart.chainId = block.chainid;
        fixedPart.participants = new address[](2);
        fixedPart.participants[0] = brokerA;
        fixedPart.participants[1] = brokerB;
        fixedPart.channelNonce = nonce;
        fixedPart.appDefinition = address(adjudicator);
        fixedPart.challengeDuration = 3600;
    }

    function _channelId(FixedPart memory f) internal pure returns (bytes32) {
        return keccak256(abi.encode(f.chainId, f.participants, f.channelNonce));
    }

    function _stateDigest(FixedPart memory f, uint48 turnNum, bool isFinal, bytes memory appData, bytes32 outcomeHash)
        internal
        pure
        returns (bytes32)
    {
        bytes32 appPart = keccak256(abi.encode(f.challengeDuration, f.appDefinition, appData));
        bytes32 state = keccak256(abi.encode(turnNum, isFinal, _channelId(f), appPart, outcomeHash));
        return keccak256(abi.encodePacked("\x19Ethereum Signed Message:\n32", state));
    }

    function _split(uint256 key, bytes32 digest) internal pure returns (Signature memory signature) {
        (signature.v, signature.r, signature.s) = vm.sign(key, digest);
    }

    function _bothSign(bytes32 digest) internal view returns (Signature[2] memory signatures) {
        signatures[0] = _split(keyA, digest);
        signatures[1] = _split(keyB, digest);
    }

    function _conclude(uint48 nonce, bytes memory outcome) internal returns (bytes32) {
        FixedPart memory f = _fixedPart(nonce);
        bytes32 outcomeHash = keccak256(outcome);
        adjudicator.conclude(f, 9, hex"01", outcomeHash, _bothSign(_stateDigest(f, 9, true, hex"01", outcomeHash)));
        return _channelId(f);
    }

    function _row(address token, uint256 chainId, address holder, address to, uint256 amount)
        internal
        pure
        returns (ExitFormat.SingleAssetExit memory row)
    {
        row.asset = token;
        row.assetMetadata.assetType = 3;
        row.assetMetadata.metadata = abi.encode(chainId, holder);
        row.allocations = new ExitFormat.Allocation[](1);
        row.allocations[0].destination = bytes32(uint256(uint160(to)));
        row.allocations[0].amount = amount;
    }

    /// @dev Signatures of the first `count` attestors.
    function _attest(
        BrokerCustody custody,
        bytes32 channelId,
        bytes32 outcomeHash,
        address[] memory tokens,
        uint256[] memory amounts,
        uint256 count
    ) internal view returns (bytes[] memory signatures) {
        bytes32 digest = _attestationDigest(custody, channelId, outcomeHash, tokens, amounts);
        signatures = new bytes[](count);
        for (uint256 i = 0; i < count; ++i) {
            signatures[i] = _signature(attestorKeys[i], digest);
        }
    }

    function _attestationDigest(
        BrokerCustody custody,
        bytes32 channelId,
        bytes32 outcomeHash,
        address[] memory tokens,
        uint256[] memory amounts
    ) internal view returns (bytes32) {
        bytes memory packedTokens;
        bytes memory packedAmounts;
        for (uint256 i = 0; i < tokens.length; ++i) {
            packedTokens = abi.encodePacked(packedTokens, uint256(uint160(tokens[i])));
            packedAmounts = abi.encodePacked(packedAmounts, amounts[i]);
        }
        return _digest(
            "XLN Custody",
            address(custody),
            keccak256(
                abi.encode(
                    keccak256("Attestation(bytes32 channelId,bytes32 outcomeHash,address[] tokens,uint256[] amounts)"),
                    channelId,
                    outcomeHash,
                    keccak256(packedTokens),
                    keccak256(packedAmounts)
                )
            )
        );
    }

    function _one(address token) internal pure returns (address[] memory list) {
        list = new address[](1);
        list[0] = token;
    }

    function _one(uint256 amount) internal pure returns (uint256[] memory list) {
        list = new uint256[](1);
        list[0] = amount;
    }
}
