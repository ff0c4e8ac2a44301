// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {ICustodyFactory} from "./ICustodyFactory.sol";

/// @title Registry of brokers, their collateral, and the locks on it
/// @notice XLN signs locks and releases; the money is the brokers' and XLN's key alone cannot take it. A lock counts
/// only when it is registered here, which is what keeps one token from standing behind two channels.
/// @dev Per broker and token, always: locked + pending withdrawal <= deposited. The native token is address(0).
contract XlnCollateral is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    enum LockStatus {
        None,
        Locked,
        Released
    }

    struct Broker {
        address custody;
        string url;
    }

    /// @dev What XLN signs, as `Lock`.
    struct Lock {
        bytes32 channelId;
        bytes32 termsHash;
        address owner;
        address token;
        uint256 amount;
        uint64 expiry; // unix seconds
        uint64 openBy; // unix seconds
    }

    struct LockRecord {
        LockStatus status;
        bytes32 termsHash;
        address token;
        uint256 amount;
        uint64 expiry;
        uint64 openBy;
    }

    struct PendingWithdrawal {
        uint256 amount;
        uint64 availableAt; // unix seconds
    }

    bytes32 private constant LOCK_TYPE_HASH = keccak256(
        "Lock(bytes32 channelId,bytes32 termsHash,address owner,address token,uint256 amount,uint64 expiry,uint64 openBy)"
    );
    bytes32 private constant RELEASE_TYPE_HASH = keccak256("Release(bytes32 channelId,address owner)");

    address private constant NATIVE = address(0);
    uint256 public constant MAX_URL_BYTES = 256;
    /// @notice Longer would only be a mistake at deployment.
    uint64 public constant MAX_WITHDRAWAL_DELAY = 365 days;

    /// @notice The service whose signature makes and releases locks.
    address public immutable xln;
    ICustodyFactory public immutable factory;
    /// @notice Seconds between asking for free collateral and getting it: time in which it can still be seen leaving.
    uint64 public immutable withdrawalDelay;

    mapping(address broker => Broker) public brokers;
    mapping(address broker => mapping(address token => uint256)) public deposited;
    mapping(address broker => mapping(address token => uint256)) public locked;
    mapping(address broker => mapping(address token => PendingWithdrawal)) public pendingWithdrawal;
    // Written through a storage reference in `registerLock`, which the detector does not follow.
    // slither-disable-next-line uninitialized-state
    mapping(bytes32 channelId => mapping(address owner => LockRecord)) public lockOf;

    event BrokerRegistered(address indexed broker, address custody, string url);
    event CollateralDeposited(address indexed broker, address indexed token, uint256 amount);
    event LockRegistered(
        bytes32 indexed lockId,
        bytes32 indexed channelId,
        address indexed owner,
        bytes32 termsHash,
        address token,
        uint256 amount,
        uint64 expiry,
        uint64 openBy
    );
    event LockReleased(
        bytes32 indexed lockId, bytes32 indexed channelId, address indexed owner, address token, uint256 amount
    );
    event WithdrawalRequested(address indexed broker, address indexed token, uint256 amount, uint64 availableAt);
    event WithdrawalCancelled(address indexed broker, address indexed token, uint256 amount);
    event CollateralWithdrawn(address indexed broker, address indexed token, uint256 amount);

    error CollateralZeroAddress();
    error CollateralZeroAmount();
    error CollateralInvalidDelay(uint64 withdrawalDelay);
    error CollateralInvalidToken(address token);
    error CollateralNotTheCustody(address broker, address custody);
    error CollateralInvalidUrl(uint256 length);
    error CollateralNotRegistered(address broker);
    error CollateralInvalidSignature();
    error CollateralLockExists(bytes32 channelId, address owner);
    error CollateralLockTimes(uint64 openBy, uint64 expiry);
    error CollateralInsufficient(address broker, address token, uint256 free, uint256 wanted);
    error CollateralNotLocked(bytes32 channelId, address owner);
    error CollateralLockNotExpired(uint64 expiry);
    error CollateralWithdrawalPending(uint256 amount);
    error CollateralNoWithdrawal();
    error CollateralWithdrawalTooEarly(uint64 availableAt);

    constructor(address xln_, ICustodyFactory factory_, uint64 withdrawalDelay_) EIP712("XLN Collateral", "1") {
        if (xln_ == address(0) || address(factory_) == address(0)) revert CollateralZeroAddress();
        if (withdrawalDelay_ > MAX_WITHDRAWAL_DELAY) revert CollateralInvalidDelay(withdrawalDelay_);
        xln = xln_;
        factory = factory_;
        withdrawalDelay = withdrawalDelay_;
    }

    // ------------------------------------------------------------------------------------------------ registry

    /// @notice Register the caller with its custody and public URL; again to change the URL.
    function register(address custody, string calldata url) external {
        if (custody == address(0) || custody != factory.custodyOf(msg.sender)) {
            revert CollateralNotTheCustody(msg.sender, custody);
        }
        uint256 length = bytes(url).length;
        if (length == 0 || length > MAX_URL_BYTES) revert CollateralInvalidUrl(length);
        brokers[msg.sender] = Broker(custody, url);
        emit BrokerRegistered(msg.sender, custody, url);
    }

    // ------------------------------------------------------------------------------------------------ deposits

    /// @notice Add native collateral of the caller.
    function depositNative() external payable nonReentrant {
        _credit(NATIVE, msg.value);
    }

    /// @notice Add approved ERC-20 collateral of the caller. What arrived is credited.
    function deposit(address token, uint256 amount) external nonReentrant {
        if (token == NATIVE) revert CollateralInvalidToken(token);
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = IERC20(token).balanceOf(address(this)) - before;
        _credit(token, received < amount ? received : amount);
    }

    /// @notice What a broker can still lock or take out, in a token.
    function free(address broker, address token) public view returns (uint256) {
        return deposited[broker][token] - locked[broker][token] - pendingWithdrawal[broker][token].amount;
    }

    // --------------------------------------------------------------------------------------------------- locks

    /// @notice Register a lock that XLN has signed. Anyone may send it, so that the peer need not wait for the owner.
    /// Once ever per channel and owner, released or not: a released lock must not come back.
    function registerLock(Lock calldata lock, bytes calldata signature) external {
        LockRecord storage record = lockOf[lock.channelId][lock.owner];
        if (record.status != LockStatus.None) revert CollateralLockExists(lock.channelId, lock.owner);
        if (brokers[lock.owner].custody == address(0)) revert CollateralNotRegistered(lock.owner);
        if (lock.amount == 0) revert CollateralZeroAmount();
        if (block.timestamp > lock.openBy || lock.openBy >= lock.expiry) {
            revert CollateralLockTimes(lock.openBy, lock.expiry);
        }
        _requireXln(
            keccak256(
                abi.encode(
                    LOCK_TYPE_HASH,
                    lock.channelId,
                    lock.termsHash,
                    lock.owner,
                    lock.token,
                    lock.amount,
                    lock.expiry,
                    lock.openBy
                )
            ),
            signature
        );
        uint256 available = free(lock.owner, lock.token);
        if (lock.amount > available) revert CollateralInsufficient(lock.owner, lock.token, available, lock.amount);

        locked[lock.owner][lock.token] += lock.amount;
        record.status = LockStatus.Locked;
        record.termsHash = lock.termsHash;
        record.token = lock.token;
        record.amount = lock.amount;
        record.expiry = lock.expiry;
        record.openBy = lock.openBy;
        emit LockRegistered(
            lockId(lock.channelId, lock.owner),
            lock.channelId,
            lock.owner,
            lock.termsHash,
            lock.token,
            lock.amount,
            lock.expiry,
            lock.openBy
        );
    }

    /// @notice Release a lock with XLN's signature over `Release`. Anyone may send it.
    function release(bytes32 channelId, address owner, bytes calldata signature) external {
        _requireXln(keccak256(abi.encode(RELEASE_TYPE_HASH, channelId, owner)), signature);
        _release(channelId, owner);
    }

    /// @notice Release a lock that has expired, without XLN: its silence must not hold collateral for ever.
    function releaseExpired(bytes32 channelId, address owner) external {
        uint64 expiry = lockOf[channelId][owner].expiry;
        if (block.timestamp <= expiry) revert CollateralLockNotExpired(expiry);
        _release(channelId, owner);
    }

    function lockId(bytes32 channelId, address owner) public pure returns (bytes32) {
        return keccak256(abi.encode(channelId, owner));
    }

    // --------------------------------------------------------------------------------------------- withdrawals

    /// @notice Set free collateral of the caller aside; it can be taken out after the delay, and backs no new lock.
    function requestWithdrawal(address token, uint256 amount) external {
        if (amount == 0) revert CollateralZeroAmount();
        PendingWithdrawal storage pending = pendingWithdrawal[msg.sender][token];
        if (pending.amount != 0) revert CollateralWithdrawalPending(pending.amount);
        uint256 available = free(msg.sender, token);
        if (amount > available) revert CollateralInsufficient(msg.sender, token, available, amount);
        uint64 availableAt = uint64(block.timestamp) + withdrawalDelay;
        pending.amount = amount;
        pending.availableAt = availableAt;
        emit WithdrawalRequested(msg.sender, token, amount, availableAt);
    }

    function cancelWithdrawal(address token) external {
        uint256 amount = pendingWithdrawal[msg.sender][token].amount;
        if (amount == 0) revert CollateralNoWithdrawal();
        delete pendingWithdrawal[msg.sender][token];
        emit WithdrawalCancelled(msg.sender, token, amount);
    }

    /// @notice Take out what was requested, once the delay is over. Paid to the broker.
    function withdraw(address token) external nonReentrant {
        PendingWithdrawal memory pending = pendingWithdrawal[msg.sender][token];
        if (pending.amount == 0) revert CollateralNoWithdrawal();
        if (block.timestamp < pending.availableAt) revert CollateralWithdrawalTooEarly(pending.availableAt);
        delete pendingWithdrawal[msg.sender][token];
        deposited[msg.sender][token] -= pending.amount;
        emit CollateralWithdrawn(msg.sender, token, pending.amount);
        if (token == NATIVE) {
            Address.sendValue(payable(msg.sender), pending.amount);
        } else {
            IERC20(token).safeTransfer(msg.sender, pending.amount);
        }
    }

    // ------------------------------------------------------------------------------------------------- private

    function _credit(address token, uint256 amount) private {
        if (brokers[msg.sender].custody == address(0)) revert CollateralNotRegistered(msg.sender);
        if (amount == 0) revert CollateralZeroAmount();
        deposited[msg.sender][token] += amount;
        emit CollateralDeposited(msg.sender, token, amount);
    }

    function _release(bytes32 channelId, address owner) private {
        LockRecord storage record = lockOf[channelId][owner];
        if (record.status != LockStatus.Locked) revert CollateralNotLocked(channelId, owner);
        record.status = LockStatus.Released;
        locked[owner][record.token] -= record.amount;
        emit LockReleased(lockId(channelId, owner), channelId, owner, record.token, record.amount);
    }

    function _requireXln(bytes32 structHash, bytes calldata signature) private view {
        (address signer,,) = ECDSA.tryRecoverCalldata(_hashTypedDataV4(structHash), signature);
        if (signer != xln) revert CollateralInvalidSignature();
    }
}
