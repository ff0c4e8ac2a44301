// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @notice What never changes in the life of a channel (ForceMove / Nitro argument type).
struct FixedPart {
    uint256 chainId;
    address[] participants;
    uint48 channelNonce;
    address appDefinition;
    uint48 challengeDuration;
}

/// @notice A secp256k1 signature, split as ForceMove passes it. `v` is 27 or 28, `s` in the lower half of the order.
struct Signature {
    uint8 v;
    bytes32 r;
    bytes32 s;
}

/// @title The hashes that both brokers sign
/// @notice Equal to the byte to the Python core; both are tested against tests/vectors/nitro_states.json.
/// @dev No limits are checked here: 1 to 255 participants in any order hash alike. Limits belong to the callers.
library ChannelHashes {
    function channelId(FixedPart calldata fixedPart) internal pure returns (bytes32) {
        return keccak256(abi.encode(fixedPart.chainId, fixedPart.participants, fixedPart.channelNonce));
    }

    function appPartHash(FixedPart calldata fixedPart, bytes calldata appData) internal pure returns (bytes32) {
        return keccak256(abi.encode(fixedPart.challengeDuration, fixedPart.appDefinition, appData));
    }

    function stateHash(uint48 turnNum, bool isFinal, bytes32 id, bytes32 appPart, bytes32 outcomeHash)
        internal
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(turnNum, isFinal, id, appPart, outcomeHash));
    }
}
