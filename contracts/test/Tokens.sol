// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {TestToken} from "../src/TestToken.sol";

/// @dev Takes one percent of every transfer.
contract FeeToken is TestToken("Fee", "FEE", 18) {
    function _update(address from, address to, uint256 value) internal override {
        if (from != address(0) && to != address(0)) {
            uint256 fee = value / 100;
            super._update(from, address(0xFEE), fee);
            value -= fee;
        }
        super._update(from, to, value);
    }
}

/// @dev transfer and transferFrom return nothing, as some old tokens do.
contract SilentToken {
    mapping(address account => uint256) public balanceOf;

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// @dev Misbehaves on transfer as told; transferFrom works, so that it gets in.
contract HostileToken is TestToken("Hostile", "BAD", 18) {
    enum Mode {
        Honest,
        Revert,
        ReturnFalse,
        BurnGas,
        ReturnMegabyte
    }

    Mode public mode;

    function set(Mode mode_) external {
        mode = mode_;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        if (mode == Mode.Revert) revert("no");
        if (mode == Mode.ReturnFalse) return false;
        if (mode == Mode.BurnGas) {
            while (gasleft() > 0) {}
        }
        if (mode == Mode.ReturnMegabyte) {
            assembly ("memory-safe") {
                revert(0, 1000000)
            }
        }
        return super.transfer(to, value);
    }
}

/// @dev Calls back on every transfer, as a token with hooks does.
contract HookToken is TestToken("Hook", "HOOK", 18) {
    address public target;
    bytes public data;
    bool public lastCallOk;
    bytes public lastCallResult;

    function hook(address target_, bytes calldata data_) external {
        target = target_;
        data = data_;
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target != address(0)) {
            address callee = target;
            target = address(0); // once
            (lastCallOk, lastCallResult) = callee.call(data);
        }
    }
}

/// @dev A payee that refuses, burns gas, or calls back when it is paid.
contract Payee {
    bool public refuse;
    bool public burn;
    address public target;
    bytes public data;
    bool public lastCallOk;
    bytes public lastCallResult;

    function set(bool refuse_, bool burn_) external {
        (refuse, burn) = (refuse_, burn_);
    }

    function hook(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function run(address callee, uint256 value, bytes calldata callData) external {
        (bool ok, bytes memory result) = callee.call{value: value}(callData);
        if (!ok) {
            assembly ("memory-safe") {
                revert(add(result, 32), mload(result))
            }
        }
    }

    receive() external payable {
        require(!refuse, "refused");
        if (burn) {
            while (gasleft() > 0) {}
        }
        if (target != address(0)) (lastCallOk, lastCallResult) = target.call(data);
    }
}
