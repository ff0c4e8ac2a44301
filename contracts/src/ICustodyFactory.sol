// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

/// @notice What custodies and the collateral contract need to know of the factory.
interface ICustodyFactory {
    /// @notice The custody of a broker; zero when it has none.
    function custodyOf(address broker) external view returns (address custody);

    /// @notice Whether this factory made `account`, so that its code is known.
    function isCustody(address account) external view returns (bool);
}
