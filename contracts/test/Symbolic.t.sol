// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {Adjudicator} from "../src/Adjudicator.sol";
import {CustodyFactory} from "../src/CustodyFactory.sol";
import {XlnCollateral} from "../src/XlnCollateral.sol";
import {Vm} from "./Base.sol";

/// @notice What halmos proves for every amount: `make security`. forge runs none of these (their names begin with check_).
contract SymbolicCollateralTest {
    Vm private constant vm = Vm(address(uint160(uint256(keccak256("hevm cheat code")))));
    // Written down, not derived from keys: a derived address is a symbol, and the set-up would fork on it.
    address private constant brokerA = address(0xA11CE);
    address private constant brokerB = address(0xB0B);
    address private constant xln = address(0x71);
    XlnCollateral private collateral;

    function setUp() public {
        CustodyFactory factory = new CustodyFactory(new Adjudicator());
        collateral = new XlnCollateral(xln, factory, 1 days);
        _register(factory, brokerA);
        _register(factory, brokerB);
    }

    function _register(CustodyFactory factory, address broker) private {
        address[] memory attestors = new address[](1);
        attestors[0] = xln;
        vm.prank(broker);
        address custody = address(factory.create(attestors, 1));
        vm.prank(broker);
        collateral.register(custody, "wss://broker.example");
    }

    /// Whatever is deposited and asked back: free + pending + locked = deposited, and never more leaves than was there.
    function check_free_is_what_is_neither_locked_nor_leaving(uint128 deposit, uint128 withdrawal) public {
        vm.deal(brokerA, deposit);
        vm.prank(brokerA);
        collateral.depositNative{value: deposit}();
        vm.prank(brokerA);
        (bool asked,) =
            address(collateral).call(abi.encodeCall(XlnCollateral.requestWithdrawal, (address(0), uint256(withdrawal))));
        uint256 leaving = asked ? withdrawal : 0;
        assert(!asked || withdrawal <= deposit);
        assert(collateral.deposited(brokerA, address(0)) == deposit);
        assert(collateral.free(brokerA, address(0)) + leaving == deposit);
    }

    /// Nobody gets collateral of another broker.
    function check_a_withdrawal_is_from_ones_own(uint128 mine, uint128 theirs, uint128 withdrawal) public {
        vm.deal(brokerA, mine);
        vm.prank(brokerA);
        collateral.depositNative{value: mine}();
        vm.deal(brokerB, theirs);
        vm.prank(brokerB);
        collateral.depositNative{value: theirs}();
        vm.prank(brokerA);
        (bool asked,) =
            address(collateral).call(abi.encodeCall(XlnCollateral.requestWithdrawal, (address(0), uint256(withdrawal))));
        assert(!asked || withdrawal <= mine);
        assert(collateral.free(brokerB, address(0)) == theirs);
    }
}
