"""Routing: the merged book walked best price first, against a naive model that moves one lot at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.clob.book import OrderBook, OrderId, Side
from broker.peerbook import PeerBook
from broker.router import merged_depth, plan
from channel.errors import Code, LocalRefusal
from channel.orders import Order, OrderType, TimeInForce
from channel.units import Address, ChannelId, MarketId, format_hex

MARKET = MarketId(b"\x4d" * 32)
C1, C2 = ChannelId(b"\x01" * 32), ChannelId(b"\x02" * 32)
Levels = dict[int, int]  # price -> lots


def order(side: int, lots: int, price: int = 0) -> Order:
    return Order(
        owner=Address(b"\x01" * 20),
        market_id=MARKET,
        side=side,
        order_type=OrderType.LIMIT if price else OrderType.MARKET,
        time_in_force=TimeInForce.GTC if price else TimeInForce.IOC,
        price_ticks=price,
        amount_lots=lots,
        valid_until_ms=1,
        nonce=1,
    )


def own(side: int, levels: Levels) -> OrderBook:
    book = OrderBook()
    for price, lots in levels.items():
        name = OrderId(price.to_bytes(32, "big"))
        book.place(order_id=name, owner=b"", side=Side(side), price_ticks=price, lots=lots, rest=True)
    return book


def peer(side: int, levels: Levels) -> PeerBook:
    rows = [[price, levels[price]] for price in sorted(levels, reverse=side == 0)]
    bids, asks = (rows, []) if side == 0 else ([], rows)
    return PeerBook.from_snapshot({"market": format_hex(MARKET), "seq": 1, "bids": bids, "asks": asks})


def test_a_better_price_of_a_peer_comes_first_and_the_rest_stays_local() -> None:
    made = plan(order(0, 10, 105), 105, own(1, {102: 3}), {C1: peer(1, {101: 4, 106: 9})})
    assert made.parts == ((C1, 4),)
    assert made.limit_ticks == 105


def test_at_one_price_the_own_book_comes_first_then_channels_by_id() -> None:
    books = {C2: peer(1, {100: 5}), C1: peer(1, {100: 2})}
    assert plan(order(0, 6, 100), 100, own(1, {100: 3}), books).parts == ((C1, 2), (C2, 1))


def test_a_market_order_takes_what_is_there_and_says_the_worst_price() -> None:
    books = {C1: peer(1, {101: 4, 109: 1})}
    made = plan(order(0, 6), None, own(1, {103: 1}), books)
    assert (made.parts, made.limit_ticks) == (((C1, 5),), 109)
    more = plan(order(0, 99), None, own(1, {103: 1}), books)
    assert (more.parts, more.limit_ticks) == (((C1, 5),), 109)
    bids = plan(order(1, 5), None, own(0, {90: 1, 80: 9}), {C1: peer(0, {85: 1})})
    assert (bids.parts, bids.limit_ticks) == (((C1, 1),), 80)


def test_a_market_order_without_liquidity_is_refused() -> None:
    with pytest.raises(LocalRefusal) as error:
        plan(order(0, 1), None, own(0, {90: 5}), {C1: peer(0, {91: 1})})
    assert error.value.code is Code.ORDER_AMOUNT


def test_an_order_for_a_peers_market_has_no_own_book() -> None:
    made = plan(order(1, 3), None, None, {C1: peer(0, {91: 2, 90: 7})})
    assert (made.parts, made.limit_ticks) == (((C1, 3),), 90)


def test_the_merged_view_adds_up_levels() -> None:
    books = {C1: peer(1, {100: 5, 101: 1}), C2: peer(1, {100: 2})}
    assert merged_depth(own(1, {100: 3, 104: 1}), books, 1, 3) == ((100, 10, 3), (101, 1, 0), (104, 1, 1))
    assert merged_depth(own(0, {90: 3}), {C1: peer(0, {91: 5})}, 0, 1) == ((91, 5, 0),)
    assert merged_depth(own(0, {}), {}, 0, 5) == ()


LEVELS = st.dictionaries(st.integers(90, 99), st.integers(1, 4), max_size=5)


@given(st.sampled_from([0, 1]), LEVELS, LEVELS, LEVELS, st.integers(1, 30), st.none() | st.integers(90, 99))
def test_a_plan_never_trades_through(
    side: int, mine: Levels, first: Levels, second: Levels, lots: int, limit: int | None
) -> None:
    venues: list[tuple[ChannelId | None, Levels]] = [(None, dict(mine)), (C1, dict(first)), (C2, dict(second))]
    books = {C1: peer(1 - side, first), C2: peer(1 - side, second)}
    taken: dict[ChannelId, int] = {}
    prices = []
    for _ in range(lots):  # the model: one lot at a time, at the best price anywhere, own book first
        offers = [
            (price if side == 0 else -price, rank)
            for rank, (_, levels) in enumerate(venues)
            for price in levels
            if limit is None or (price <= limit if side == 0 else price >= limit)
        ]
        if not offers:
            break
        key, rank = min(offers)
        venue, levels = venues[rank]
        price = abs(key)
        prices.append(price)
        levels[price] -= 1
        if not levels[price]:
            del levels[price]
        if venue is not None:
            taken[venue] = taken.get(venue, 0) + 1
    if limit is None and not prices:
        with pytest.raises(LocalRefusal):
            plan(order(side, lots), None, own(1 - side, mine), books)
        return
    made = plan(order(side, lots, limit or 0), limit, own(1 - side, mine), books)
    assert dict(made.parts) == taken
    assert made.limit_ticks == (limit if limit is not None else prices[-1])
