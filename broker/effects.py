"""What the broker's core asks its shell to do, in order, once the action that caused it is durable."""

from dataclasses import dataclass

from channel.calls import CallId
from channel.entry import Entry
from channel.errors import Code
from channel.journal import Record
from channel.transition import Proposal
from channel.units import Address, ChannelId, Hash, MarketId


@dataclass(frozen=True, slots=True)
class SendEntry:
    channel_id: ChannelId
    entry: Entry


@dataclass(frozen=True, slots=True)
class SendProposal:
    channel_id: ChannelId
    proposal: Proposal
    signature: bytes


@dataclass(frozen=True, slots=True)
class SendCountersignature:
    channel_id: ChannelId
    turn: int
    state_hash: Hash
    signature: bytes


@dataclass(frozen=True, slots=True)
class SendRefusal:
    channel_id: ChannelId
    turn: int
    state_hash: Hash
    code: Code
    message: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call of a peer's entry: `result`, or an error."""

    channel_id: ChannelId
    seq: int
    call_id: CallId
    result: object
    error: tuple[Code, str] | None = None


@dataclass(frozen=True, slots=True)
class Journalled:
    """The next record of a channel's journal."""

    channel_id: ChannelId
    record: Record


@dataclass(frozen=True, slots=True)
class Signed:
    """This node has signed a state: the row that keeps it from ever signing another one for that turn."""

    channel_id: ChannelId
    turn: int
    state_hash: Hash
    is_final: bool


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A turn is co-signed; `signatures` in participant order."""

    channel_id: ChannelId
    proposal: Proposal
    signatures: tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Opened:
    """A channel was agreed on with `peer`."""

    channel_id: ChannelId
    peer: Address


@dataclass(frozen=True, slots=True)
class OrderChanged:
    """Something happened to a user's order: look at it again."""

    order_id: Hash


@dataclass(frozen=True, slots=True)
class Traded:
    """One trade in this broker's books, or of one of its users in a peer's (`remote`)."""

    market_id: MarketId
    price_ticks: int
    lots: int
    taker_side: int
    remote: bool


@dataclass(frozen=True, slots=True)
class BookChanged:
    """Levels of one of this broker's books that changed: (side, price in ticks, lots now)."""

    market_id: MarketId
    seq: int
    changes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class SubmitWithdrawal:
    """Send a withdrawal to the chain: the user's signature and this broker's approval are both there."""

    withdrawal_id: Hash


Effect = (
    SendEntry
    | SendProposal
    | SendCountersignature
    | SendRefusal
    | Answer
    | Journalled
    | Signed
    | Cosigned
    | Opened
    | OrderChanged
    | Traded
    | BookChanged
    | SubmitWithdrawal
)
