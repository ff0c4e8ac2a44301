"""Two cores on one channel: routing, notices, netting, closing, replay."""

import pytest

from broker.actions import PaidOut, decode
from broker.core import Core
from channel.calls import Status
from channel.errors import LocalRefusal
from channel.orders import TimeInForce
from channel.replay import replay, require_authorised
from channel.transition import Phase, check
from channel.typed import custody_domain
from channel.units import Address
from tests.support.pair import BTC, CHAIN_ID, USD, XLN, Pair, Side, custody_of, market_of, user

BUY, SELL = 0, 1
ALICE, BOB, CAROL = user(11), user(12), user(13)


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.open()
    pair.deposit(pair.a, ALICE, USD, 1_000_000 * 10**6)
    pair.deposit(pair.a, ALICE, BTC, 10 * 10**8)
    for who in (BOB, CAROL):
        pair.deposit(pair.b, who, USD, 1_000_000 * 10**6)
        pair.deposit(pair.b, who, BTC, 10 * 10**8)
    return pair


def owed(pair: Pair, debtor: int, token: Address) -> int:
    positions = [side.core.desks[pair.fixed.channel_id].channel for side in pair.sides]
    values = {channel.position.owed(debtor, token) for channel in positions}
    assert len(values) == 1
    return values.pop()


def balance(side: Side, who: object, token: Address) -> tuple[int, int]:
    found = side.exchange.ledger.balance(who.address, token)  # type: ignore[attr-defined]
    return found.free, found.locked


def test_an_ioc_is_filled_at_the_peer_and_both_sign_it(pair: Pair) -> None:
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 100))
    taker = pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_500, 60, tif=TimeInForce.IOC), remote_lots=60)
    pair.pump()
    order = pair.a.exchange.closed[taker]
    assert (order.status, order.filled_lots, order.filled_quote) == ("filled", 60, 60 * 6_000_000)
    assert owed(pair, 1, BTC) == 60 * 10_000
    assert owed(pair, 0, USD) == 60 * 6_000_000
    assert balance(pair.a, ALICE, BTC) == (10 * 10**8 + 600_000, 0)
    assert balance(pair.a, ALICE, USD) == (10**12 - 360_000_000, 0)  # the better price is free again
    assert balance(pair.b, BOB, USD)[0] == 10**12 + 360_000_000


def test_what_the_peer_does_not_fill_rests_here(pair: Pair) -> None:
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 10))
    order_id = pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 25), remote_lots=25)
    pair.pump()
    order = pair.a.exchange.orders[order_id]
    assert (order.filled_lots, order.local_lots, order.remote) == (10, 15, {})
    assert balance(pair.a, ALICE, USD)[1] == 15 * 6_000_000


def test_an_order_rests_in_the_peers_market_and_is_hit_there(pair: Pair) -> None:
    market_b = market_of(pair.b.signer.address)
    order_id = pair.place(pair.a, pair.order(pair.a, ALICE, SELL, 6_100_000, 30, market=market_b))
    pair.pump()
    channel = pair.b.core.desks[pair.fixed.channel_id].channel
    assert [o.left_lots for o in channel.position.orders.values()] == [30]
    pair.place(pair.b, pair.order(pair.b, BOB, BUY, 6_100_000, 12))
    pair.pump()
    assert pair.a.exchange.orders[order_id].filled_lots == 12
    assert owed(pair, 0, BTC) == 120_000
    pair.cancel(pair.a, order_id, ALICE)
    pair.pump()
    assert pair.a.exchange.closed[order_id].status == "cancelled"
    assert balance(pair.a, ALICE, BTC)[1] == 0


def test_trades_in_both_directions_net_to_one_side(pair: Pair) -> None:
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 10))
    pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 10, tif=TimeInForce.IOC), remote_lots=10)
    pair.pump()
    pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 4))
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 4, tif=TimeInForce.IOC), remote_lots=4)
    pair.pump()
    assert owed(pair, 1, BTC) == 14 * 10_000  # both trades have A buying
    pair.place(pair.b, pair.order(pair.b, CAROL, BUY, 6_000_000, 20))
    pair.place(pair.a, pair.order(pair.a, ALICE, SELL, 6_000_000, 20, tif=TimeInForce.IOC), remote_lots=20)
    pair.pump()
    assert (owed(pair, 1, BTC), owed(pair, 0, BTC)) == (0, 6 * 10_000)
    for side in pair.sides:
        check(side.core.desks[pair.fixed.channel_id].channel)


def test_an_order_beyond_cover_is_not_sent() -> None:
    pair = Pair(lock_amount=1_000 * 10**6)
    pair.open()
    pair.deposit(pair.a, ALICE, USD, 10**12)
    big = pair.order(pair.a, ALICE, BUY, 6_000_000, 10_000, market=market_of(pair.b.signer.address))
    with pytest.raises(LocalRefusal, match="order.uncovered"):
        pair.place(pair.a, big)
    assert balance(pair.a, ALICE, USD) == (10**12, 0)
    order_id = pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 10_000), remote_lots=10_000)
    assert pair.a.exchange.orders[order_id].local_lots == 10_000  # routing falls back to this broker's own book


def test_the_limit_of_unsettled_value_stops_the_venue() -> None:
    pair = Pair(unsettled_limit=100 * 10**6)
    pair.open()
    pair.deposit(pair.a, ALICE, USD, 10**12)
    away = pair.order(pair.a, ALICE, BUY, 6_000_000, 17, market=market_of(pair.b.signer.address))
    with pytest.raises(LocalRefusal, match="order.unsettled_limit"):
        pair.place(pair.a, away)


def test_closing_cancels_everything_and_settles_after_both_payouts(pair: Pair) -> None:
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 10))
    pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 10, tif=TimeInForce.IOC), remote_lots=10)
    resting = pair.order(pair.a, ALICE, SELL, 6_200_000, 30, market=market_of(pair.b.signer.address))
    pair.place(pair.a, resting)
    pair.pump()
    pair.close()
    assert {pair.phase(side) for side in pair.sides} == {Phase.FINAL}
    assert pair.a.exchange.closed[resting.order_id].status == "cancelled"
    channel_id = pair.fixed.channel_id
    for side, sign in ((pair.a, True), (pair.b, False)):
        pair.run(side, PaidOut(channel_id, USD, 60_000_000, sign))
        assert pair.phase(side) is Phase.FINAL
        pair.run(side, PaidOut(channel_id, BTC, 100_000, not sign))
        assert pair.phase(side) is Phase.SETTLED
        assert side.exchange.ledger.totals(BTC).channel_net == 0


def test_the_journal_replays_into_the_same_states_and_authorises_every_fill(pair: Pair) -> None:
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 10))
    pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 7, tif=TimeInForce.IOC), remote_lots=7)
    pair.pump()
    pair.close()
    for side in pair.sides:
        result = replay(pair.fixed, pair.terms, XLN.address, side.records)
        assert result.last is not None
        cosigned = side.core.desks[pair.fixed.channel_id].channel.cosigned
        assert cosigned is not None
        assert result.last.state.state_hash == cosigned.state.state_hash
        assert result.last.state.is_final
        if side is pair.b:  # the venue holds the evidence of its own user's order
            require_authorised(result)


def test_replaying_the_actions_gives_the_same_entries_and_states(pair: Pair) -> None:
    pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 10))
    pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 7, tif=TimeInForce.IOC), remote_lots=7)
    pair.pump()
    for side in pair.sides:
        twin = Core(side.signer, [market_of(side.signer.address)])
        domain = custody_domain(CHAIN_ID, custody_of(side.signer.address))
        for text, now in side.actions:
            twin.execute(decode(text, domain), now)
        assert twin.desks[pair.fixed.channel_id].channel == side.core.desks[pair.fixed.channel_id].channel
        assert twin.exchange.ledger.totals(USD) == side.exchange.ledger.totals(USD)


def test_an_amendment_keeps_its_place_only_when_it_shrinks(pair: Pair) -> None:
    first = pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 10))
    pair.place(pair.b, pair.order(pair.b, CAROL, SELL, 6_000_000, 10))
    smaller = pair.place(pair.b, pair.order(pair.b, BOB, SELL, 6_000_000, 4, replaces=first))
    assert pair.b.exchange.closed[first].status == "replaced"
    assert balance(pair.b, BOB, BTC)[1] == 40_000
    pair.place(pair.a, pair.order(pair.a, ALICE, BUY, 6_000_000, 5, tif=TimeInForce.IOC), remote_lots=5)
    pair.pump()
    assert pair.b.exchange.closed[smaller].filled_lots == 4  # it was still first


def test_notice_statuses_are_the_wire_words() -> None:
    assert {s.value for s in Status} == {"accepted", "filled", "cancelled", "expired"}
