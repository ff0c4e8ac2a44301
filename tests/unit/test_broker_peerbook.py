"""Replicas of peers' books: increments in order or a gap, never crossed, and equal to the book they follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.clob.book import OrderBook, OrderId, Side
from broker.peerbook import MAX_LEVELS, PeerBook
from channel.errors import Code, PeerFault
from channel.units import MarketId, format_hex

MARKET = MarketId(b"\x4d" * 32)


def snapshot(**changes: object) -> dict[str, object]:
    raw = {"market": format_hex(MARKET), "seq": 7, "bids": [[100, 5], [99, 1]], "asks": [[101, 2], [103, 4]]}
    return {**raw, **changes}


def book() -> PeerBook:
    return PeerBook.from_snapshot(snapshot(), MARKET)


def refused(raw: object) -> Code:
    with pytest.raises(PeerFault) as error:
        PeerBook.from_snapshot(raw, MARKET)
    return error.value.code


def test_a_snapshot_is_read() -> None:
    assert (book().seq, book().depth(0, 9), book().depth(1, 1)) == (7, ((100, 5), (99, 1)), ((101, 2),))
    assert (book().best(0), book().best(1), book().level(0, 99), book().level(1, 99)) == (100, 101, 1, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"bids": [[99, 1], [100, 5]]},
        {"bids": [[100, 5], [100, 5]]},
        {"asks": [[103, 1], [101, 1]]},
        {"asks": [[100, 1]]},
        {"bids": [[100, 0]]},
        {"bids": [[0, 1]]},
        {"bids": [[True, 1]]},
        {"bids": [[100]]},
        {"bids": "no"},
        {"seq": -1},
        {"seq": "7"},
        {"market": format_hex(b"\x01" * 32)},
        {"extra": 1},
        {"asks": [[price, 1] for price in range(200, 201 + MAX_LEVELS)]},
    ],
)
def test_a_snapshot_that_cannot_be_is_refused(changes: dict[str, object]) -> None:
    assert refused(snapshot(**changes)) is Code.PARAMS


def test_increments_follow_each_other() -> None:
    replica = book()
    assert replica.apply_increment(8, [["b", 100, 0], ["s", 101, 9], ["b", 98, 3]])
    assert replica.seq == 8
    assert replica.depth(0, 9) == ((99, 1), (98, 3))
    assert replica.depth(1, 9) == ((101, 9), (103, 4))
    assert not replica.apply_increment(8, [["b", 98, 0]])
    assert not replica.apply_increment(3, [["b", 98, 0]])
    assert replica.depth(0, 9) == ((99, 1), (98, 3))


def test_a_gap_asks_for_a_new_subscription() -> None:
    replica = book()
    with pytest.raises(PeerFault) as error:
        replica.apply_increment(9, [["b", 100, 1]])
    assert error.value.code is Code.BOOK_GAP
    assert replica.seq == 7


@pytest.mark.parametrize(
    ("seq", "changes"),
    [
        (8, [["b", 101, 1]]),
        (8, [["b", 98, 3], ["s", 100, 1]]),
        (8, [["x", 98, 3]]),
        (8, [["b", 98]]),
        (8, [["b", 0, 1]]),
        (8, [["b", 98, -1]]),
        (8, [["b", "98", 1]]),
        (8, []),
        (8, None),
        ("8", [["b", 98, 1]]),
        (0, [["b", 98, 1]]),
    ],
)
def test_an_increment_that_cannot_be_changes_nothing(seq: object, changes: object) -> None:
    replica = book()
    with pytest.raises(PeerFault) as error:
        replica.apply_increment(seq, changes)
    assert error.value.code is Code.PARAMS
    assert (replica.seq, replica.depth(0, 9), replica.depth(1, 9)) == (7, book().depth(0, 9), book().depth(1, 9))


def test_the_worst_levels_go_when_there_are_too_many() -> None:
    replica = PeerBook.from_snapshot(snapshot(bids=[[price, 1] for price in range(MAX_LEVELS, 0, -1)], asks=[]))
    assert replica.apply_increment(8, [["b", MAX_LEVELS + 1, 1]])
    assert len(replica.depth(0, 2 * MAX_LEVELS)) == MAX_LEVELS
    assert replica.level(0, 1) == 0
    assert replica.level(0, 2) == 1


ORDERS = st.lists(st.tuples(st.sampled_from(list(Side)), st.integers(1, 12), st.integers(1, 5)), max_size=40)


@given(ORDERS, st.integers(0, 40))
def test_a_replica_equals_the_book_it_follows(orders: list[tuple[Side, int, int]], start: int) -> None:
    source, replica, seq = OrderBook(), PeerBook(MARKET), 0
    for number, (side, price, lots) in enumerate(orders):
        source.place(
            order_id=OrderId(number.to_bytes(32, "big")), owner=b"", side=side, price_ticks=price, lots=lots, rest=True
        )
        changes = [["bs"[int(change_side)], price, lots] for change_side, price, lots in source.drain_changes()]
        if changes:
            seq += 1
            if number < start:
                replica = PeerBook.from_snapshot(
                    snapshot(
                        seq=seq,
                        bids=[list(level) for level in source.depth(Side.BUY, 100)],
                        asks=[list(level) for level in source.depth(Side.SELL, 100)],
                    )
                )
            else:
                assert replica.apply_increment(seq, changes)
    for side in Side:
        assert replica.depth(side, 100) == source.depth(side, 100)
