"""Replay: from a journal's records to every state, and to where the two brokers stand.

A pure function of the records: it verifies every signature and both hash chains, re-derives each co-signed state from
the entries that it lists and compares it to what both signed, and collects every fill with the order that its owner
signed. A co-signed state that is not covered stands, and is noted. Nothing is taken from the records that signatures do
not carry. DESIGN sections 4 and 6.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from channel.appdata import CollateralLock, next_journal_head
from channel.calls import Call, CreateOrder, Notice, parse_calls
from channel.entry import Entry
from channel.errors import Code, PeerFault
from channel.exposure import uncovered
from channel.journal import OrderRecord, Record, StateRecord
from channel.locks import SignedLock, verify_lock
from channel.orders import SignedOrder, verify_order
from channel.position import Position, apply_entry
from channel.signing import require_signer
from channel.state import FixedPart
from channel.terms import Market, Terms
from channel.transition import Proposal, Run, derive_state, lock_row, open_channel
from channel.typed import collateral_domain
from channel.units import ZERO_HASH, Address, Hash, format_hex


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedFill:
    """One fill at `venue` (participant index): the owner's order and the venue's own order on the other side."""

    venue: int
    market: Market
    owner_side: int
    price_ticks: int
    lots: int
    owner_order: Hash
    counter_order: Hash


@dataclass(slots=True, kw_only=True)
class Replay:
    """The running result. `last` is the highest co-signed state; `orders` has every signed order by its id, and
    `brokers` the participant index of the broker whose custody it was signed for."""

    fixed: FixedPart
    terms: Terms
    xln: Address
    position: Position = field(default_factory=Position)
    last: Proposal | None = None
    last_record: StateRecord | None = None
    states: int = 0
    entries: int = 0
    fills: list[ReplayedFill] = field(default_factory=list)
    orders: dict[Hash, SignedOrder] = field(default_factory=dict)
    brokers: dict[Hash, int] = field(default_factory=dict)
    locks: tuple[CollateralLock | None, CollateralLock | None] = (None, None)
    uncovered_turns: list[int] = field(default_factory=list)
    _waiting: dict[tuple[int, int], tuple[Entry, tuple[Call, ...]]] = field(default_factory=dict)

    def feed(self, record: Record) -> None:
        """Takes the next record. Raises PeerFault ATTEST_JOURNAL, or the code of the signature that is wrong."""
        match record:
            case Entry():
                self._entry(record)
            case StateRecord():
                self._state(record)
            case SignedLock():
                self._lock(record)
            case OrderRecord():
                verify_order(record.order)
                self._order(record.order, record.broker)

    def _order(self, signed: SignedOrder, broker: int) -> None:
        self.orders[signed.order_id] = signed
        self.brokers[signed.order_id] = broker

    @property
    def unlisted_entries(self) -> int:
        """Entries that no co-signed state lists."""
        return len(self._waiting)

    def _entry(self, entry: Entry) -> None:
        if entry.channel_id != self.fixed.channel_id:
            raise PeerFault(Code.ATTEST_JOURNAL, "an entry of another channel")
        key = (self.fixed.index_of(entry.sender), entry.seq)
        if key in self._waiting or entry.seq <= self.position.last_seq[key[0]]:
            raise PeerFault(Code.ATTEST_JOURNAL, f"entry {entry.seq} of participant {key[0]} is there twice")
        self._waiting[key] = (entry, parse_calls(entry, self.fixed, self.terms))
        self.entries += 1

    def _lock(self, signed: SignedLock) -> None:
        lock = signed.lock
        if lock.channel_id != self.fixed.channel_id or lock.terms_hash != self.terms.terms_hash:
            raise PeerFault(Code.LOCK_CHANNEL, "a lock of another channel or other terms")
        verify_lock(signed, collateral_domain(self.fixed.chain_id, self.terms.collateral), self.xln)
        index = self.fixed.index_of(lock.owner)
        row = lock_row(open_channel(self.fixed, self.terms, lock.owner), index, lock.token, lock.amount)
        self.locks = (row, self.locks[1]) if index == 0 else (self.locks[0], row)

    def _state(self, record: StateRecord) -> None:
        if self.last is not None:
            if self.last.state.is_final:
                raise PeerFault(Code.ATTEST_JOURNAL, "a state after the final one")
            if record.turn <= self.last.state.turn or record.time_ms < self.last.time_ms:
                raise PeerFault(Code.ATTEST_JOURNAL, f"turn {record.turn} does not follow turn {self.last.state.turn}")
            if not record.runs and record.turn > 1 and not record.is_final and self.states >= 2:
                raise PeerFault(Code.ATTEST_JOURNAL, f"turn {record.turn} lists no entries")
        position, hashes = self.position, []
        for run in record.runs:
            for entry, calls in self._take(run):
                position = self._apply(position, entry, calls)
                hashes.append(entry.entry_hash)
        proposal = derive_state(
            fixed=self.fixed,
            terms=self.terms,
            position=position,
            locks=self.locks if self.last is not None else (self.locks[0], None),
            turn=record.turn,
            is_final=record.is_final,
            time_ms=record.time_ms,
            runs=record.runs,
            journal_head=next_journal_head(self.last.journal_head if self.last else ZERO_HASH, record.turn, hashes),
        )
        state = proposal.state
        if state.is_final and (position.orders or position.net != self.position.net):
            raise PeerFault(Code.ATTEST_JOURNAL, "a final state has no open orders and the outcome of the turn before")
        if state.state_hash != record.state_hash:
            raise PeerFault(
                Code.ATTEST_JOURNAL, f"turn {record.turn}: the entries lead to another state than was signed"
            )
        for participant, signature in zip(self.fixed.participants, record.signatures, strict=True):
            require_signer(state.digest, signature, participant, f"turn {record.turn}")
        if uncovered(self.position, position, self.locks, self.terms) is not None:
            self.uncovered_turns.append(record.turn)
        self.position, self.last, self.last_record = position, proposal, record
        self.states += 1

    def _take(self, run: Run) -> list[tuple[Entry, tuple[Call, ...]]]:
        if run.last - run.first >= len(self._waiting):
            raise PeerFault(Code.ATTEST_JOURNAL, f"entries {run.first} to {run.last} are not all in the journal")
        try:
            return [self._waiting.pop((run.sender, seq)) for seq in range(run.first, run.last + 1)]
        except KeyError:
            raise PeerFault(Code.ATTEST_JOURNAL, f"entries {run.first} to {run.last} are not all there") from None

    def _apply(self, position: Position, entry: Entry, calls: tuple[Call, ...]) -> Position:
        sender = self.fixed.index_of(entry.sender)
        for call in calls:
            match call:
                case CreateOrder():
                    self._order(call.authority, sender)
                case Notice() if call.fills:
                    order = position.orders.get((1 - sender, call.ref))
                    if order is None:
                        # An order of this very batch cannot be meant: its owner is the other side.
                        raise PeerFault(Code.ENTRY_INVALID, f"a notice on order {call.ref}, which is not open")
                    self.fills += [
                        ReplayedFill(
                            venue=sender,
                            market=order.market,
                            owner_side=order.side,
                            price_ticks=fill.price_ticks,
                            lots=fill.lots,
                            owner_order=order.order_id,
                            counter_order=fill.counter_order,
                        )
                        for fill in call.fills
                    ]
                case _:
                    pass
        return apply_entry(position, entry, calls, self.fixed, self.terms)


def replay(fixed: FixedPart, terms: Terms, xln: Address, records: Iterable[Record]) -> Replay:
    """Feeds all records. Raises PeerFault at the first that does not hold."""
    result = Replay(fixed=fixed, terms=terms, xln=xln)
    for record in records:
        result.feed(record)
    return result


def require_authorised(result: Replay) -> None:
    """A user-signed order behind both sides of every fill, each of a user of its own broker.

    Checked are side, market, price and amount. Both brokers' orders must be among the records (creates carry the
    owner's; the venue's come as order records). Where the venue matched two orders of the peer's users with each other,
    each fill must have its mirror; nothing is owed for such a pair. Raises PeerFault ATTEST_ORDER.
    """
    filled: dict[Hash, int] = {}
    mirrors = Counter(
        (f.owner_order, f.counter_order, f.owner_side, f.market.market_id, f.price_ticks, f.lots)
        for f in result.fills
        if result.brokers.get(f.counter_order) == 1 - f.venue
    )
    for fill in result.fills:
        parties = [(fill.owner_order, fill.owner_side, 1 - fill.venue)]
        traded = (fill.market.market_id, fill.price_ticks, fill.lots)
        pair = (fill.owner_order, fill.counter_order, fill.owner_side, *traded)
        mirror = (fill.counter_order, fill.owner_order, 1 - fill.owner_side, *traded)  # of the other side, or both pay
        if pair not in mirrors or mirrors[pair] != mirrors[mirror]:
            # Else a venue could pass off the peer's users' orders as those of its own users, whose funds it pays.
            parties.append((fill.counter_order, 1 - fill.owner_side, fill.venue))
        for order_id, side, broker in parties:
            _require_order(result, fill, order_id, side, broker)
            filled[order_id] = filled.get(order_id, 0) + fill.lots
            if filled[order_id] > result.orders[order_id].order.amount_lots:
                raise PeerFault(Code.ATTEST_ORDER, f"order {format_hex(order_id)} is filled beyond its amount")


def _require_order(result: Replay, fill: ReplayedFill, order_id: Hash, side: int, broker: int) -> None:
    """One side of a fill: the order is signed, of that broker's user, and allows it."""
    name = f"order {format_hex(order_id)}"
    signed = result.orders.get(order_id)
    if signed is None:
        raise PeerFault(Code.ATTEST_ORDER, f"{name}, which a fill names, is not signed by anybody")
    if result.brokers[order_id] != broker:
        raise PeerFault(Code.ATTEST_ORDER, f"{name} is of a user of the other broker")
    order = signed.order
    home = result.terms.market(order.market_id)
    if home is None or not home.same_shape(fill.market):
        raise PeerFault(Code.ATTEST_ORDER, f"{name} is for another market")
    if order.side != side or not order.allows(fill.price_ticks):
        raise PeerFault(Code.ATTEST_ORDER, f"{name} does not allow a fill at {fill.price_ticks} ticks")
