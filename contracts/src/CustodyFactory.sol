// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {BrokerCustody} from "./BrokerCustody.sol";
import {IAdjudicator} from "./IAdjudicator.sol";
import {ICustodyFactory} from "./ICustodyFactory.sol";

/// @title Makes one custody per broker
/// @notice A custody made here has known code and a known Adjudicator: that is what peers, XlnCollateral and other
/// custodies rely on. No owner; the broker makes its own.
contract CustodyFactory is ICustodyFactory {
    IAdjudicator public immutable adjudicator;

    /// @inheritdoc ICustodyFactory
    mapping(address broker => address custody) public custodyOf;
    /// @inheritdoc ICustodyFactory
    mapping(address account => bool) public isCustody;

    event CustodyCreated(address indexed broker, address custody);

    error FactoryZeroAddress();
    error FactoryCustodyExists(address custody);

    constructor(IAdjudicator adjudicator_) {
        if (address(adjudicator_) == address(0)) revert FactoryZeroAddress();
        adjudicator = adjudicator_;
    }

    /// @notice Make the custody of the caller. Once: users must be able to tell which custody is a broker's.
    /// @param attestors strictly ascending addresses whose word a payout needs; XLN by default
    /// @param threshold how many of them must agree
    function create(address[] calldata attestors, uint256 threshold) external returns (address custody) {
        if (custodyOf[msg.sender] != address(0)) revert FactoryCustodyExists(custodyOf[msg.sender]);
        custody = address(new BrokerCustody(msg.sender, adjudicator, attestors, threshold));
        custodyOf[msg.sender] = custody;
        isCustody[custody] = true;
        emit CustodyCreated(msg.sender, custody);
    }
}
