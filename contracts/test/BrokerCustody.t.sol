// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {BrokerCustody} from "../src/BrokerCustody.sol";
import {CustodyFactory} from "../src/CustodyFactory.sol";
import {IAdjudicator} from "../src/IAdjudicator.sol";
import {Base} from "./Base.sol";
import {FeeToken, HookToken, HostileToken, Payee, SilentToken} from "./Tokens.sol";

contract CustodyFactoryTest is Base {
    function test_oneCustodyPerBroker() public {
        eq(factory.custodyOf(brokerA), address(custodyA), "custodyOf");
        isTrue(factory.isCustody(address(custodyA)), "isCustody");
        isTrue(!factory.isCustody(stranger), "a stranger is no custody");
        eq(custodyA.broker(), brokerA, "broker");
        eq(address(custodyA.factory()), address(factory), "factory");
        eq(address(custodyA.adjudicator()), address(adjudicator), "adjudicator");
        eq(custodyA.threshold(), 2, "threshold");
        eq(keccak256(abi.encode(custodyA.attestors())), keccak256(abi.encode(_attestors())), "attestors");
        vm.expectRevert(abi.encodeWithSelector(CustodyFactory.FactoryCustodyExists.selector, address(custodyA)));
        vm.prank(brokerA);
        factory.create(_attestors(), 1);
    }

    function test_announcesTheCustody() public {
        vm.recordLogs();
        vm.prank(stranger);
        address custody = factory.create(_attestors(), 3);
        bytes memory data = vm.getRecordedLogs()[0].data;
        eq(abi.decode(data, (address)), custody, "event");
    }

    function _refuse(address[] memory attestors, uint256 threshold) private {
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyInvalidAttestors.selector));
        vm.prank(stranger);
        factory.create(attestors, threshold);
    }

    function test_attestorsMustMakeSense() public {
        _refuse(_attestors(), 0);
        _refuse(_attestors(), 4);
        _refuse(new address[](0), 0);
        _refuse(_one(address(0)), 1);
        _refuse(_one(stranger), 1); // the broker itself
        address[] memory twice = new address[](2);
        (twice[0], twice[1]) = (xln, xln);
        _refuse(twice, 1);
        address[] memory many = new address[](33);
        for (uint160 i = 0; i < 33; ++i) {
            many[i] = address(i + 1);
        }
        _refuse(many, 1);
    }

    function test_needsAnAdjudicator() public {
        vm.expectRevert(abi.encodeWithSelector(CustodyFactory.FactoryZeroAddress.selector));
        new CustodyFactory(IAdjudicator(address(0)));
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyZeroAddress.selector));
        new BrokerCustody(address(0), adjudicator, _attestors(), 1);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyZeroAddress.selector));
        new BrokerCustody(brokerA, IAdjudicator(address(0)), _attestors(), 1);
    }
}

contract DepositTest is Base {
    function testFuzz_native(uint96 amount) public {
        vm.assume(amount != 0);
        vm.deal(user, amount);
        vm.expectEmit(true, true, false, true, address(custodyA));
        emit BrokerCustody.Deposited(user, NATIVE, amount);
        vm.prank(user);
        custodyA.depositNative{value: amount}();
        eq(address(custodyA).balance, amount, "held");
    }

    function test_nativeZero() public {
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyZeroAmount.selector));
        custodyA.depositNative();
    }

    function test_plainSendsRevert() public {
        vm.deal(user, 1 ether);
        vm.prank(user);
        (bool ok,) = address(custodyA).call{value: 1}("");
        isTrue(!ok, "accepted a plain send");
    }

    function testFuzz_token(uint256 amount) public {
        vm.assume(amount != 0);
        usd.mint(user, amount);
        vm.prank(user);
        usd.approve(address(custodyA), amount);
        vm.expectEmit(true, true, false, true, address(custodyA));
        emit BrokerCustody.Deposited(user, address(usd), amount);
        vm.prank(user);
        custodyA.deposit(address(usd), amount);
        eq(usd.balanceOf(address(custodyA)), amount, "held");
    }

    function testFuzz_feeOnTransferCreditsWhatArrived(uint128 amount) public {
        vm.assume(amount != 0);
        FeeToken token = new FeeToken();
        token.mint(user, amount);
        vm.prank(user);
        token.approve(address(custodyA), amount);
        uint256 arrives = uint256(amount) - uint256(amount) / 100;
        vm.expectEmit(true, true, false, true, address(custodyA));
        emit BrokerCustody.Deposited(user, address(token), arrives);
        vm.prank(user);
        custodyA.deposit(address(token), amount);
        eq(token.balanceOf(address(custodyA)), arrives, "held");
    }

    function test_tokenWithoutReturnValue() public {
        SilentToken token = new SilentToken();
        token.mint(user, 5);
        vm.expectEmit(true, true, false, true, address(custodyA));
        emit BrokerCustody.Deposited(user, address(token), 5);
        vm.prank(user);
        custodyA.deposit(address(token), 5);
    }

    function test_refused() public {
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyInvalidToken.selector, NATIVE));
        custodyA.deposit(NATIVE, 1);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyZeroAmount.selector));
        custodyA.deposit(address(usd), 0);
        vm.expectRevert(); // not approved
        custodyA.deposit(address(usd), 1);
        vm.expectRevert(); // no contract there
        custodyA.deposit(address(0xDEAD), 1);
    }

    /// @dev A hook on the way in pays the custody from elsewhere; that is not the depositor's.
    function test_hooksCannotInflateADeposit() public {
        HookToken token = new HookToken();
        token.mint(user, 10);
        token.mint(address(token), 90);
        vm.prank(user);
        token.approve(address(custodyA), 10);
        token.hook(address(token), abi.encodeCall(token.transfer, (address(custodyA), 90)));
        vm.expectEmit(true, true, false, true, address(custodyA));
        emit BrokerCustody.Deposited(user, address(token), 10);
        vm.prank(user);
        custodyA.deposit(address(token), 10);
        isTrue(token.lastCallOk(), "the hook ran");
        eq(token.balanceOf(address(custodyA)), 100, "held");
    }

    function test_depositsCannotBeNested() public {
        HookToken token = new HookToken();
        token.mint(user, 10);
        vm.prank(user);
        token.approve(address(custodyA), 10);
        token.hook(address(custodyA), abi.encodeCall(custodyA.deposit, (address(token), 1)));
        vm.prank(user);
        custodyA.deposit(address(token), 10);
        isTrue(!token.lastCallOk(), "the nested deposit went through");
        eq(bytes32(token.lastCallResult()), bytes32(bytes4(keccak256("ReentrancyGuardReentrantCall()"))), "guard");
    }
}

contract WithdrawTest is Base {
    bytes32 private constant WITHDRAWAL =
        keccak256("Withdrawal(address user,address token,uint256 amount,address to,bytes32 id,uint64 deadline)");
    bytes32 private constant APPROVAL = keccak256(
        "WithdrawalApproval(address user,address token,uint256 amount,address to,bytes32 id,uint64 deadline)"
    );

    address private constant TO = address(0x7070);

    function setUp() public override {
        super.setUp();
        vm.deal(address(custodyA), 100 ether);
        usd.mint(address(custodyA), 1_000_000);
    }

    function _request(address token, uint256 amount) private view returns (BrokerCustody.Withdrawal memory) {
        return BrokerCustody.Withdrawal(user, token, amount, TO, keccak256("id"), uint64(block.timestamp + 60));
    }

    function _sign(uint256 key, bytes32 typeHash, BrokerCustody.Withdrawal memory w)
        private
        view
        returns (bytes memory)
    {
        return _signature(
            key,
            _digest(
                "XLN Custody",
                address(custodyA),
                keccak256(abi.encode(typeHash, w.user, w.token, w.amount, w.to, w.id, w.deadline))
            )
        );
    }

    function _withdraw(BrokerCustody.Withdrawal memory w) private {
        custodyA.withdraw(w, _sign(USER_KEY, WITHDRAWAL, w), _sign(keyA, APPROVAL, w));
    }

    function _refuse(BrokerCustody.Withdrawal memory w, bytes memory byUser, bytes memory byBroker, bytes memory why)
        private
    {
        vm.expectRevert(why);
        custodyA.withdraw(w, byUser, byBroker);
        isTrue(!custodyA.withdrawalUsed(w.id), "the id was used up");
    }

    function testFuzz_native(uint256 amount) public {
        amount = bound(amount, 1, 100 ether);
        BrokerCustody.Withdrawal memory w = _request(NATIVE, amount);
        bytes memory byUser = _sign(USER_KEY, WITHDRAWAL, w);
        bytes memory byBroker = _sign(keyA, APPROVAL, w);
        vm.expectEmit(true, true, true, true, address(custodyA));
        emit BrokerCustody.Withdrawn(w.id, user, NATIVE, amount, TO);
        vm.prank(stranger); // anyone may send it
        custodyA.withdraw(w, byUser, byBroker);
        eq(TO.balance, amount, "received");
        eq(address(custodyA).balance, 100 ether - amount, "held");
    }

    function testFuzz_token(uint256 amount) public {
        amount = bound(amount, 1, 1_000_000);
        _withdraw(_request(address(usd), amount));
        eq(usd.balanceOf(TO), amount, "received");
    }

    function test_tokenWithoutReturnValue() public {
        SilentToken token = new SilentToken();
        token.mint(address(custodyA), 5);
        _withdraw(_request(address(token), 5));
        eq(token.balanceOf(TO), 5, "received");
    }

    function testFuzz_idsAreSingleUse(bytes32 id, uint64 first, uint64 second) public {
        BrokerCustody.Withdrawal memory w = _request(NATIVE, bound(first, 1, 1 ether));
        w.id = id;
        _withdraw(w);
        w.amount = bound(second, 1, 1 ether);
        bytes memory byUser = _sign(USER_KEY, WITHDRAWAL, w);
        bytes memory byBroker = _sign(keyA, APPROVAL, w);
        vm.expectRevert(abi.encodeWithSelector(BrokerCustody.CustodyWithdrawalUsed.selector, id));
        custodyA.withdraw(w, byUser, byBroker);
    }

    function test_deadlineIsTheLastSecond() public {
        BrokerCustody.Withdrawal memory w = _request(NATIVE, 1);
        vm.warp(w.deadline + 1);
        _refuse(
            w,
            _sign(USER_KEY, WITHDRAWAL, w),
            _sign(keyA, APPROVAL, w),
            abi.encodeWithSelector(BrokerCustody.CustodyWithdrawalExpired.selector, w.deadline)
        );
        vm.warp(w.deadline);
        _withdraw(w);
    }

    function test_bothSignaturesAreNeeded() public {
        BrokerCustody.Withdrawal memory w = _request(NATIVE, 1);
        bytes memory byUser = _sign(USER_KEY, WITHDRAWAL, w);
        bytes memory byBroker = _sign(keyA, APPROVAL, w);
        bytes memory noUser = abi.encodeWithSelector(BrokerCustody.CustodyInvalidUserSignature.selector);
        bytes memory noBroker = abi.encodeWithSelector(BrokerCustody.CustodyInvalidBrokerSignature.selector);
        _refuse(w, _sign(STRANGER_KEY, WITHDRAWAL, w), byBroker, noUser);
        _refuse(w, _sign(USER_KEY, APPROVAL, w), byBroker, noUser); // the other type
        _refuse(w, _highS(byUser), byBroker, noUser);
        _refuse(w, "", byBroker, noUser);
        _refuse(w, byUser, _sign(keyB, APPROVAL, w), noBroker);
        _refuse(w, byUser, _sign(keyA, WITHDRAWAL, w), noBroker); // a user's request is no approval
        _refuse(w, byUser, _highS(byBroker), noBroker);
        _refuse(w, byUser, "", noBroker);
        w.user = address(0); // a malformed signature recovers to zero, and must not be this user's
        _refuse(w, "", _sign(keyA, APPROVAL, w), noUser);
    }

    function testFuzz_nothingSignedCanBeChanged(uint8 field, uint160 salt) public {
        BrokerCustody.Withdrawal memory w = _request(NATIVE, 1);
        bytes memory byUser = _sign(USER_KEY, WITHDRAWAL, w);
        bytes memory byBroker = _sign(keyA, APPROVAL, w);
        salt = uint160(bound(salt, 10, type(uint160).max - 1));
        vm.assume(address(salt) != TO && address(salt) != user && address(salt) != address(custodyA));
        field = field % 6;
        if (field == 0) w.user = address(salt);
        if (field == 1) w.token = address(salt);
        if (field == 2) w.amount = salt;
        if (field == 3) w.to = address(salt);
        if (field == 4) w.id = bytes32(uint256(salt));
        if (field == 5) w.deadline += 1;
        _refuse(w, byUser, byBroker, abi.encodeWithSelector(BrokerCustody.CustodyInvalidUserSignature.selector));
    }

    function test_amountAndRecipient() public {
        BrokerCustody.Withdrawal memory w = _request(NATIVE, 0);
        _refuse(w, "", "", abi.encodeWithSelector(BrokerCustody.CustodyZeroAmount.selector));
        w = _request(NATIVE, 1);
        w.to = address(0);
        _refuse(w, "", "", abi.encodeWithSelector(BrokerCustody.CustodyInvalidRecipient.selector, w.to));
        w.to = address(custodyA);
        _refuse(w, "", "", abi.encodeWithSelector(BrokerCustody.CustodyInvalidRecipient.selector, w.to));
    }

    function test_whatDoesNotArriveUndoesTheWithdrawal() public {
        BrokerCustody.Withdrawal memory w = _request(NATIVE, 101 ether); // more than is there
        bytes memory byUser = _sign(USER_KEY, WITHDRAWAL, w);
        bytes memory byBroker = _sign(keyA, APPROVAL, w);
        vm.expectRevert();
        custodyA.withdraw(w, byUser, byBroker);

        HostileToken token = new HostileToken();
        token.mint(address(custodyA), 5);
        token.set(HostileToken.Mode.ReturnFalse);
        w = _request(address(token), 5);
        byUser = _sign(USER_KEY, WITHDRAWAL, w);
        byBroker = _sign(keyA, APPROVAL, w);
        vm.expectRevert();
        custodyA.withdraw(w, byUser, byBroker);
        isTrue(!custodyA.withdrawalUsed(w.id), "the id was used up");
        token.set(HostileToken.Mode.Honest);
        _withdraw(w);
        eq(token.balanceOf(TO), 5, "received");
    }

    function test_reentrantPayeeGetsItOnce() public {
        Payee payee = new Payee();
        BrokerCustody.Withdrawal memory w = _request(NATIVE, 1 ether);
        w.to = address(payee);
        BrokerCustody.Withdrawal memory other = _request(NATIVE, 1 ether);
        other.to = address(payee);
        other.id = keccak256("other id");
        payee.hook(
            address(custodyA),
            abi.encodeCall(custodyA.withdraw, (other, _sign(USER_KEY, WITHDRAWAL, other), _sign(keyA, APPROVAL, other)))
        );
        _withdraw(w);
        eq(address(payee).balance, 1 ether, "received");
        isTrue(!payee.lastCallOk() && !custodyA.withdrawalUsed(other.id), "reentered");
    }
}
