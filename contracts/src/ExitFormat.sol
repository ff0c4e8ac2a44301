// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @title Outcomes in the exit format, every asset Qualified by (chain id, custody contract that pays)
/// @notice The types decode what npm @statechannels/exit-format 0.2.0 encodes; tested against
/// tests/vectors/exit_outcomes.json.
library ExitFormat {
    /// @dev AssetType.Qualified: metadata = abi.encode(uint256 chainID, address assetHolder).
    uint8 internal constant QUALIFIED = 3;
    /// @dev AllocationType.simple: pay the destination, no guarantee and no callback.
    uint8 internal constant SIMPLE = 0;

    struct Allocation {
        bytes32 destination;
        uint256 amount;
        uint8 allocationType;
        bytes metadata;
    }

    struct AssetMetadata {
        uint8 assetType;
        bytes metadata;
    }

    struct SingleAssetExit {
        address asset;
        AssetMetadata assetMetadata;
        Allocation[] allocations;
    }

    /// @notice The outcome is well-formed ABI but not of the kind that brokers sign.
    error ExitFormatInvalid();

    /// @dev Reverts without data when `outcome` is not the ABI encoding of the type.
    function decode(bytes calldata outcome) internal pure returns (SingleAssetExit[] memory) {
        return abi.decode(outcome, (SingleAssetExit[]));
    }

    /// @notice Which chain and which custody contract an asset belongs to.
    function qualification(AssetMetadata memory assetMetadata) internal pure returns (uint256 chainId, address holder) {
        if (assetMetadata.assetType != QUALIFIED || assetMetadata.metadata.length != 64) revert ExitFormatInvalid();
        return abi.decode(assetMetadata.metadata, (uint256, address));
    }

    /// @notice The address that an allocation pays: 12 zero bytes, then the address. Nobody is paid at address zero.
    function payee(Allocation memory allocation) internal pure returns (address) {
        uint256 destination = uint256(allocation.destination);
        if (allocation.allocationType != SIMPLE || destination == 0 || destination >> 160 != 0) {
            revert ExitFormatInvalid();
        }
        // The upper 96 bits are zero: checked above.
        // forge-lint: disable-next-line(unsafe-typecast)
        return address(uint160(destination));
    }
}
