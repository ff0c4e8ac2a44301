"""Where an order goes: this broker's book and the peers' books as one, best price first.

Invariants: nothing is planned outside the order's limit; no level is used while a better one has lots left (never
trades through); at one price the own book comes first, then channels by id; the same books give the same plan. Lots
that match nowhere stay local, where a limit order rests or is cancelled by its time in force. Whether a channel can
take its part is decided, on the state of the channel, by whoever executes the plan. Pure. DESIGN section 8.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from broker.clob.book import OrderBook, Side
from broker.peerbook import PeerBook
from channel.errors import Code, LocalRefusal
from channel.orders import Order
from channel.units import ChannelId

MAX_PEERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`parts`: lots for each channel, by channel id; the rest of the order is local.

    `limit_ticks`: the limit of a limit order, or the worst price among the levels that a market order takes.
    """

    parts: tuple[tuple[ChannelId, int], ...]
    limit_ticks: int


def plan(order: Order, limit: int | None, local: OrderBook | None, peers: Mapping[ChannelId, PeerBook]) -> Plan:
    """Splits `order` over the books. Nothing changes.

    `limit`: worst price in ticks that may be taken; None for a market order. `local` is None for an order that is
    signed for a peer's market. Raises LocalRefusal ORDER_AMOUNT: a market order and nothing to take.
    """
    assert len(peers) <= MAX_PEERS
    parts: dict[ChannelId, int] = {}
    left, worst = order.amount_lots, None
    for price, channel_id, lots in _opposite(order, limit, local, peers):
        if left == 0 or (limit is not None and _beyond(order.side, price, limit)):
            break
        take = min(left, lots)
        left -= take
        worst = price
        if channel_id is not None:
            parts[channel_id] = parts.get(channel_id, 0) + take
    if limit is None and worst is None:
        raise LocalRefusal(Code.ORDER_AMOUNT, "no liquidity: nothing rests on the other side of this market")
    limit_ticks = limit if limit is not None else worst
    assert limit_ticks is not None
    return Plan(parts=tuple(sorted(parts.items())), limit_ticks=limit_ticks)


def _opposite(
    order: Order, limit: int | None, local: OrderBook | None, peers: Mapping[ChannelId, PeerBook]
) -> Iterator[tuple[int, ChannelId | None, int]]:
    """(price, channel or None for the own book, lots) of what the order could take, best first, own book first."""
    sign = 1 if order.side == 0 else -1
    walks: list[Iterator[tuple[int, bytes, int]]] = []
    if local is not None:
        own = local.preview(Side(order.side), limit, order.amount_lots)
        walks.append((sign * price, b"", lots) for price, lots in own)
    for channel_id, book in peers.items():
        walks.append(_keyed(sign, channel_id, book, 1 - order.side))
    for key, venue, lots in heapq.merge(*walks):
        yield sign * key, ChannelId(venue) if venue else None, lots


def _keyed(sign: int, channel_id: ChannelId, book: PeerBook, side: int) -> Iterator[tuple[int, bytes, int]]:
    return ((sign * price, channel_id, lots) for price, lots in book.levels(side))


def _beyond(side: int, price_ticks: int, limit_ticks: int) -> bool:
    return price_ticks > limit_ticks if side == 0 else price_ticks < limit_ticks


def merged_depth(
    local: OrderBook, peers: Mapping[ChannelId, PeerBook], side: int, n: int
) -> tuple[tuple[int, int, int], ...]:
    """The best `n` levels of one side (0 bids, 1 asks) over all books: (price in ticks, total lots, local lots)."""
    levels: dict[int, list[int]] = {price: [lots, lots] for price, lots in local.depth(Side(side), n)}
    for book in peers.values():
        for price, lots in book.depth(side, n):
            levels.setdefault(price, [0, 0])[0] += lots
    prices = sorted(levels, reverse=side == 0)[: max(n, 0)]
    return tuple((price, levels[price][0], levels[price][1]) for price in prices)
