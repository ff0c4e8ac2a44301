// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {Address} from "@openzeppelin/contracts/utils/Address.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

import {ExitFormat} from "./ExitFormat.sol";
import {IAdjudicator} from "./IAdjudicator.sol";
import {ICustodyFactory} from "./ICustodyFactory.sol";

/// @title Holds the funds of one broker's users
/// @notice Money leaves in two ways only. `withdraw`: the user and the broker both signed. `payout`: the Adjudicator
/// knows the outcome of a channel, and the attestors have said how much of it is backed by users' signed orders; what
/// they attested is the most that this channel can ever take. The broker's own key alone moves nothing.
/// @dev The native token is address(0). SECURITY.md lists the invariants and what does not hold yet.
contract BrokerCustody is EIP712, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    struct Withdrawal {
        address user;
        address token;
        uint256 amount;
        address to;
        bytes32 id;
        uint64 deadline; // unix seconds, compared with block.timestamp
    }

    struct Claim {
        address to;
        uint256 amount;
    }

    bytes32 private constant WITHDRAWAL_TYPE_HASH =
        keccak256("Withdrawal(address user,address token,uint256 amount,address to,bytes32 id,uint64 deadline)");
    bytes32 private constant WITHDRAWAL_APPROVAL_TYPE_HASH = keccak256(
        "WithdrawalApproval(address user,address token,uint256 amount,address to,bytes32 id,uint64 deadline)"
    );
    bytes32 private constant ATTESTATION_TYPE_HASH =
        keccak256("Attestation(bytes32 channelId,bytes32 outcomeHash,address[] tokens,uint256[] amounts)");

    address private constant NATIVE = address(0);
    uint256 public constant MAX_ATTESTORS = 32;
    uint256 public constant MAX_ROWS = 64;
    /// @notice The most gas one payee and its token may use, so that none of them can starve the other rows.
    uint256 public constant PAY_GAS = 300_000;
    /// @dev What must be left before a payment, so that PAY_GAS is really there (a call forwards at most 63/64):
    /// otherwise whoever sends the payout could turn payments into claims by sending too little gas.
    uint256 private constant PAY_GAS_RESERVE = PAY_GAS + PAY_GAS / 63 + 40_000;

    address public immutable broker;
    ICustodyFactory public immutable factory;
    IAdjudicator public immutable adjudicator;
    /// @notice How many attestors must sign for a payout.
    uint256 public immutable threshold;

    address[] private _attestors;
    mapping(address account => bool) public isAttestor;

    mapping(bytes32 id => bool) public withdrawalUsed;
    mapping(bytes32 channelId => bool) public paidOut;
    /// @notice What a channel may still take of a token: attested, less what was paid.
    mapping(bytes32 channelId => mapping(address token => uint256)) public channelReserve;
    mapping(bytes32 channelId => mapping(address token => Claim[])) private _claims;

    event Deposited(address indexed user, address indexed token, uint256 amount);
    event Withdrawn(bytes32 indexed id, address indexed user, address indexed token, uint256 amount, address to);
    event PaidOut(bytes32 indexed channelId, address indexed token, address indexed to, uint256 amount);
    /// @notice A row was not paid in full; `unpaid` is now a claim on this channel.
    event PayoutShort(bytes32 indexed channelId, address indexed token, address to, uint256 unpaid);
    event PayoutExecuted(bytes32 indexed channelId, bytes32 outcomeHash);
    event ChannelFundsReceived(bytes32 indexed channelId, address indexed token, uint256 amount, address indexed from);

    error CustodyZeroAddress();
    error CustodyZeroAmount();
    error CustodyInvalidAttestors();
    error CustodyInvalidToken(address token);
    error CustodyInvalidRecipient(address to);
    error CustodyWithdrawalExpired(uint64 deadline);
    error CustodyWithdrawalUsed(bytes32 id);
    error CustodyInvalidUserSignature();
    error CustodyInvalidBrokerSignature();
    error CustodyOutcomeMismatch(bytes32 channelId, bytes32 concluded, bytes32 given);
    error CustodyAlreadyPaidOut(bytes32 channelId);
    error CustodyUnattested(bytes32 channelId);
    error CustodyTooManyRows();
    error CustodyLengthMismatch();
    error CustodyInsufficientGas();
    error CustodyNothingPaid(bytes32 channelId, address token);
    error CustodyOnlySelf();
    error CustodyOnlyCustody(address sender);

    /// @param attestors_ strictly ascending, so distinct; never the broker itself, whose word would attest nothing
    constructor(address broker_, IAdjudicator adjudicator_, address[] memory attestors_, uint256 threshold_)
        EIP712("XLN Custody", "1")
    {
        if (broker_ == address(0) || address(adjudicator_) == address(0)) revert CustodyZeroAddress();
        if (attestors_.length > MAX_ATTESTORS || threshold_ == 0 || threshold_ > attestors_.length) {
            revert CustodyInvalidAttestors();
        }
        address previous = address(0);
        for (uint256 i = 0; i < attestors_.length; ++i) {
            if (attestors_[i] <= previous || attestors_[i] == broker_) revert CustodyInvalidAttestors();
            previous = attestors_[i];
            isAttestor[previous] = true;
        }
        _attestors = attestors_;
        threshold = threshold_;
        broker = broker_;
        adjudicator = adjudicator_;
        factory = ICustodyFactory(msg.sender);
    }

    /// @notice Who can attest, ascending. Fixed for the life of the custody.
    function attestors() external view returns (address[] memory) {
        return _attestors;
    }

    /// @notice What rows of a channel's outcome still wait for: above what was attested it is a claim on the
    /// collateral of the broker, not on the users' funds here.
    function claims(bytes32 channelId, address token) external view returns (uint256 unpaid) {
        Claim[] storage rows = _claims[channelId][token];
        for (uint256 i = 0; i < rows.length; ++i) {
            unpaid += rows[i].amount;
        }
    }

    // ------------------------------------------------------------------------------------------------ deposits

    /// @notice Deposit the native token for the sender. There is no plain receive: what is sent without a function
    /// would belong to nobody.
    function depositNative() external payable nonReentrant {
        if (msg.value == 0) revert CustodyZeroAmount();
        emit Deposited(msg.sender, NATIVE, msg.value);
    }

    /// @notice Deposit an approved ERC-20 for the sender. What arrived is credited, which is less than `amount` when
    /// the token takes a fee.
    function deposit(address token, uint256 amount) external nonReentrant {
        if (token == NATIVE) revert CustodyInvalidToken(token);
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = IERC20(token).balanceOf(address(this)) - before;
        // A token with hooks lets the sender pull another payment in here meanwhile; that one is not his deposit.
        if (received > amount) received = amount;
        if (received == 0) revert CustodyZeroAmount();
        emit Deposited(msg.sender, token, received);
    }

    // --------------------------------------------------------------------------------------------- withdrawals

    /// @notice Pay a user who asked for it (`Withdrawal`) and whose broker agreed (`WithdrawalApproval`). Anyone may
    /// send it. Two types, so that a user's signature can never pass for the broker's.
    function withdraw(Withdrawal calldata w, bytes calldata userSignature, bytes calldata brokerSignature)
        external
        nonReentrant
    {
        if (block.timestamp > w.deadline) revert CustodyWithdrawalExpired(w.deadline);
        if (withdrawalUsed[w.id]) revert CustodyWithdrawalUsed(w.id);
        if (w.amount == 0) revert CustodyZeroAmount();
        if (w.to == address(0) || w.to == address(this)) revert CustodyInvalidRecipient(w.to);
        if (_signer(_withdrawalHash(WITHDRAWAL_TYPE_HASH, w), userSignature) != w.user || w.user == address(0)) {
            revert CustodyInvalidUserSignature();
        }
        if (_signer(_withdrawalHash(WITHDRAWAL_APPROVAL_TYPE_HASH, w), brokerSignature) != broker) {
            revert CustodyInvalidBrokerSignature();
        }

        withdrawalUsed[w.id] = true;
        emit Withdrawn(w.id, w.user, w.token, w.amount, w.to);
        if (w.token == NATIVE) {
            Address.sendValue(payable(w.to), w.amount);
        } else {
            IERC20(w.token).safeTransfer(w.to, w.amount);
        }
    }

    // ------------------------------------------------------------------------------------------------- payouts

    /// @notice Pay this custody's rows of a concluded channel, once. Anyone may send it.
    /// @param outcome the bytes behind the Adjudicator's outcome hash
    /// @param tokens what the attestors let this channel take, with `amounts`
    /// @param attestations signatures over `Attestation`, ascending by signer
    function payout(
        bytes32 channelId,
        bytes calldata outcome,
        address[] calldata tokens,
        uint256[] calldata amounts,
        bytes[] calldata attestations
    ) external nonReentrant {
        bytes32 outcomeHash = keccak256(outcome);
        {
            bytes32 concluded = adjudicator.outcomeOf(channelId);
            if (concluded != outcomeHash) revert CustodyOutcomeMismatch(channelId, concluded, outcomeHash);
        }
        if (paidOut[channelId]) revert CustodyAlreadyPaidOut(channelId);
        if (tokens.length != amounts.length) revert CustodyLengthMismatch();
        if (tokens.length > MAX_ROWS) revert CustodyTooManyRows();
        _requireAttested(channelId, _attestationHash(channelId, outcomeHash, tokens, amounts), attestations);

        paidOut[channelId] = true;
        for (uint256 i = 0; i < tokens.length; ++i) {
            channelReserve[channelId][tokens[i]] += amounts[i];
        }
        _payRows(channelId, ExitFormat.decode(outcome));
        emit PayoutExecuted(channelId, outcomeHash);
    }

    /// @notice Pay what a payout left open in one token, as far as the attested reserve and the funds here go. Anyone
    /// may send it.
    function payClaim(bytes32 channelId, address token) external nonReentrant {
        Claim[] storage rows = _claims[channelId][token];
        uint256 paid = 0;
        for (uint256 i = 0; i < rows.length; ++i) {
            uint256 open = rows[i].amount;
            uint256 paidRow = _pay(channelId, token, rows[i].to, open);
            if (paidRow != 0) {
                rows[i].amount = open - paidRow;
                paid += paidRow;
            }
        }
        if (paid == 0) revert CustodyNothingPaid(channelId, token);
    }

    /// @notice Native proceeds of a channel, from the custody of the peer. They are credited to the channel, not to a
    /// user; the event is what the broker's books follow.
    /// @dev Not guarded: it changes no storage, and two custodies may pay each other within one transaction.
    function receiveChannelFunds(bytes32 channelId) external payable {
        if (!factory.isCustody(msg.sender)) revert CustodyOnlyCustody(msg.sender);
        emit ChannelFundsReceived(channelId, NATIVE, msg.value, msg.sender);
    }

    /// @notice One payment, as a call of this contract to itself: whatever the token or the payee does (revert, use up
    /// its gas, return a megabyte) stays inside and leaves the other rows alone.
    /// @return paid at most `amount`, and at most what is here
    function payFromSelf(bytes32 channelId, address token, address to, uint256 amount) external returns (uint256 paid) {
        if (msg.sender != address(this)) revert CustodyOnlySelf();
        uint256 held = token == NATIVE ? address(this).balance : IERC20(token).balanceOf(address(this));
        paid = amount < held ? amount : held;
        if (paid == 0) return 0;
        if (token != NATIVE) {
            IERC20(token).safeTransfer(to, paid);
        } else if (factory.isCustody(to)) {
            BrokerCustody(to).receiveChannelFunds{value: paid}(channelId);
        } else {
            Address.sendValue(payable(to), paid);
        }
    }

    // ------------------------------------------------------------------------------------------------- private

    function _payRows(bytes32 channelId, ExitFormat.SingleAssetExit[] memory exits) private {
        uint256 rowCount = 0;
        for (uint256 i = 0; i < exits.length; ++i) {
            rowCount += exits[i].allocations.length;
            if (rowCount > MAX_ROWS || i == MAX_ROWS) revert CustodyTooManyRows();
            (uint256 chainId, address holder) = ExitFormat.qualification(exits[i].assetMetadata);
            if (chainId != block.chainid || holder != address(this)) continue; // another custody's to pay
            for (uint256 j = 0; j < exits[i].allocations.length; ++j) {
                ExitFormat.Allocation memory allocation = exits[i].allocations[j];
                address to = ExitFormat.payee(allocation);
                uint256 unpaid = allocation.amount - _pay(channelId, exits[i].asset, to, allocation.amount);
                if (unpaid != 0) {
                    _claims[channelId][exits[i].asset].push(Claim(to, unpaid));
                    emit PayoutShort(channelId, exits[i].asset, to, unpaid);
                }
            }
        }
    }

    /// @dev Pays at most `amount` out of the channel's reserve. The reserve falls before the call; what did not leave
    /// comes back after it.
    function _pay(bytes32 channelId, address token, address to, uint256 amount) private returns (uint256 paid) {
        uint256 reserve = channelReserve[channelId][token];
        uint256 due = amount < reserve ? amount : reserve;
        if (due == 0) return 0;
        channelReserve[channelId][token] = reserve - due;
        if (gasleft() < PAY_GAS_RESERVE) revert CustodyInsufficientGas();
        try this.payFromSelf{gas: PAY_GAS}(channelId, token, to, due) returns (uint256 sent) {
            paid = sent;
        } catch {
            paid = 0;
        }
        if (paid != due) channelReserve[channelId][token] = reserve - paid;
        if (paid != 0) emit PaidOut(channelId, token, to, paid);
    }

    function _requireAttested(bytes32 channelId, bytes32 structHash, bytes[] calldata attestations) private view {
        if (attestations.length < threshold || attestations.length > _attestors.length) {
            revert CustodyUnattested(channelId);
        }
        address previous = address(0);
        for (uint256 i = 0; i < attestations.length; ++i) {
            address signer = _signer(structHash, attestations[i]);
            if (signer <= previous || !isAttestor[signer]) revert CustodyUnattested(channelId);
            previous = signer;
        }
    }

    function _attestationHash(
        bytes32 channelId,
        bytes32 outcomeHash,
        address[] calldata tokens,
        uint256[] calldata amounts
    ) private pure returns (bytes32) {
        // Packed arrays of addresses and of uint256 are padded to 32 bytes an element, which is what EIP-712 hashes.
        return keccak256(
            abi.encode(
                ATTESTATION_TYPE_HASH,
                channelId,
                outcomeHash,
                keccak256(abi.encodePacked(tokens)),
                keccak256(abi.encodePacked(amounts))
            )
        );
    }

    function _withdrawalHash(bytes32 typeHash, Withdrawal calldata w) private pure returns (bytes32) {
        return keccak256(abi.encode(typeHash, w.user, w.token, w.amount, w.to, w.id, w.deadline));
    }

    /// @dev Zero when the signature is malformed, high-s, or recovers to nothing.
    function _signer(bytes32 structHash, bytes calldata signature) private view returns (address signer) {
        (signer,,) = ECDSA.tryRecoverCalldata(_hashTypedDataV4(structHash), signature);
    }
}
