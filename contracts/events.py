"""What our contracts say happened, as typed values.

Purpose: logs of the chain, parsed once at the edge; `decode_log` is total over our events and None for any other.

Invariants: a test holds the signatures below equal to the ABI of the artifacts. A `LogRef` names one log for ever:
the same transaction in another block, after a reorganisation, is another log.

Source: contracts/src; the execution-apis log object.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_abi.exceptions import DecodingError

from channel.errors import Code, LocalRefusal, PeerFault
from channel.units import Address, ChannelId, Hash, format_hex, parse_address, parse_hash, parse_hex, parse_quantity
from contracts.abi import decode_values, topic

TOPICS_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRef:
    """Where a log is: emitted by `contract`, in a block, at `log_index` of that block."""

    contract: Address
    block_number: int
    block_hash: Hash
    tx_hash: Hash
    log_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLog:
    """A log as the endpoint gave it, parsed."""

    ref: LogRef
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposited:
    """BrokerCustody: `user` deposited; `amount` is what arrived, in base units of `token`."""

    ref: LogRef
    user: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawn:
    """BrokerCustody: a withdrawal signed by user and broker was paid to `to`."""

    ref: LogRef
    id: bytes
    user: Address
    token: Address
    amount: int
    to: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidOut:
    """BrokerCustody: a row of a channel's outcome, or a part of it, was paid to `to`."""

    ref: LogRef
    channel_id: ChannelId
    token: Address
    to: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutShort:
    """BrokerCustody: a row was not paid in full; `unpaid` is a claim now."""

    ref: LogRef
    channel_id: ChannelId
    token: Address
    to: Address
    unpaid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutExecuted:
    """BrokerCustody: the payout of a channel ran; its rows are in PaidOut and PayoutShort."""

    ref: LogRef
    channel_id: ChannelId
    outcome_hash: Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelFundsReceived:
    """BrokerCustody: native proceeds of a channel came from the peer's custody `sender`."""

    ref: LogRef
    channel_id: ChannelId
    token: Address
    amount: int
    sender: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyCreated:
    """CustodyFactory: `broker` has a custody."""

    ref: LogRef
    broker: Address
    custody: Address


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerRegistered:
    """XlnCollateral: `broker` registered, or changed its URL."""

    ref: LogRef
    broker: Address
    custody: Address
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralDeposited:
    """XlnCollateral: collateral of `broker` grew by `amount` base units of `token`."""

    ref: LogRef
    broker: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRegistered:
    """XlnCollateral: a lock signed by XLN is in force. Times in unix seconds."""

    ref: LogRef
    lock_id: Hash
    channel_id: ChannelId
    owner: Address
    terms_hash: Hash
    token: Address
    amount: int
    expiry_unix_s: int
    open_by_unix_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LockReleased:
    """XlnCollateral: a lock is over; its collateral is free again."""

    ref: LogRef
    lock_id: Hash
    channel_id: ChannelId
    owner: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralWithdrawalRequested:
    """XlnCollateral: free collateral was set aside; it backs no new lock. `available_at_unix_s` in seconds."""

    ref: LogRef
    broker: Address
    token: Address
    amount: int
    available_at_unix_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralWithdrawalCancelled:
    """XlnCollateral: what was set aside is free collateral again."""

    ref: LogRef
    broker: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CollateralWithdrawn:
    """XlnCollateral: collateral left to its broker."""

    ref: LogRef
    broker: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Concluded:
    """Adjudicator: both brokers signed a final state with this outcome."""

    ref: LogRef
    channel_id: ChannelId
    turn: int
    outcome_hash: Hash


ChainEvent = (
    Deposited
    | Withdrawn
    | PaidOut
    | PayoutShort
    | PayoutExecuted
    | ChannelFundsReceived
    | CustodyCreated
    | BrokerRegistered
    | CollateralDeposited
    | LockRegistered
    | LockReleased
    | CollateralWithdrawalRequested
    | CollateralWithdrawalCancelled
    | CollateralWithdrawn
    | Concluded
)

# Declarations as in the sources; the parameters in order are the fields of the class after `ref`.
DECLARATIONS: tuple[tuple[str, str, type[ChainEvent]], ...] = (
    ("BrokerCustody", "Deposited(address indexed user, address indexed token, uint256 amount)", Deposited),
    (
        "BrokerCustody",
        "Withdrawn(bytes32 indexed id, address indexed user, address indexed token, uint256 amount, address to)",
        Withdrawn,
    ),
    (
        "BrokerCustody",
        "PaidOut(bytes32 indexed channelId, address indexed token, address indexed to, uint256 amount)",
        PaidOut,
    ),
    (
        "BrokerCustody",
        "PayoutShort(bytes32 indexed channelId, address indexed token, address to, uint256 unpaid)",
        PayoutShort,
    ),
    ("BrokerCustody", "PayoutExecuted(bytes32 indexed channelId, bytes32 outcomeHash)", PayoutExecuted),
    (
        "BrokerCustody",
        "ChannelFundsReceived(bytes32 indexed channelId, address indexed token, uint256 amount, address indexed from)",
        ChannelFundsReceived,
    ),
    ("CustodyFactory", "CustodyCreated(address indexed broker, address custody)", CustodyCreated),
    ("XlnCollateral", "BrokerRegistered(address indexed broker, address custody, string url)", BrokerRegistered),
    (
        "XlnCollateral",
        "CollateralDeposited(address indexed broker, address indexed token, uint256 amount)",
        CollateralDeposited,
    ),
    (
        "XlnCollateral",
        "LockRegistered(bytes32 indexed lockId, bytes32 indexed channelId, address indexed owner, bytes32 termsHash,"
        " address token, uint256 amount, uint64 expiry, uint64 openBy)",
        LockRegistered,
    ),
    (
        "XlnCollateral",
        "LockReleased(bytes32 indexed lockId, bytes32 indexed channelId, address indexed owner, address token,"
        " uint256 amount)",
        LockReleased,
    ),
    (
        "XlnCollateral",
        "WithdrawalRequested(address indexed broker, address indexed token, uint256 amount, uint64 availableAt)",
        CollateralWithdrawalRequested,
    ),
    (
        "XlnCollateral",
        "WithdrawalCancelled(address indexed broker, address indexed token, uint256 amount)",
        CollateralWithdrawalCancelled,
    ),
    (
        "XlnCollateral",
        "CollateralWithdrawn(address indexed broker, address indexed token, uint256 amount)",
        CollateralWithdrawn,
    ),
    ("Adjudicator", "Concluded(bytes32 indexed channelId, uint48 turnNum, bytes32 outcomeHash)", Concluded),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Event:
    make: type[Any]
    parameters: tuple[tuple[str, str, bool], ...]  # field of the class, ABI type, indexed


def _parse(declaration: str, make: type[Any]) -> tuple[bytes, _Event]:
    name, _, rest = declaration.rstrip(")").partition("(")
    words = [parameter.split() for parameter in re.split(r",\s*", rest)]
    fields = [f for f in make.__dataclass_fields__ if f != "ref"]
    assert len(fields) == len(words), declaration
    parameters = tuple((f, w[0], w[1] == "indexed") for f, w in zip(fields, words, strict=True))
    return topic(f"{name}({','.join(w[0] for w in words)})"), _Event(make=make, parameters=parameters)


_BY_TOPIC: dict[bytes, _Event] = dict(_parse(declaration, make) for _, declaration, make in DECLARATIONS)


def parse_log(item: object) -> RawLog:
    """A log object of JSON-RPC. Raises LocalRefusal CHAIN when the endpoint sends something else."""
    try:
        if not isinstance(item, Mapping):
            raise TypeError("not an object")
        topics = item["topics"]
        if not isinstance(topics, list) or len(topics) > TOPICS_MAX:
            raise TypeError("topics is not an array of at most four")
        return RawLog(
            ref=LogRef(
                contract=parse_address(item["address"]),
                block_number=parse_quantity(item["blockNumber"]),
                block_hash=parse_hash(item["blockHash"]),
                tx_hash=parse_hash(item["transactionHash"]),
                log_index=parse_quantity(item["logIndex"]),
            ),
            topics=tuple(parse_hash(t) for t in topics),
            data=parse_hex(item["data"]),
        )
    except (KeyError, TypeError, PeerFault) as error:
        raise LocalRefusal(Code.CHAIN, f"the chain endpoint sent a malformed log: {error}") from error


def decode_log(log: RawLog) -> ChainEvent | None:
    """The event, or None when it is none of ours. Raises LocalRefusal CHAIN when it has our topic but not our data."""
    event = _BY_TOPIC.get(log.topics[0]) if log.topics else None
    if event is None:
        return None
    indexed = iter(log.topics[1:])
    try:
        plain = iter(decode_values([kind for _, kind, is_indexed in event.parameters if not is_indexed], log.data))
        values: dict[str, Any] = {}
        for name, kind, is_indexed in event.parameters:
            values[name] = decode_values([kind], next(indexed))[0] if is_indexed else next(plain)
    except (DecodingError, StopIteration) as error:
        where = f"{format_hex(log.ref.tx_hash)}, log {log.ref.log_index}"
        raise LocalRefusal(Code.CHAIN, f"log of {event.make.__name__} does not decode: {where}") from error
    made: ChainEvent = event.make(ref=log.ref, **values)
    return made
