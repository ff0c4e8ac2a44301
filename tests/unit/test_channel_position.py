"""The fold of entries, and cover: netting, orders in causal order, what is not skipped, who rounding is against."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from immutables import Map

from channel import position as position_module
from channel.appdata import CollateralLock, lock_id_of
from channel.calls import MAX_BATCH, parse_calls
from channel.entry import Entry
from channel.errors import Code, PeerFault
from channel.exposure import headroom, is_covered, lock_value, owed_value, required_lock
from channel.position import (
    OpenOrder,
    Position,
    apply_entry,
    balance_updates,
    fill_value_of,
    open_orders_summary,
    shift_worst,
)
from channel.terms import BPS, PRICE_SCALE
from channel.units import ZERO_HASH, Hash, format_hex
from tests.support.channels import (
    BTC,
    BUY,
    ETH,
    FIXED,
    SELL,
    SIGNERS,
    TERMS,
    USD,
    body_of,
    create_call,
    make_entry,
    make_fixed,
    make_terms,
    market_of,
    notify_call,
)

A, B = (s.address for s in SIGNERS)
LOT = 10**14
COUNTER = format_hex(b"\x11" * 32)


class Log:
    """Makes one side's entries after another; positions are folded apart."""

    def __init__(self, sender: int) -> None:
        self.sender = sender
        self.entries: list[Entry] = []

    def add(self, *calls: dict[str, Any]) -> Entry:
        prev = self.entries[-1].entry_hash if self.entries else ZERO_HASH
        entry = make_entry(self.sender, body_of(*calls), seq=len(self.entries) + 1, prev=prev)
        self.entries.append(entry)
        return entry


def fold(*entries: Entry, start: Position | None = None) -> Position:
    position = start or Position()
    for entry in entries:
        position = apply_entry(position, entry, parse_calls(entry, FIXED, TERMS), FIXED, TERMS)
    return position


def fill(price: int, lots: int) -> list[Any]:
    return [price, lots, COUNTER]


@pytest.mark.parametrize(
    ("owner", "side", "eth", "usd"),
    [(0, BUY, 4, -4 * 195_000), (0, SELL, -4, 4 * 205_000), (1, BUY, -4, 4 * 195_000), (1, SELL, 4, -4 * 205_000)],
)
def test_a_fill_moves_both_legs(owner: int, side: int, eth: int, usd: int) -> None:
    """The net is what B owes A. A better price than the limit is the owner's."""
    mine, venue = Log(owner), Log(1 - owner)
    opened = fold(mine.add(create_call(owner, side, 200_000, 10)))
    assert opened.net == Map()
    (order,) = opened.orders.values()
    assert (order.owner, order.ref, order.left_lots, order.side) == (owner, MAX_BATCH, 10, side)
    price = 195_000 if side == BUY else 205_000
    filled = fold(venue.add(notify_call(MAX_BATCH, "filled", 6, [fill(price, 4)])), start=opened)
    assert dict(filled.net) == {ETH: eth * LOT, USD: usd}
    assert filled.orders[owner, MAX_BATCH].left_lots == 6
    assert filled.matched_value == 4 * price
    assert filled.owed(0, USD) == max(0, -usd)
    assert filled.owed(1, USD) == max(0, usd)


def test_netting_first_reduces_what_was_owed() -> None:
    a, b = Log(0), Log(1)
    position = fold(a.add(create_call(0, BUY, 200_000, 10)), b.add(notify_call(512, "filled", 0, [fill(200_000, 10)])))
    rows = {r.token: (r.holder, r.owner, r.locked, r.available) for r in balance_updates(position, FIXED)}
    assert rows == {USD: (A, B, 2_000_000, 0), ETH: (B, A, 10 * LOT, 0)}
    position = fold(
        b.add(create_call(1, BUY, 100_000, 30)),
        a.add(notify_call(1024, "filled", 0, [fill(100_000, 30)])),
        start=position,
    )
    rows = {r.token: (r.holder, r.owner, r.locked, r.available) for r in balance_updates(position, FIXED)}
    assert rows == {USD: (B, A, 1_000_000, 0), ETH: (A, B, 20 * LOT, 0)}
    position = fold(
        a.add(create_call(0, BUY, 50_000, 20)),
        b.add(notify_call(1536, "filled", 0, [fill(50_000, 20)])),
        start=position,
    )
    assert dict(position.net) == {}
    assert balance_updates(position, FIXED) == []
    assert not any(position.worst.values())
    assert position.open_counts == (0, 0)


def test_a_batch_is_folded_in_its_order() -> None:
    a, b = Log(0), Log(1)
    position = fold(
        a.add(create_call(0, BUY, 200_000, 10, nonce=1), create_call(0, SELL, 210_000, 5, nonce=2)),
        b.add(
            notify_call(512, "accepted", 10),
            notify_call(512, "filled", 7, [fill(200_000, 2), fill(199_000, 1)]),
            notify_call(513, "cancelled", 3, [fill(210_000, 2)]),
            notify_call(512, "expired", 7),
        ),
    )
    assert dict(position.net) == {ETH: LOT, USD: -2 * 200_000 - 199_000 + 2 * 210_000}
    assert position.orders == Map()


def test_the_summary_of_open_orders() -> None:
    a, b = Log(0), Log(1)
    position = fold(
        a.add(*(create_call(0, BUY, 200_000 + n, 10, nonce=n) for n in range(3)), create_call(0, SELL, 9, 1)),
        b.add(notify_call(514, "filled", 4, [fill(200_002, 6)]), create_call(1, BUY, 5, 2)),
    )
    rows = {(r.owner, r.side): r for r in open_orders_summary(position, FIXED)}
    assert set(rows) == {(A, BUY), (A, SELL), (B, BUY)}
    buys = rows[A, BUY]
    assert (buys.holder, buys.market_id) == (B, market_of(1).market_id)
    assert (buys.base, buys.low_ticks, buys.high_ticks) == (24 * LOT, 200_000, 200_002)
    assert buys.quote == 10 * 200_000 + 10 * 200_001 + 4 * 200_002
    assert (rows[B, BUY].holder, rows[B, BUY].base) == (A, 2 * LOT)


@pytest.mark.parametrize(
    "call",
    [
        notify_call(513, "accepted", 10),
        notify_call(1024, "cancelled", 10),
        notify_call(512, "accepted", 9),
        notify_call(512, "accepted", 9, [fill(200_000, 1)]),
        notify_call(512, "filled", 10),
        notify_call(512, "filled", 9, [fill(200_001, 1)]),
        notify_call(512, "filled", 0, [fill(200_000, 11)]),
        notify_call(512, "filled", 10, [fill(200_000, 1)]),
        notify_call(512, "filled", 8, [fill(200_000, 1)]),
        notify_call(512, "cancelled", 0),
    ],
)
def test_a_notice_that_does_not_apply_raises(call: dict[str, Any]) -> None:
    opened = fold(Log(0).add(create_call(0, BUY, 200_000, 10)))
    with pytest.raises(PeerFault) as caught:
        fold(Log(1).add(call), start=opened)
    assert caught.value.code is Code.ENTRY_INVALID


def test_only_the_venue_notifies_and_only_once() -> None:
    a, b = Log(0), Log(1)
    opened = fold(a.add(create_call(0, BUY, 200_000, 10)))
    with pytest.raises(PeerFault, match="not open"):
        fold(a.add(notify_call(512, "cancelled", 10)), start=opened)
    closed = fold(b.add(notify_call(512, "cancelled", 10)), start=opened)
    with pytest.raises(PeerFault, match="not open"):
        fold(b.add(notify_call(512, "cancelled", 10)), start=closed)


def test_sells_have_a_lower_limit() -> None:
    opened = fold(Log(0).add(create_call(0, SELL, 200_000, 10)))
    with pytest.raises(PeerFault, match="beyond its limit"):
        fold(Log(1).add(notify_call(512, "filled", 9, [fill(199_999, 1)])), start=opened)


def test_sequence_and_chain() -> None:
    a = Log(0)
    first, second = a.add(create_call(0, BUY, 1, 1)), a.add(create_call(0, BUY, 1, 1))
    for entries, code in (
        ((second,), Code.ENTRY_GAP),
        ((first, first), Code.ENTRY_GAP),
        ((first, make_entry(0, second.body, seq=2)), Code.ENTRY_PREV),
        ((make_entry(0, "{}", prev=Hash(b"\1" * 32)),), Code.ENTRY_PREV),
        ((make_entry(0, "{}", fixed=make_fixed(channel_nonce=1)),), Code.ENTRY_INVALID),
    ):
        with pytest.raises(PeerFault) as caught:
            fold(*entries)
        assert caught.value.code is code
    position = fold(first, second)
    assert position.last_seq == (2, 0)
    assert position.last_hash == (second.entry_hash, ZERO_HASH)


def test_what_is_void_or_only_asked_has_no_effect() -> None:
    a = Log(0)
    cancel = {"jsonrpc": "2.0", "id": 1, "method": "order.update", "params": {"op": "cancel_all"}}
    subscribe = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "orderbook.subscribe",
        "params": {"market": format_hex(market_of(1).market_id)},
    }
    position = fold(a.add(create_call(0, BUY, 2, 10)))
    after = fold(a.add(cancel, subscribe, {"jsonrpc": "2.0", "method": "no"}), start=position)
    assert replace(after, last_seq=position.last_seq, last_hash=position.last_hash) == position


def test_open_orders_are_bounded_for_each_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_module, "MAX_OPEN_ORDERS", 2)
    a, b = Log(0), Log(1)
    calls = [create_call(0, BUY, 1, 1, nonce=n) for n in range(2)]
    position = fold(a.add(*calls), b.add(create_call(1, BUY, 1, 1), create_call(1, BUY, 1, 1)))
    assert position.open_counts == (2, 2)
    with pytest.raises(PeerFault) as caught:
        fold(a.add(create_call(0, BUY, 1, 1)), start=position)
    assert caught.value.code is Code.ENTRY_INVALID


# -- interleavings


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[Entry, int]], list[tuple[Entry, int]]]:
    """Entries of both sides as two honest nodes make them. With each, how many of the other's its sender had seen."""
    logs: tuple[list[tuple[Entry, int]], list[tuple[Entry, int]]] = ([], [])
    views, seen = [Position(), Position()], [0, 0]
    makers = (Log(0), Log(1))
    for _ in range(draw(st.integers(2, 14))):
        by = draw(st.sampled_from((0, 1)))
        for entry, _ in logs[1 - by][seen[by] : draw(st.integers(seen[by], len(logs[1 - by])))]:
            views[by] = fold(entry, start=views[by])
            seen[by] += 1
        mine = [o for o in views[by].orders.values() if o.owner != by]
        if mine and draw(st.booleans()):
            order = draw(st.sampled_from(mine))
            lots = draw(st.integers(0, order.left_lots))
            status = draw(st.sampled_from(("filled", "cancelled"))) if lots else "cancelled"
            fills = [fill(order.price_ticks, lots)] if lots else []
            entry = makers[by].add(notify_call(order.ref, status, order.left_lots - lots, fills))
        else:
            side, price = draw(st.sampled_from((BUY, SELL))), draw(st.integers(1, 1000))
            entry = makers[by].add(create_call(by, side, price, draw(st.integers(1, 20))))
        views[by] = fold(entry, start=views[by])
        logs[by].append((entry, seen[by]))
    return logs


@given(histories(), st.data())
@settings(max_examples=40)
def test_every_causal_interleaving_folds_to_the_same(
    logs: tuple[list[tuple[Entry, int]], list[tuple[Entry, int]]], data: st.DataObject
) -> None:
    results = []
    for _ in range(3):
        done, position = [0, 0], Position()
        while done != [len(logs[0]), len(logs[1])]:
            ready = [by for by in (0, 1) if done[by] < len(logs[by]) and logs[by][done[by]][1] <= done[1 - by]]
            by = data.draw(st.sampled_from(ready))
            position = fold(logs[by][done[by]][0], start=position)
            done[by] += 1
        results.append(position)
    assert results[0] == results[1] == results[2]
    left = [order.left_lots for order in results[0].orders.values()]
    assert all(lots > 0 for lots in left)
    assert sum(results[0].open_counts) == len(left)
    assert all(amount >= 0 for amount in results[0].worst.values())


# -- cover


def lock(amount: int, token: Any = USD) -> CollateralLock:
    return CollateralLock(
        owner=A, lock_id=lock_id_of(FIXED.channel_id, A), chain_id=1, token=token, available=0, locked=amount
    )


def test_open_orders_count_in_full_and_offset_nothing() -> None:
    a, b = Log(0), Log(1)
    position = fold(
        a.add(create_call(0, BUY, 200_000, 10), create_call(0, SELL, 210_000, 10)),
        b.add(create_call(1, BUY, 150_000, 1)),
    )
    usd_per_lot_of_eth = 2_000 * 10**6 // 10**4
    assert owed_value(position, 0, TERMS) == 10 * 200_000 + 11 * usd_per_lot_of_eth
    assert owed_value(position, 1, TERMS) == 10 * 210_000 + 150_000 + 10 * usd_per_lot_of_eth
    order = OpenOrder(0, 1, market_of(1), BUY, 5, 7, ZERO_HASH)
    worst = shift_worst(shift_worst(position.worst, order, 7), order, -7)
    assert dict(worst) == dict(position.worst)


def test_what_is_owed_rounds_up_and_what_covers_rounds_down() -> None:
    terms = make_terms(prices=((ETH, 1), (USD, PRICE_SCALE), (BTC, PRICE_SCALE // 3)), cover_ratio_bps=BPS)
    one_wei = Position(net=Map({ETH: -1}))
    assert owed_value(one_wei, 0, terms) == 1
    assert owed_value(one_wei, 1, terms) == 0
    assert lock_value(None, terms) == 0
    assert lock_value(lock(3, BTC), terms) == 0  # 3 x 0.9 / 3 is below one
    assert lock_value(lock(10, USD), terms) == 10
    assert lock_value(lock(10**18, ETH), terms) == 0  # after its haircut
    assert fill_value_of(BTC, 1, terms) == 1


@given(
    st.integers(0, 10**30),
    st.integers(BPS, 100 * BPS),
    st.sampled_from((ETH, USD, BTC)),
    st.integers(1, 10**24),
)
def test_the_required_lock_is_the_least_that_covers(value: int, ratio_bps: int, token: Any, price: int) -> None:
    prices = tuple((t, PRICE_SCALE if t == USD else price) for t in (ETH, USD, BTC))
    terms = make_terms(prices=prices, cover_ratio_bps=ratio_bps)
    position = Position(net=Map({USD: -value}))
    assert owed_value(position, 0, terms) == value
    amount = required_lock(value, token, terms)
    assert is_covered(position, 0, lock(amount, token), terms)
    assert headroom(position, 0, lock(amount, token), terms) >= 0
    if amount:
        assert not is_covered(position, 0, lock(amount - 1, token), terms)
        assert headroom(position, 0, lock(amount - 1, token), terms) < 0


def test_without_a_lock_only_nothing_is_covered() -> None:
    assert is_covered(Position(), 0, None, TERMS)
    assert not is_covered(Position(net=Map({USD: -1})), 0, None, TERMS)
    assert is_covered(Position(net=Map({USD: -1})), 1, None, TERMS)
