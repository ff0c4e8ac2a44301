"""The book against a naive one, trade for trade: every invariant of broker/clob/book.py, on random histories."""

from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.clob import Fill, OrderBook, OrderId, Placement, Resting, Side
from channel.errors import Code, LocalRefusal

MAX_ORDERS = 12
sides = st.sampled_from(Side)
prices = st.integers(1, 8)
sizes = st.one_of(st.integers(1, 6), st.just(2**63 - 1))
owners = st.sampled_from([b"a" * 20, b"b" * 20])


def outcome(call: Callable[[], Any]) -> tuple[Any, Code | None]:
    """What a call gave, and the code it was refused with."""
    try:
        return call(), None
    except LocalRefusal as refusal:
        return None, refusal.code


class NaiveBook:
    """A list of orders in arrival order; the best one is found by looking at all of them, lot by lot."""

    def __init__(self) -> None:
        self.resting: list[list] = []  # [order_id, owner, side, price, lots]

    def candidates(self, side: Side, price: int | None) -> list[list]:
        sign = 1 if side == Side.BUY else -1
        found = [o for o in self.resting if o[2] != side and (price is None or sign * o[3] <= sign * price)]
        return sorted(found, key=lambda o: sign * o[3])  # stable: arrival order within a price

    def place(self, order_id, owner, side, price, lots, rest, cap) -> Placement:
        fills, left, capped = [], lots, False
        for maker in self.candidates(side, price):
            if left == 0 or capped:
                break
            take = min(left, maker[4])
            if cap is not None and take * maker[3] > cap:
                take, capped = cap // maker[3], True
            if cap is not None:
                cap -= take * maker[3]
            if take:
                left -= take
                maker[4] -= take
                fills.append(Fill(maker[0], order_id, maker[3], take, maker[4]))
        self.resting = [o for o in self.resting if o[4]]
        if left and rest and price is not None and not capped:
            if len(self.resting) >= MAX_ORDERS:
                raise OverflowError
            self.resting.append([order_id, owner, side, price, left])
            return Placement(tuple(fills), left, 0)
        return Placement(tuple(fills), 0, left)

    def orders(self) -> list[Resting]:
        bids = sorted((o for o in self.resting if o[2] == Side.BUY), key=lambda o: -o[3])
        asks = sorted((o for o in self.resting if o[2] == Side.SELL), key=lambda o: o[3])
        return [Resting(*o) for o in bids + asks]

    def depth(self, side: Side) -> tuple[tuple[int, int], ...]:
        totals: dict[int, int] = {}
        for order in self.orders():
            if order.side == side:
                totals[order.price_ticks] = totals.get(order.price_ticks, 0) + order.lots
        return tuple(totals.items())


class BookMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.book = OrderBook(max_orders=MAX_ORDERS)
        self.model = NaiveBook()
        self.last = 0
        self.follower: dict[tuple[Side, int], int] = {}  # a reader who only sees the increments

    def new_id(self) -> OrderId:
        self.last += 1
        return OrderId(self.last.to_bytes(32, "big"))

    def some_id(self, pick: int) -> OrderId:
        """One that rests, mostly; else one that never did or no longer does."""
        if pick % 5 and self.model.resting:
            return self.model.resting[pick % len(self.model.resting)][0]
        return OrderId((pick % (self.last + 2)).to_bytes(32, "big"))

    @rule(
        side=sides,
        owner=owners,
        price=st.one_of(prices, prices, st.none()),
        lots=sizes,
        rest=st.sampled_from([True, True, False]),
        cap=st.one_of(st.none(), st.none(), st.integers(0, 60)),
    )
    def place(self, side, owner, price, lots, rest, cap) -> None:
        order_id = self.new_id()
        before = list(self.book.orders())
        preview = self.book.preview(side, price, lots, cap)
        try:
            expected = self.model.place(order_id, owner, side, price, lots, rest, cap)
        except OverflowError:
            expected = None
        placement, code = outcome(
            lambda: self.book.place(
                order_id=order_id,
                owner=owner,
                side=side,
                price_ticks=price,
                lots=lots,
                rest=rest,
                max_notional_ticks=cap,
            )
        )
        assert placement == expected
        if placement is None:
            assert code is Code.BUSY
            assert list(self.book.orders()) == before
            return
        per_level: dict[int, int] = {}
        for fill in placement.fills:
            per_level[fill.price_ticks] = per_level.get(fill.price_ticks, 0) + fill.lots
        assert preview == tuple(per_level.items())
        assert sum(fill.lots for fill in placement.fills) + placement.resting_lots + placement.cancelled_lots == lots

    @rule(pick=st.integers(0, 10**6))
    def place_an_id_again(self, pick) -> None:
        order_id = self.some_id(pick)
        if any(order[0] == order_id for order in self.model.resting):
            assert outcome(
                lambda: self.book.place(order_id=order_id, owner=b"", side=Side.BUY, price_ticks=8, lots=1, rest=True)
            ) == (None, Code.ORDER_REPLAYED)

    @rule(pick=st.integers(0, 10**6))
    def cancel(self, pick) -> None:
        order_id = self.some_id(pick)
        known = next((o for o in self.model.resting if o[0] == order_id), None)
        cancelled, code = outcome(lambda: self.book.cancel(order_id))
        if known is None:
            assert code is Code.ORDER_UNKNOWN
        else:
            assert cancelled == Resting(*known)
            self.model.resting.remove(known)

    @rule(pick=st.integers(0, 10**6), lots=st.integers(0, 7))
    def reduce(self, pick, lots) -> None:
        order_id = self.some_id(pick)
        known = next((o for o in self.model.resting if o[0] == order_id), None)
        reduced, code = outcome(lambda: self.book.reduce(order_id, lots))
        if known is None:
            assert code is Code.ORDER_UNKNOWN
        elif not 0 < lots <= known[4]:
            assert code is Code.ORDER_AMOUNT
        else:
            known[4] = lots
            assert reduced == Resting(*known)

    @rule()
    def drain(self) -> None:
        changes = self.book.drain_changes()
        assert len({(side, price) for side, price, _ in changes}) == len(changes)
        for side, price, lots in changes:
            assert self.follower.get((side, price), 0) != lots  # nothing is said twice
            self.follower[side, price] = lots
        shown = {key: lots for key, lots in self.follower.items() if lots}
        assert shown == {(side, price): lots for side in Side for price, lots in self.model.depth(side)}

    @invariant()
    def same_book(self) -> None:
        assert list(self.book.orders()) == self.model.orders()
        assert len(self.book) == len(self.model.resting)
        for side in Side:
            depth = self.model.depth(side)
            assert self.book.depth(side, 100) == depth
            assert self.book.depth(side, 2) == depth[:2]
            assert self.book.best(side) == (depth[0][0] if depth else None)
            assert all(self.book.level(side, price) == dict(depth).get(price, 0) for price in range(1, 9))
        bid, ask = self.book.best(Side.BUY), self.book.best(Side.SELL)
        assert bid is None or ask is None or bid < ask
        for order in self.model.resting:
            assert self.book.get(order[0]) == Resting(*order)

    @invariant()
    def changes_are_bounded(self) -> None:
        for side, half in zip(Side, self.book._halves, strict=True):
            drained = sum(1 for (of, _), lots in self.follower.items() if of is side and lots)
            assert len(half.changes) <= drained + len(half.keys)


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
