"""Where two brokers stand with each other: the fold of the channel's entries.

    net[token]      base units that B owes A (negative: A owes B); one number, so at most one side is owed a token
    orders          open orders by (owner index, reference)
    worst[(i, token)]  what the open orders of both, on either book, could still make participant i owe
    open_quote[token]  what all open orders are worth at their limits, in the quote token

Netting is addition, and an order's create and notices come from both sides in causal order, so every interleaving that
both can have produced folds to the same position. A notice that does not apply (unknown order, more lots than are left,
a price beyond the limit) is not skipped: it raises, since no honest venue sends it. DESIGN section 4.
"""

from dataclasses import dataclass, field, replace
from typing import assert_never

from immutables import Map

from channel.appdata import BalanceUpdate, OpenOrdersSummary
from channel.calls import Call, CancelOrder, CreateOrder, Fill, Notice, Status, Subscribe, Void
from channel.entry import Entry
from channel.errors import Code, PeerFault
from channel.state import FixedPart
from channel.terms import PRICE_SCALE, Market, Terms
from channel.units import ZERO_HASH, Address, Hash, MarketId, ceil_div

MAX_OPEN_ORDERS = 4096  # of each owner: a bound on both together would depend on how their entries interleave
OrderKey = tuple[int, int]  # (index of the owner, reference)


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """One open order of participant `owner` on the other's book. `order_id`: the id that its user signed."""

    owner: int
    ref: int
    market: Market
    side: int
    price_ticks: int
    left_lots: int
    order_id: Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """See the module docstring. `last_seq` and `last_hash` per participant; `matched_value` counts what fills were
    worth so far, in base units of the value token."""

    net: Map[Address, int] = field(default_factory=Map)
    orders: Map[OrderKey, OpenOrder] = field(default_factory=Map)
    worst: Map[tuple[int, Address], int] = field(default_factory=Map)
    open_quote: Map[Address, int] = field(default_factory=Map)
    open_counts: tuple[int, int] = (0, 0)
    last_seq: tuple[int, int] = (0, 0)
    last_hash: tuple[Hash, Hash] = (ZERO_HASH, ZERO_HASH)
    matched_value: int = 0

    def owed(self, debtor: int, token: Address) -> int:
        """Base units of `token` that participant `debtor` owes the other."""
        net = self.net.get(token, 0)
        return max(0, net if debtor == 1 else -net)


def apply_entry(position: Position, entry: Entry, calls: tuple[Call, ...], fixed: FixedPart, terms: Terms) -> Position:
    """Folds one entry. Raises PeerFault ENTRY_GAP, ENTRY_PREV or ENTRY_INVALID; the position is unchanged then."""
    sender = fixed.index_of(entry.sender)
    if entry.channel_id != fixed.channel_id:
        raise PeerFault(Code.ENTRY_INVALID, "the entry is of another channel")
    if entry.seq != position.last_seq[sender] + 1:
        raise PeerFault(
            Code.ENTRY_GAP, f"entry {entry.seq} where {position.last_seq[sender] + 1} is next", next=position.last_seq
        )
    if entry.prev != position.last_hash[sender]:
        raise PeerFault(Code.ENTRY_PREV, f"entry {entry.seq} does not continue the hash of the one before")
    for call in calls:
        match call:
            case CreateOrder():
                position = _open(position, sender, call)
            case Notice():
                position = _apply_notice(position, sender, call, terms)
            case CancelOrder() | Subscribe() | Void():
                pass
            case _:
                assert_never(call)
    return replace(
        position,
        last_seq=_with(position.last_seq, sender, entry.seq),
        last_hash=_with(position.last_hash, sender, entry.entry_hash),
    )


def _with(pair: tuple, index: int, value: object) -> tuple:  # type: ignore[type-arg]
    return (value, pair[1]) if index == 0 else (pair[0], value)


def _open(position: Position, owner: int, call: CreateOrder) -> Position:
    count = position.open_counts[owner]
    if count >= MAX_OPEN_ORDERS:
        raise PeerFault(Code.ENTRY_INVALID, f"a broker has at most {MAX_OPEN_ORDERS} open orders in a channel")
    order = OpenOrder(owner, call.ref, call.market, call.side, call.price_ticks, call.lots, call.authority.order_id)
    return replace(
        position,
        orders=position.orders.set((owner, call.ref), order),
        worst=shift_worst(position.worst, order, call.lots),
        open_quote=_add(position.open_quote, call.market.quote, call.market.quote_amount(call.price_ticks, call.lots)),
        open_counts=_with(position.open_counts, owner, count + 1),
    )


def shift_worst(worst: Map[tuple[int, Address], int], order: OpenOrder, lots: int) -> Map[tuple[int, Address], int]:
    """Adds what `lots` more (or less) of an open order could make each side owe, at the order's limit."""
    market, venue = order.market, 1 - order.owner
    pays_quote, pays_base = (order.owner, venue) if order.side == 0 else (venue, order.owner)
    quote_key, base_key = (pays_quote, market.quote), (pays_base, market.base)
    worst = worst.set(quote_key, worst.get(quote_key, 0) + market.quote_amount(order.price_ticks, lots))
    return worst.set(base_key, worst.get(base_key, 0) + market.base_amount(lots))


def _apply_notice(position: Position, venue: int, notice: Notice, terms: Terms) -> Position:
    key = (1 - venue, notice.ref)
    order = position.orders.get(key)
    if order is None:
        raise PeerFault(Code.ENTRY_INVALID, f"a notice on order {notice.ref}, which is not open")
    filled = sum(fill.lots for fill in notice.fills)
    if filled > order.left_lots or notice.left_lots != order.left_lots - filled:
        raise PeerFault(Code.ENTRY_INVALID, f"a notice on order {notice.ref} miscounts what is left")
    match notice.status:
        case Status.ACCEPTED if filled:
            raise PeerFault(Code.ENTRY_INVALID, "an order that is accepted only has no fills in that notice")
        case Status.FILLED if not filled:
            raise PeerFault(Code.ENTRY_INVALID, "a notice of a fill has fills")
        case _:
            pass
    net, value = position.net, position.matched_value
    for fill in notice.fills:
        net = _settle(net, order, fill)
        value += fill_value_of(order.market.quote, order.market.quote_amount(fill.price_ticks, fill.lots), terms)
    closes = notice.status in (Status.CANCELLED, Status.EXPIRED) or notice.left_lots == 0
    gone = order.left_lots if closes else filled
    worst = shift_worst(position.worst, order, -gone)
    open_quote = _add(position.open_quote, order.market.quote, -order.market.quote_amount(order.price_ticks, gone))
    orders = (
        position.orders.delete(key) if closes else position.orders.set(key, replace(order, left_lots=notice.left_lots))
    )
    counts = _with(position.open_counts, order.owner, position.open_counts[order.owner] - closes)
    return replace(
        position,
        net=net,
        orders=orders,
        worst=worst,
        open_quote=open_quote,
        open_counts=counts,
        matched_value=value,
    )


def fill_value_of(quote_token: Address, quote_amount: int, terms: Terms) -> int:
    """What a trade of `quote_amount` is worth in base units of the value token, rounded up (against matching on)."""
    return ceil_div(quote_amount * terms.price(quote_token), PRICE_SCALE)


def _settle(net: Map[Address, int], order: OpenOrder, fill: Fill) -> Map[Address, int]:
    """Moves both legs of one fill. What one is owed more, the other owes more: one number carries both."""
    better = fill.price_ticks <= order.price_ticks if order.side == 0 else fill.price_ticks >= order.price_ticks
    if not better:
        raise PeerFault(Code.ENTRY_INVALID, f"a fill of order {order.ref} at a price beyond its limit")
    base = order.market.base_amount(fill.lots)
    quote = order.market.quote_amount(fill.price_ticks, fill.lots)
    owner_gains = 1 if order.owner == 0 else -1  # the net is seen from participant 0
    base_sign = owner_gains if order.side == 0 else -owner_gains
    net = _add(net, order.market.base, base_sign * base)
    return _add(net, order.market.quote, -base_sign * quote)


def _add(net: Map[Address, int], token: Address, amount: int) -> Map[Address, int]:
    value = net.get(token, 0) + amount
    return net.set(token, value) if value else (net.delete(token) if token in net else net)


def balance_updates(position: Position, fixed: FixedPart) -> list[BalanceUpdate]:
    """The `bu` rows. Proceeds of trades stay locked until the channel is settled."""
    a, b = fixed.participants
    return [
        BalanceUpdate(
            holder=b if net > 0 else a,
            owner=a if net > 0 else b,
            chain_id=fixed.chain_id,
            token=token,
            available=0,
            locked=abs(net),
        )
        for token, net in position.net.items()
    ]


def open_orders_summary(position: Position, fixed: FixedPart) -> list[OpenOrdersSummary]:
    """The `oos` rows: what the open orders add up to per market, owner and side."""
    groups: dict[tuple[int, MarketId, int], list[OpenOrder]] = {}
    for order in position.orders.values():
        groups.setdefault((order.owner, order.market.market_id, order.side), []).append(order)
    return [
        OpenOrdersSummary(
            holder=fixed.participants[1 - owner],
            owner=fixed.participants[owner],
            market_id=market_id,
            side=side,
            base=sum(o.market.base_amount(o.left_lots) for o in orders),
            low_ticks=min(o.price_ticks for o in orders),
            high_ticks=max(o.price_ticks for o in orders),
            quote=sum(o.market.quote_amount(o.price_ticks, o.left_lots) for o in orders),
        )
        for (owner, market_id, side), orders in groups.items()
    ]
