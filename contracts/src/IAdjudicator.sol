// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @notice What a custody needs to know of the Adjudicator.
interface IAdjudicator {
    /// @notice The hash of the outcome that holds for a channel; zero until there is one, then never changed.
    function outcomeOf(bytes32 channelId) external view returns (bytes32 outcomeHash);
}
