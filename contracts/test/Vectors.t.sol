// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ChannelHashes, FixedPart} from "../src/ChannelHashes.sol";
import {ExitFormat} from "../src/ExitFormat.sol";
import {Base} from "./Base.sol";

/// @dev The libraries are internal and take calldata; this gives them an outside.
contract Harness {
    function channelId(FixedPart calldata fixedPart) external pure returns (bytes32) {
        return ChannelHashes.channelId(fixedPart);
    }

    function appPartHash(FixedPart calldata fixedPart, bytes calldata appData) external pure returns (bytes32) {
        return ChannelHashes.appPartHash(fixedPart, appData);
    }

    function stateHash(uint48 turnNum, bool isFinal, bytes32 id, bytes32 appPart, bytes32 outcomeHash)
        external
        pure
        returns (bytes32)
    {
        return ChannelHashes.stateHash(turnNum, isFinal, id, appPart, outcomeHash);
    }

    function decode(bytes calldata outcome) external pure returns (ExitFormat.SingleAssetExit[] memory) {
        return ExitFormat.decode(outcome);
    }

    function qualification(ExitFormat.AssetMetadata memory metadata) external pure returns (uint256, address) {
        return ExitFormat.qualification(metadata);
    }

    function payee(ExitFormat.Allocation memory allocation) external pure returns (address) {
        return ExitFormat.payee(allocation);
    }
}

/// @notice The shared JSON vectors, read from where the Python tests read them.
contract VectorsTest is Base {
    string private constant STATES = "../tests/vectors/nitro_states.json";
    string private constant EXITS = "../tests/vectors/exit_outcomes.json";

    Harness private harness;

    function setUp() public override {
        harness = new Harness();
    }

    function test_everyNitroStateHashesAlike() public view {
        string memory json = vm.readFile(STATES);
        uint256 count = 0;
        for (; vm.keyExistsJson(json, _key("states", count, "")); ++count) {
            _checkState(json, _key("states", count, ""));
        }
        eq(count, 20, "states read");
    }

    function _checkState(string memory json, string memory path) private view {
        FixedPart memory f;
        f.chainId = vm.parseJsonUint(json, string.concat(path, ".fixedPart.chainId"));
        f.participants = vm.parseJsonAddressArray(json, string.concat(path, ".fixedPart.participants"));
        f.channelNonce = uint48(vm.parseJsonUint(json, string.concat(path, ".fixedPart.channelNonce")));
        f.appDefinition = vm.parseJsonAddress(json, string.concat(path, ".fixedPart.appDefinition"));
        f.challengeDuration = uint48(vm.parseJsonUint(json, string.concat(path, ".fixedPart.challengeDuration")));

        bytes32 id = harness.channelId(f);
        eq(id, vm.parseJsonBytes32(json, string.concat(path, ".expected.channelId")), "channelId");
        bytes32 appPart = harness.appPartHash(f, vm.parseJsonBytes(json, string.concat(path, ".appData")));
        eq(appPart, vm.parseJsonBytes32(json, string.concat(path, ".expected.appPartHash")), "appPartHash");
        bytes32 outcomeHash = keccak256(vm.parseJsonBytes(json, string.concat(path, ".expected.encodedOutcome")));
        eq(outcomeHash, vm.parseJsonBytes32(json, string.concat(path, ".expected.outcomeHash")), "outcomeHash");
        eq(
            harness.stateHash(
                uint48(vm.parseJsonUint(json, string.concat(path, ".turnNum"))),
                vm.parseJsonBool(json, string.concat(path, ".isFinal")),
                id,
                appPart,
                outcomeHash
            ),
            vm.parseJsonBytes32(json, string.concat(path, ".expected.stateHash")),
            "stateHash"
        );
    }

    function test_everyExitOutcomeDecodes() public view {
        string memory json = vm.readFile(EXITS);
        uint256 count = 0;
        for (; vm.keyExistsJson(json, _key("cases", count, "")); ++count) {
            _checkExit(json, _key("cases", count, ""));
        }
        isTrue(count >= 4, "cases read");
    }

    function _checkExit(string memory json, string memory path) private view {
        bytes memory encoded = vm.parseJsonBytes(json, string.concat(path, ".expected.encoded"));
        eq(keccak256(encoded), vm.parseJsonBytes32(json, string.concat(path, ".expected.outcomeHash")), "outcomeHash");
        ExitFormat.SingleAssetExit[] memory exits = harness.decode(encoded);
        eq(keccak256(abi.encode(exits)), keccak256(encoded), "encoded again");
        uint256 rows = 0;
        for (; vm.keyExistsJson(json, string.concat(path, ".exits[", vm.toString(rows), "]")); ++rows) {
            _checkAsset(json, string.concat(path, ".exits[", vm.toString(rows), "]"), exits[rows]);
        }
        eq(rows, exits.length, "assets");
    }

    function _checkAsset(string memory json, string memory path, ExitFormat.SingleAssetExit memory asset) private view {
        eq(asset.asset, vm.parseJsonAddress(json, string.concat(path, ".asset")), "asset");
        (uint256 chainId, address holder) = harness.qualification(asset.assetMetadata);
        eq(chainId, vm.parseJsonUint(json, string.concat(path, ".chainID")), "chain id");
        eq(holder, vm.parseJsonAddress(json, string.concat(path, ".assetHolder")), "holder");
        uint256 count = 0;
        for (; vm.keyExistsJson(json, string.concat(path, ".allocations[", vm.toString(count), "]")); ++count) {
            string memory key = string.concat(path, ".allocations[", vm.toString(count), "]");
            ExitFormat.Allocation memory allocation = asset.allocations[count];
            eq(allocation.destination, vm.parseJsonBytes32(json, string.concat(key, ".destination")), "destination");
            eq(allocation.amount, vm.parseJsonUint(json, string.concat(key, ".amount")), "amount");
            eq(uint256(uint160(harness.payee(allocation))), uint256(allocation.destination), "payee");
        }
        eq(count, asset.allocations.length, "allocations");
    }

    function test_otherAssetTypesAreRefused() public {
        ExitFormat.AssetMetadata memory metadata = ExitFormat.AssetMetadata(0, abi.encode(uint256(1), address(1)));
        vm.expectRevert(abi.encodeWithSelector(ExitFormat.ExitFormatInvalid.selector));
        harness.qualification(metadata);
        metadata = ExitFormat.AssetMetadata(3, hex"01");
        vm.expectRevert(abi.encodeWithSelector(ExitFormat.ExitFormatInvalid.selector));
        harness.qualification(metadata);
    }

    function test_destinationsThatAreNoAddressAreRefused() public {
        ExitFormat.Allocation memory allocation = ExitFormat.Allocation(bytes32(uint256(1) << 160), 1, 0, "");
        vm.expectRevert(abi.encodeWithSelector(ExitFormat.ExitFormatInvalid.selector));
        harness.payee(allocation);
        allocation = ExitFormat.Allocation(0, 1, 0, "");
        vm.expectRevert(abi.encodeWithSelector(ExitFormat.ExitFormatInvalid.selector));
        harness.payee(allocation);
        allocation = ExitFormat.Allocation(bytes32(uint256(1)), 1, 1, "");
        vm.expectRevert(abi.encodeWithSelector(ExitFormat.ExitFormatInvalid.selector));
        harness.payee(allocation);
    }

    function _key(string memory list, uint256 index, string memory rest) private pure returns (string memory) {
        return string.concat(".", list, "[", vm.toString(index), "]", rest);
    }
}
