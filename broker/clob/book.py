"""A central limit order book with price-time priority, for one market, on bare integers.

Purpose: match, rest, reduce and cancel orders, and say which price levels changed. What a tick and a lot are worth,
who may trade and whose money is locked is known one layer up. Owners are carried and ignored here: an order may
match another order of its own owner (self-trade prevention is the caller's, and comes with later work).

Invariants, after every call (tests/stateful/test_book.py holds them against a naive model):
 1. the best bid is below the best ask;
 2. a level's total is the sum of its orders' lots, every order has lots > 0, and a level without orders does not exist;
 3. at one price, whoever came first is filled first; reducing keeps the place in the queue;
 4. lots placed = lots filled + lots resting + lots cancelled;
 5. a call that raises has changed nothing.

Structure: a dict from order id to its node; per level a doubly linked list of nodes in arrival order with its total;
per side a dict from key to level and one sorted list of keys. A key is the price for bids and the negated price for
asks, so on both sides the best key is the last one: the same code serves both, and where nearly all of the traffic
is, at the best prices, inserting and removing a key moves next to nothing. Matching and cancelling are O(1) per order
touched; a new level costs O(log levels) comparisons and one memmove. The two containers of `_Half` are the only place
to change when levels get cumulative depth.

Source: DESIGN section 8; house rule 2 (mutable structures of a hot path stay inside one class).
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple, NewType

from channel.errors import Code, LocalRefusal

OrderId = NewType("OrderId", bytes)  # 32 bytes

MAX_TICKS = 2**63 - 1
MAX_LOTS = 2**63 - 1


class Side(IntEnum):
    BUY = 0
    SELL = 1


# The values that leave the book are NamedTuples: as immutable as a frozen dataclass, at a third of the cost to make,
# and one of them is made for every operation. Where many are made, `_new(Fill, (...))` leaves out the Python frame that
# `Fill(...)` costs.
_new = tuple.__new__


class Fill(NamedTuple):
    """One match, at the maker's price. `maker_left_lots` is what the maker still has resting afterwards."""

    maker_id: OrderId
    taker_id: OrderId
    price_ticks: int
    lots: int
    maker_left_lots: int


class Resting(NamedTuple):
    """A view of one resting order at the moment it was asked for."""

    order_id: OrderId
    owner: bytes
    side: Side
    price_ticks: int
    lots: int


class Placement(NamedTuple):
    """What became of an order: filled lots + `resting_lots` + `cancelled_lots` = lots placed."""

    fills: tuple[Fill, ...]
    resting_lots: int
    cancelled_lots: int


class _Level:
    """All orders at one price: a doubly linked list, oldest first."""

    __slots__ = ("head", "lots", "tail")

    def __init__(self, first: "_Node") -> None:
        self.head = first
        self.tail = first
        self.lots = first.lots


class _Node:
    """One resting order. It names its level by price and does not point to it, and links of nodes that leave are cut:
    no reference cycles, so what leaves the book is freed at once and the garbage collector finds nothing to do."""

    __slots__ = ("after", "before", "lots", "order_id", "owner", "price_ticks", "side")

    def __init__(self, order_id: OrderId, owner: bytes, side: Side, price_ticks: int, lots: int) -> None:
        self.order_id = order_id
        self.owner = owner
        self.side = side
        self.price_ticks = price_ticks
        self.lots = lots
        self.before: _Node | None = None
        self.after: _Node | None = None


class _Half:
    """One side: levels by key, the keys sorted with the best one last, and the levels touched since the last drain.

    `changes` maps a key to the lots its level had at the last drain.
    """

    __slots__ = ("changes", "keys", "levels", "sign")

    def __init__(self, sign: int) -> None:
        self.sign = sign  # key = sign * price
        self.levels: dict[int, _Level] = {}
        self.keys: list[int] = []
        self.changes: dict[int, int] = {}

    def forget_level(self, key: int) -> None:
        """Drop an emptied level. A level that came and went between two drains leaves no change behind, which keeps
        `changes` within the levels of the last drain plus those of now, however seldom anybody drains."""
        del self.levels[key]
        keys = self.keys
        if keys[-1] == key:
            keys.pop()
        else:
            del keys[bisect_left(keys, key)]
        if self.changes[key] == 0:
            del self.changes[key]


class OrderBook:
    """The resting orders of one market. Not safe for use from two threads."""

    __slots__ = ("_asks", "_bids", "_halves", "_max_orders", "_nodes")

    def __init__(self, *, max_orders: int = 1_000_000) -> None:
        """`max_orders`: how many orders may rest at once; place() refuses BUSY beyond it."""
        self._nodes: dict[OrderId, _Node] = {}
        self._bids = _Half(1)
        self._asks = _Half(-1)
        self._halves = (self._bids, self._asks)  # indexed by Side
        self._max_orders = max_orders

    # -- changing the book

    def place(
        self,
        *,
        order_id: OrderId,
        owner: bytes,
        side: Side,
        price_ticks: int | None,
        lots: int,
        rest: bool,
        max_notional_ticks: int | None = None,
    ) -> Placement:
        """Match an order against the other side, best price first, oldest first, each at the maker's price.

        `price_ticks` None is a market order, which never rests. What is left rests at its limit if `rest`, else it is
        cancelled. `max_notional_ticks` caps the sum of price × lots over the fills; when the cap ends the matching,
        the remainder is cancelled even if `rest`, because resting it would cross the book.

        Raises LocalRefusal ORDER_TICK, ORDER_AMOUNT (outside 1 .. 2^63-1), ORDER_REPLAYED (an order with this id
        rests already) or BUSY (it would rest, and the book is full).
        """
        if not (
            0 < lots <= MAX_LOTS
            and (price_ticks is None or 0 < price_ticks <= MAX_TICKS)
            and max_notional_ticks is None
        ):
            _check_order(price_ticks, lots, max_notional_ticks)
        nodes = self._nodes
        if order_id in nodes:
            raise LocalRefusal(Code.ORDER_REPLAYED, "an order with this id rests in the book already")
        other = self._halves[1 - side]
        other_keys = other.keys
        left = lots
        fills: tuple[Fill, ...] = ()
        if other_keys and (price_ticks is None or other_keys[-1] >= other.sign * price_ticks):
            fills, left, capped = self._match(order_id, other, price_ticks, lots, max_notional_ticks)
            if left == 0:
                return _new(Placement, (fills, 0, 0))
            rest = rest and not capped
        elif rest and len(nodes) >= self._max_orders and price_ticks is not None:
            # Only here: an order that crossed and still has something left has emptied a level, and so made room.
            raise LocalRefusal(Code.BUSY, f"the book is full: {self._max_orders} orders rest", limit=self._max_orders)
        if not rest or price_ticks is None:
            return _new(Placement, (fills, 0, left))

        node = nodes[order_id] = _Node(order_id, owner, side, price_ticks, left)
        half = self._halves[side]
        key = half.sign * price_ticks
        level = half.levels.get(key)
        if level is None:
            half.changes.setdefault(key, 0)
            half.levels[key] = _Level(node)
            keys = half.keys
            if keys and key < keys[-1]:
                insort(keys, key)
            else:
                keys.append(key)
        else:
            half.changes.setdefault(key, level.lots)
            level.lots += left
            tail = level.tail
            tail.after = node
            node.before = tail
            level.tail = node
        return _new(Placement, (fills, left, 0))

    def cancel(self, order_id: OrderId) -> Resting:
        """Take an order out and return it as it was. Raises LocalRefusal ORDER_UNKNOWN."""
        node = self._nodes.pop(order_id, None)
        if node is None:
            raise _unknown()
        half = self._halves[node.side]
        key = half.sign * node.price_ticks
        level = half.levels[key]
        half.changes.setdefault(key, level.lots)
        level.lots -= node.lots
        before, after = node.before, node.after
        if before is not None:
            before.after = after
            if after is not None:
                after.before = before
            else:
                level.tail = before
        elif after is not None:
            after.before = None
            level.head = after
        else:
            half.forget_level(key)
        return _new(Resting, (order_id, node.owner, node.side, node.price_ticks, node.lots))

    def reduce(self, order_id: OrderId, lots_left: int) -> Resting:
        """Make a resting order smaller, in its place in the queue; returns it as it now is.

        Raises LocalRefusal ORDER_UNKNOWN, or ORDER_AMOUNT unless 1 <= lots_left <= what rests.
        """
        node = self._nodes.get(order_id)
        if node is None:
            raise _unknown()
        if not 0 < lots_left <= node.lots:
            raise LocalRefusal(
                Code.ORDER_AMOUNT,
                f"an order of {node.lots} lots can be reduced to between 1 and {node.lots} lots, not {lots_left}",
                resting_lots=node.lots,
            )
        half = self._halves[node.side]
        key = half.sign * node.price_ticks
        level = half.levels[key]
        half.changes.setdefault(key, level.lots)
        level.lots -= node.lots - lots_left
        node.lots = lots_left
        return Resting(order_id, node.owner, node.side, node.price_ticks, lots_left)

    def drain_changes(self) -> tuple[tuple[Side, int, int], ...]:
        """(side, price, lots now) of each level whose total differs from what it was at the last call.

        Bids first, each side best price first; lots 0 means that the level is gone.
        """
        changed: list[tuple[Side, int, int]] = []
        for side in Side:
            half = self._halves[side]
            if not half.changes:
                continue
            for key in sorted(half.changes, reverse=True):
                level = half.levels.get(key)
                lots = level.lots if level is not None else 0
                if lots != half.changes[key]:
                    changed.append((side, half.sign * key, lots))
            half.changes.clear()
        return tuple(changed)

    # -- looking at it

    def preview(
        self, side: Side, price_ticks: int | None, lots: int, max_notional_ticks: int | None = None
    ) -> tuple[tuple[int, int], ...]:
        """(price, lots) that such an order of `side` would fill now, per level, best first; nothing changes.

        Same arguments, and same refusals of their values, as place().
        """
        _check_order(price_ticks, lots, max_notional_ticks)
        other = self._asks if side == 0 else self._bids
        limit_key = None if price_ticks is None else other.sign * price_ticks
        left = lots
        found: list[tuple[int, int]] = []
        for key in reversed(other.keys):
            if left == 0 or (limit_key is not None and key < limit_key):
                break
            level = other.levels[key]
            price = other.sign * key
            take = min(left, level.lots)
            if max_notional_ticks is not None:
                affordable = max_notional_ticks // price
                if affordable < take:  # the cap ends the matching here
                    take, left = affordable, affordable
                max_notional_ticks -= take * price
            if take:
                found.append((price, take))
            left -= take
        return tuple(found)

    def get(self, order_id: OrderId) -> Resting | None:
        node = self._nodes.get(order_id)
        return None if node is None else _view(node)

    def best(self, side: Side) -> int | None:
        """The best price of a side in ticks; None when nothing rests there."""
        half = self._halves[side]
        return half.sign * half.keys[-1] if half.keys else None

    def depth(self, side: Side, limit: int) -> tuple[tuple[int, int], ...]:
        """(price, total lots) of the first `limit` levels, best first."""
        half = self._halves[side]
        levels, sign = half.levels, half.sign
        return tuple((sign * key, levels[key].lots) for key in half.keys[: -limit - 1 : -1]) if limit > 0 else ()

    def level(self, side: Side, price_ticks: int) -> int:
        """Total lots that rest at a price; 0 if none."""
        half = self._halves[side]
        level = half.levels.get(half.sign * price_ticks)
        return 0 if level is None else level.lots

    def orders(self) -> Iterator[Resting]:
        """Every resting order in priority order, bids first. Placing them so into an empty book gives the same book.

        The book must not change while this is iterated.
        """
        for half in self._halves:
            for key in reversed(half.keys):
                node: _Node | None = half.levels[key].head
                while node is not None:
                    yield _view(node)
                    node = node.after

    def __len__(self) -> int:
        """How many orders rest."""
        return len(self._nodes)

    def __contains__(self, order_id: object) -> bool:
        return order_id in self._nodes

    # -- inside

    def _match(
        self,
        taker_id: OrderId,
        other: _Half,
        price_ticks: int | None,
        lots: int,
        max_notional_ticks: int | None,
    ) -> tuple[tuple[Fill, ...], int, bool]:
        """Fill against `other`. Returns (fills, lots left, whether the notional cap ended it)."""
        fills: list[Fill] = []
        left = lots
        keys, levels, nodes = other.keys, other.levels, self._nodes
        limit_key = -MAX_TICKS - 1 if price_ticks is None else other.sign * price_ticks
        while left and keys and keys[-1] >= limit_key:
            key = keys[-1]
            level = levels[key]
            price = other.sign * key
            wanted = left
            if max_notional_ticks is not None:
                affordable = max_notional_ticks // price
                if affordable == 0:
                    return tuple(fills), left, True
                if affordable < wanted:
                    wanted = affordable
                max_notional_ticks -= min(wanted, level.lots) * price
            other.changes.setdefault(key, level.lots)
            left -= wanted
            node: _Node | None = level.head
            while wanted and node is not None:
                have = node.lots
                if have > wanted:
                    node.lots = have - wanted
                    level.lots -= wanted
                    fills.append(_new(Fill, (node.order_id, taker_id, price, wanted, have - wanted)))
                    wanted = 0
                    break
                wanted -= have
                level.lots -= have
                fills.append(_new(Fill, (node.order_id, taker_id, price, have, 0)))
                del nodes[node.order_id]
                node = node.after
                if node is not None:
                    node.before = None
            left += wanted
            if node is None:
                other.forget_level(key)
            else:
                level.head = node
        return tuple(fills), left, False


def _check_order(price_ticks: int | None, lots: int, max_notional_ticks: int | None) -> None:
    if price_ticks is not None and not 0 < price_ticks <= MAX_TICKS:
        raise LocalRefusal(Code.ORDER_TICK, f"a price is between 1 and 2^63-1 ticks, not {price_ticks}")
    if not 0 < lots <= MAX_LOTS:
        raise LocalRefusal(Code.ORDER_AMOUNT, f"an order is of between 1 and 2^63-1 lots, not {lots}")
    if max_notional_ticks is not None and max_notional_ticks < 0:
        raise LocalRefusal(Code.ORDER_AMOUNT, f"a notional cap is not negative, as {max_notional_ticks} is")


def _unknown() -> LocalRefusal:
    return LocalRefusal(Code.ORDER_UNKNOWN, "no order with this id rests in the book")


def _view(node: _Node) -> Resting:
    return Resting(node.order_id, node.owner, node.side, node.price_ticks, node.lots)
