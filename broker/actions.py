"""The actions that a broker's core executes: everything that ever changes it, as values that go into its journal.

`encode` gives the JSON text that is stored, `decode` the same action back, so that a restart replays exactly what was
executed. Signatures are verified before an action is made; replay does not verify them again. DESIGN section 8.
"""

from dataclasses import dataclass
from typing import Any

from broker.exchange import Withdrawal
from channel.entry import Entry, entry_to_json
from channel.errors import Code, InvariantBroken
from channel.journal import fixed_from_json, fixed_to_json, runs_from_json, runs_to_json
from channel.locks import SignedLock, lock_from_json, lock_to_json
from channel.orders import SignedOrder, order_from_json, order_to_json
from channel.state import FixedPart
from channel.strictjson import dumps, loads
from channel.terms import Terms, terms_from_json, terms_to_json
from channel.transition import Run
from channel.typed import Domain
from channel.units import Address, ChannelId, Hash

MAX_ACTION_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DepositSeen:
    user: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True)
class DepositConfirmed:
    user: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True)
class DepositDropped:
    user: Address
    token: Address
    amount: int


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """`plan`: lots for each channel; `limit_ticks`: the worst price to take (the order's own, if it has one)."""

    order: SignedOrder
    plan: tuple[tuple[ChannelId, int], ...]
    limit_ticks: int


@dataclass(frozen=True, slots=True)
class CancelUserOrder:
    order_id: Hash
    owner: Address


@dataclass(frozen=True, slots=True)
class Expire:
    pass


@dataclass(frozen=True, slots=True)
class OpenChannel:
    fixed: FixedPart
    terms: Terms


@dataclass(frozen=True, slots=True)
class LockSigned:
    lock: SignedLock


@dataclass(frozen=True, slots=True)
class LockConfirmed:
    channel_id: ChannelId
    owner: Address
    token: Address
    amount: int
    terms_hash: Hash


@dataclass(frozen=True, slots=True)
class OpeningShown:
    """XLN has seen turn 1 with both locks: trading starts."""

    channel_id: ChannelId


@dataclass(frozen=True, slots=True)
class PeerEntry:
    entry: Entry


@dataclass(frozen=True, slots=True)
class PeerProposal:
    channel_id: ChannelId
    turn: int
    is_final: bool
    time_ms: int
    runs: tuple[Run, ...]
    state_hash: Hash
    signature: bytes


@dataclass(frozen=True, slots=True)
class PeerCountersignature:
    channel_id: ChannelId
    turn: int
    state_hash: Hash
    signature: bytes


@dataclass(frozen=True, slots=True)
class PeerRefusal:
    channel_id: ChannelId
    turn: int
    state_hash: Hash


@dataclass(frozen=True, slots=True)
class Propose:
    channel_id: ChannelId


@dataclass(frozen=True, slots=True)
class SubscribeBook:
    channel_id: ChannelId
    market_id: Hash
    on: bool


@dataclass(frozen=True, slots=True)
class CloseChannel:
    channel_id: ChannelId


@dataclass(frozen=True, slots=True)
class FreezeChannel:
    channel_id: ChannelId
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class PaidOut:
    """A custody paid the other, final on chain. `outgoing`: from this broker's custody."""

    channel_id: ChannelId
    token: Address
    amount: int
    outgoing: bool


@dataclass(frozen=True, slots=True)
class Concluded:
    """The chain shows, final, the channel's final state."""

    channel_id: ChannelId


@dataclass(frozen=True, slots=True)
class Withdraw:
    request: Withdrawal


@dataclass(frozen=True, slots=True)
class WithdrawalDone:
    withdrawal_id: Hash


@dataclass(frozen=True, slots=True)
class WithdrawalFailed:
    withdrawal_id: Hash


Action = (
    DepositSeen
    | DepositConfirmed
    | DepositDropped
    | PlaceOrder
    | CancelUserOrder
    | Expire
    | OpenChannel
    | LockSigned
    | LockConfirmed
    | OpeningShown
    | PeerEntry
    | PeerProposal
    | PeerCountersignature
    | PeerRefusal
    | Propose
    | SubscribeBook
    | CloseChannel
    | FreezeChannel
    | PaidOut
    | Concluded
    | Withdraw
    | WithdrawalDone
    | WithdrawalFailed
)

_KINDS: dict[str, type] = {kind.__name__: kind for kind in Action.__args__}


def encode(action: Action) -> str:
    """JSON text: [kind, fields…]."""
    values = [_to_json(getattr(action, name)) for name in action.__dataclass_fields__]
    return dumps([type(action).__name__, *values])


def decode(text: str, custody: Domain) -> Action:
    """`custody`: the domain that this broker's users sign in."""
    raw = loads(text, max_bytes=MAX_ACTION_BYTES, max_depth=32)
    if not isinstance(raw, list) or not raw or raw[0] not in _KINDS:
        raise InvariantBroken(Code.STORAGE, "the journal of actions has a record of an unknown kind")
    kind = _KINDS[raw[0]]
    values = [_from_json(value, custody) for value in raw[1:]]
    action: Action = kind(*values)
    return action


def _to_json(value: object) -> Any:
    match value:
        case bool():
            return value
        case str():
            return {"s": value}
        case int():
            return str(value)
        case bytes():
            return {"x": value.hex()}
        case SignedOrder():
            return {"order": order_to_json(value)}
        case SignedLock():
            return {"lock": lock_to_json(value)}
        case FixedPart():
            return {"fixed": fixed_to_json(value)}
        case Terms():
            return {"terms": terms_to_json(value)}
        case Entry():
            return {"entry": entry_to_json(value), "by": value.sender.hex(), "h": value.entry_hash.hex()}
        case Withdrawal():
            w = value
            fields = [w.withdrawal_id, w.user, w.token, w.amount, w.to, w.deadline_s, w.user_signature]
            return {"withdrawal": [_to_json(field) for field in fields]}
        case tuple() if value and isinstance(value[0], Run):
            return {"runs": runs_to_json(value)}
        case tuple():
            return [_to_json(item) for item in value]
    raise TypeError(f"no journal form for {type(value).__name__}")


def _from_json(value: Any, custody: Domain) -> Any:
    match value:
        case bool():
            return value
        case str():
            return int(value)
        case list():
            return tuple(_from_json(item, custody) for item in value)
        case {"s": text}:
            return text
        case {"x": digits}:
            return bytes.fromhex(digits)
        case {"order": order}:
            return order_from_json(order, custody)
        case {"lock": lock}:
            return lock_from_json(lock)
        case {"fixed": fixed}:
            return fixed_from_json(fixed)
        case {"terms": terms}:
            return terms_from_json(terms)
        case {"runs": runs}:
            return runs_from_json(runs)
        case {"withdrawal": fields}:
            return Withdrawal(*(_from_json(field, custody) for field in fields))
        case {"entry": entry, "by": sender, "h": digest}:
            return _entry(entry, sender, digest)
    raise InvariantBroken(Code.STORAGE, "the journal of actions has a value of an unknown form")


def _entry(raw: dict[str, Any], sender: str, digest: str) -> Entry:
    """An entry as it was verified when it arrived; its hash was stored with it."""
    return Entry(
        sender=Address(bytes.fromhex(sender)),
        to=Address(bytes.fromhex(raw["to"][2:])),
        channel_id=ChannelId(bytes.fromhex(raw["ch"][2:])),
        seq=raw["seq"],
        prev=Hash(bytes.fromhex(raw["prev"][2:])),
        ts_ms=raw["ts"],
        body=raw["body"],
        signature=bytes.fromhex(raw["sig"][2:]),
        entry_hash=Hash(bytes.fromhex(digest)),
    )
