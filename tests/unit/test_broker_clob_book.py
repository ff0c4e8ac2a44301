"""Golden cases of the book, each with a name, and the order flow through it."""

import gc
import os
from pathlib import Path

import pytest

from broker.clob import Fill, OrderBook, OrderId, Placement, Resting, Side
from channel.errors import Code, LocalRefusal
from devnet.flow import FlowKind, FlowOp, FlowStats, TakerOp, generate_flow, normalise, read_flow, takers

BUY, SELL = Side.BUY, Side.SELL
OWNER = bytes(20)
MAX = 2**63 - 1


def oid(number: int) -> OrderId:
    return OrderId(number.to_bytes(32, "big"))


def put(
    book: OrderBook,
    number: int,
    side: Side,
    price: int | None,
    lots: int,
    *,
    rest: bool = True,
    cap: int | None = None,
) -> Placement:
    return book.place(
        order_id=oid(number),
        owner=OWNER,
        side=side,
        price_ticks=price,
        lots=lots,
        rest=rest,
        max_notional_ticks=cap,
    )


def state(book: OrderBook) -> list[Resting]:
    return list(book.orders())


def test_partly_filled_taker_rests_with_its_remainder() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 3)
    placement = put(book, 2, BUY, 100, 5)
    assert placement == Placement((Fill(oid(1), oid(2), 100, 3, 0),), resting_lots=2, cancelled_lots=0)
    assert state(book) == [Resting(oid(2), OWNER, BUY, 100, 2)]
    assert book.best(BUY) == 100
    assert book.best(SELL) is None


def test_partly_filled_maker_keeps_the_rest() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 5)
    assert put(book, 2, BUY, 100, 2).fills == (Fill(oid(1), oid(2), 100, 2, 3),)
    assert book.get(oid(1)) == Resting(oid(1), OWNER, SELL, 100, 3)
    assert book.get(oid(2)) is None
    assert len(book) == 1


@pytest.mark.parametrize(("side", "prices"), [(BUY, (100, 101, 102)), (SELL, (102, 101, 100))])
def test_price_improvement_and_best_price_first(side: Side, prices: tuple[int, int, int]) -> None:
    book = OrderBook()
    for number in (3, 1, 2):
        put(book, number, Side(1 - side), prices[number - 1], 1)
    fills = put(book, 9, side, prices[2], 3).fills
    assert [(fill.maker_id, fill.price_ticks) for fill in fills] == [(oid(n), prices[n - 1]) for n in (1, 2, 3)]


def test_fifo_within_a_level() -> None:
    book = OrderBook()
    for number in (5, 2, 9, 1):
        put(book, number, BUY, 100, 2)
    fills = put(book, 10, SELL, 100, 5).fills
    assert [(fill.maker_id, fill.lots, fill.maker_left_lots) for fill in fills] == [
        (oid(5), 2, 0),
        (oid(2), 2, 0),
        (oid(9), 1, 1),
    ]
    put(book, 11, BUY, 100, 1)  # behind 9 and 1
    assert [order.order_id for order in state(book)] == [oid(9), oid(1), oid(11)]


@pytest.mark.parametrize("emptied_by", ["fill", "cancel"])
def test_emptied_level_is_no_longer_best(emptied_by: str) -> None:
    book = OrderBook()
    put(book, 1, BUY, 100, 1)
    put(book, 2, BUY, 99, 1)
    if emptied_by == "fill":
        put(book, 3, SELL, 100, 1)
    else:
        book.cancel(oid(1))
    assert book.best(BUY) == 99
    assert book.level(BUY, 100) == 0
    assert book.depth(BUY, 10) == ((99, 1),)


def test_cancel_returns_what_rested_and_knows_it_only_once() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 5)
    put(book, 2, BUY, 100, 2)
    assert book.cancel(oid(1)) == Resting(oid(1), OWNER, SELL, 100, 3)
    with pytest.raises(LocalRefusal) as caught:
        book.cancel(oid(1))
    assert caught.value.code is Code.ORDER_UNKNOWN
    assert len(book) == 0


@pytest.mark.parametrize("gone", [1, 2, 3])
def test_cancel_at_head_middle_and_tail_keeps_the_queue(gone: int) -> None:
    book = OrderBook()
    for number in (1, 2, 3):
        put(book, number, BUY, 100, number)
    book.cancel(oid(gone))
    put(book, 4, BUY, 100, 4)
    left = [number for number in (1, 2, 3, 4) if number != gone]
    assert [order.order_id for order in state(book)] == [oid(number) for number in left]
    assert book.level(BUY, 100) == sum(left)
    assert [fill.maker_id for fill in put(book, 9, SELL, 100, 99, rest=False).fills] == [oid(n) for n in left]


def test_cancel_of_a_level_that_is_not_best() -> None:
    book = OrderBook()
    for price in range(90, 100):
        put(book, price, BUY, price, 1)
    book.cancel(oid(93))
    assert [price for price, _ in book.depth(BUY, 20)] == [99, 98, 97, 96, 95, 94, 92, 91, 90]


def test_reduce_keeps_priority() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 5)
    put(book, 2, SELL, 100, 5)
    assert book.reduce(oid(1), 2) == Resting(oid(1), OWNER, SELL, 100, 2)
    assert book.level(SELL, 100) == 7
    assert [(fill.maker_id, fill.lots) for fill in put(book, 3, BUY, 100, 3).fills] == [(oid(1), 2), (oid(2), 1)]


@pytest.mark.parametrize("lots_left", [-1, 0, 6])
def test_reduce_only_makes_smaller_and_never_nothing(lots_left: int) -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 5)
    with pytest.raises(LocalRefusal) as caught:
        book.reduce(oid(1), lots_left)
    assert caught.value.code is Code.ORDER_AMOUNT
    assert state(book) == [Resting(oid(1), OWNER, SELL, 100, 5)]
    with pytest.raises(LocalRefusal) as caught:
        book.reduce(oid(2), 1)
    assert caught.value.code is Code.ORDER_UNKNOWN


def test_market_order_on_an_empty_book_is_cancelled_whole() -> None:
    book = OrderBook()
    assert put(book, 1, BUY, None, 5) == Placement((), 0, 5)
    assert len(book) == 0
    assert book.drain_changes() == ()


def test_market_order_sweeps_and_never_rests() -> None:
    book = OrderBook()
    put(book, 1, SELL, 1, 1)
    put(book, 2, SELL, MAX, 1)
    placement = put(book, 3, BUY, None, 5, rest=True)
    assert [fill.price_ticks for fill in placement.fills] == [1, MAX]
    assert (placement.resting_lots, placement.cancelled_lots, len(book)) == (0, 3, 0)
    put(book, 4, BUY, 1, 1)
    assert put(book, 5, SELL, None, 2) == Placement((Fill(oid(4), oid(5), 1, 1, 0),), 0, 1)


def test_ioc_takes_what_it_can_inside_its_limit() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 1)
    put(book, 2, SELL, 101, 1)
    assert put(book, 3, BUY, 100, 5, rest=False) == Placement((Fill(oid(1), oid(3), 100, 1, 0),), 0, 4)
    assert put(book, 4, BUY, 100, 5, rest=False) == Placement((), 0, 5)
    assert book.best(SELL) == 101


def test_notional_cap_ends_the_matching_and_cancels_the_remainder() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 2)
    put(book, 2, SELL, 110, 5)
    expected = ((100, 2), (110, 2))
    assert book.preview(BUY, 200, 10, 430) == expected
    placement = put(book, 3, BUY, 200, 10, cap=430)
    assert tuple((fill.price_ticks, fill.lots) for fill in placement.fills) == expected
    assert (placement.resting_lots, placement.cancelled_lots) == (0, 6)
    assert put(book, 4, BUY, 200, 1, cap=109) == Placement((), 0, 1)
    assert book.preview(BUY, 200, 1, 109) == ()
    assert put(book, 5, BUY, 100, 1, cap=0) == Placement((), 1, 0)  # the cap is on what is matched


def test_notional_cap_of_a_seller_reaches_cheaper_levels() -> None:
    book = OrderBook()
    put(book, 1, BUY, 100, 1)
    put(book, 2, BUY, 10, 9)
    assert book.preview(SELL, None, 8, 150) == ((100, 1), (10, 5))
    fills = put(book, 3, SELL, None, 8, cap=150).fills
    assert [(fill.price_ticks, fill.lots) for fill in fills] == [(100, 1), (10, 5)]


def test_preview_is_what_place_then_does_and_changes_nothing() -> None:
    book = OrderBook()
    for number, (price, lots) in enumerate([(100, 2), (100, 3), (101, 4), (103, 1)]):
        put(book, number, SELL, price, lots)
    before = state(book)
    assert book.preview(BUY, 102, 100) == ((100, 5), (101, 4))
    assert book.preview(BUY, None, 8) == ((100, 5), (101, 3))
    assert book.preview(BUY, 99, 8) == ()
    assert book.preview(SELL, None, 8) == ()
    assert state(book) == before


def test_depth_and_level_totals() -> None:
    book = OrderBook()
    for number, (price, lots) in enumerate([(100, 2), (99, 3), (100, 4), (98, 1)]):
        put(book, number, BUY, price, lots)
    assert book.depth(BUY, 2) == ((100, 6), (99, 3))
    assert book.depth(BUY, 99) == ((100, 6), (99, 3), (98, 1))
    assert book.depth(BUY, 0) == ()
    assert book.depth(SELL, 5) == ()
    assert book.level(BUY, 100) == 6
    assert book.level(SELL, 100) == 0


def test_changes_are_net_per_level_since_the_last_drain() -> None:
    book = OrderBook()
    put(book, 1, SELL, 102, 1)
    put(book, 2, SELL, 101, 1)
    put(book, 3, BUY, 99, 1)
    put(book, 4, BUY, 100, 2)
    assert book.drain_changes() == ((BUY, 100, 2), (BUY, 99, 1), (SELL, 101, 1), (SELL, 102, 1))
    assert book.drain_changes() == ()
    put(book, 5, BUY, 98, 7)
    book.cancel(oid(5))  # came and went
    book.cancel(oid(4))
    put(book, 6, BUY, 100, 2)  # the level is as it was
    put(book, 7, BUY, 101, 1, rest=False)
    assert book.drain_changes() == ((SELL, 101, 0),)


def test_changes_stay_bounded_when_nobody_drains_them() -> None:
    book = OrderBook()
    for price in range(1, 2_000):
        put(book, price, BUY, price, 1)
        book.cancel(oid(price))
    assert len(book._bids.changes) == 0


@pytest.mark.parametrize(
    ("price", "lots", "cap", "code"),
    [
        (0, 1, None, Code.ORDER_TICK),
        (-1, 1, None, Code.ORDER_TICK),
        (2**63, 1, None, Code.ORDER_TICK),
        (1, 0, None, Code.ORDER_AMOUNT),
        (1, -1, None, Code.ORDER_AMOUNT),
        (1, 2**63, None, Code.ORDER_AMOUNT),
        (None, 0, None, Code.ORDER_AMOUNT),
        (1, 1, -1, Code.ORDER_AMOUNT),
    ],
)
def test_values_out_of_range_are_refused(price: int | None, lots: int, cap: int | None, code: Code) -> None:
    book = OrderBook()
    with pytest.raises(LocalRefusal) as caught:
        put(book, 1, BUY, price, lots, cap=cap)
    assert caught.value.code is code
    with pytest.raises(LocalRefusal) as caught:
        book.preview(BUY, price, lots, cap)
    assert caught.value.code is code
    assert len(book) == 0


def test_the_largest_values_fit() -> None:
    book = OrderBook()
    put(book, 1, SELL, MAX, MAX)
    put(book, 2, SELL, MAX, MAX)
    assert book.level(SELL, MAX) == 2 * MAX
    assert put(book, 3, BUY, MAX, MAX).fills == (Fill(oid(1), oid(3), MAX, MAX, 0),)


def test_an_id_that_rests_is_refused_and_changes_nothing() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 5)
    with pytest.raises(LocalRefusal) as caught:
        put(book, 1, BUY, 100, 5)
    assert caught.value.code is Code.ORDER_REPLAYED
    assert state(book) == [Resting(oid(1), OWNER, SELL, 100, 5)]


def test_a_full_book_refuses_what_would_rest_and_nothing_else() -> None:
    book = OrderBook(max_orders=2)
    put(book, 1, SELL, 100, 5)
    put(book, 2, SELL, 100, 5)
    with pytest.raises(LocalRefusal) as caught:
        put(book, 3, BUY, 99, 1)
    assert caught.value.code is Code.BUSY
    assert put(book, 4, BUY, 99, 1, rest=False) == Placement((), 0, 1)
    assert put(book, 5, BUY, 100, 1).resting_lots == 0
    assert put(book, 6, BUY, 100, 10).resting_lots == 1  # what it consumed made room
    assert len(book) == 1


def test_an_order_that_was_consumed_may_come_back_under_its_id() -> None:
    book = OrderBook()
    put(book, 1, SELL, 100, 5)
    put(book, 2, BUY, 100, 5)
    put(book, 1, SELL, 101, 1)
    assert state(book) == [Resting(oid(1), OWNER, SELL, 101, 1)]


def test_placing_the_orders_of_a_book_in_order_rebuilds_it() -> None:
    book = OrderBook()
    drive(book, normalise(generate_flow(3, 500), stats=FlowStats()))
    again = OrderBook()
    for order in book.orders():
        again.place(
            order_id=order.order_id,
            owner=order.owner,
            side=order.side,
            price_ticks=order.price_ticks,
            lots=order.lots,
            rest=True,
        )
    assert len(again) > 30
    assert state(again) == state(book)
    assert again.depth(BUY, 100) == book.depth(BUY, 100)


def test_what_leaves_the_book_leaves_no_garbage() -> None:
    book = OrderBook()
    gc.collect()
    gc.disable()
    try:
        for price in (100, 101):
            for number in range(5):
                put(book, price * 10 + number, SELL, price, 2)
        put(book, 1, BUY, None, 13)
        book.cancel(oid(1013))
        book.cancel(oid(1014))
        put(book, 2, BUY, None, 13)
        assert len(book) == 0
        assert gc.collect() == 0
    finally:
        gc.enable()


def drive(book: OrderBook, ops: object) -> dict[str, int]:
    """Flow through a book, as the demo does it; amends that only make smaller keep their place."""
    count = dict.fromkeys(("placed_lots", "filled_lots", "cancelled_lots", "trades", "consumed"), 0)

    def place(number: int, side: Side, price: int | None, lots: int, rest: bool) -> None:
        placement = put(book, number, side, price, lots, rest=rest)
        filled = sum(fill.lots for fill in placement.fills)
        assert filled + placement.resting_lots + placement.cancelled_lots == lots
        count["placed_lots"] += lots
        count["filled_lots"] += 2 * filled  # it leaves the maker's lots and the taker's
        count["cancelled_lots"] += placement.cancelled_lots
        count["trades"] += len(placement.fills)

    for op in ops:  # type: ignore[attr-defined]
        if isinstance(op, TakerOp):
            place(2**128 + op.number, op.side, None, op.lots, rest=False)
            continue
        assert isinstance(op, FlowOp)
        if op.kind is FlowKind.ADD:
            place(op.order_ref, op.side, op.price_ticks, op.lots, rest=True)
            continue
        known = book.get(oid(op.order_ref))
        if known is None:
            count["consumed"] += 1
        elif op.kind is FlowKind.REMOVE:
            count["cancelled_lots"] += book.cancel(oid(op.order_ref)).lots
        elif known.price_ticks == op.price_ticks and op.lots <= known.lots:
            count["cancelled_lots"] += known.lots - op.lots
            book.reduce(oid(op.order_ref), op.lots)
        else:
            count["cancelled_lots"] += book.cancel(oid(op.order_ref)).lots
            place(op.order_ref, op.side, op.price_ticks, op.lots, rest=True)
    return count


def test_order_flow_with_takers_conserves_lots() -> None:
    """The recorded file when XLN_FLOW names one, else as much of the generator's."""
    path = os.environ.get("XLN_FLOW")
    rows = read_flow(Path(path)) if path else generate_flow(7, 10_000)
    book = OrderBook()
    count = drive(book, takers(normalise(rows, stats=FlowStats()), every=5, seed=7))
    resting = sum(order.lots for order in book.orders())
    assert count["placed_lots"] == count["filled_lots"] + count["cancelled_lots"] + resting
    assert count["trades"] > 1_000
    assert count["consumed"] > 100
    mirror = {(side, price): lots for side, price, lots in book.drain_changes()}
    assert mirror == {(side, price): lots for side in Side for price, lots in book.depth(side, 1_000)}
    bid, ask = book.best(BUY), book.best(SELL)
    assert bid is None or ask is None or bid < ask
