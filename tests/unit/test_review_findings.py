"""Laws that a review found broken: each test is named after its law."""

import asyncio
from pathlib import Path

import pytest

from broker import exchange as exchanges
from broker.actions import DepositSeen, Expire, FreezeChannel, PeerEntry, PlaceOrder
from broker.core import Core
from broker.engine import Engine
from broker.records import MIGRATIONS
from channel import position, transition
from channel.entry import Entry, entry_digest
from channel.errors import Code, LocalRefusal, PeerFault
from channel.orders import TimeInForce
from channel.signing import Signer
from channel.transition import Phase
from channel.units import Hash
from node.clock import FixedClock
from node.store import Store
from tests.support.pair import BTC, CHAIN_ID, USD, Pair, Side, custody_of, market_of, user

ALICE, BOB = user(21), user(31)


@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.open()
    for side, who in ((made.a, ALICE), (made.b, BOB)):
        made.deposit(side, who, BTC, 10**9)
        made.deposit(side, who, USD, 10**13)
    return made


def freeze(pair: Pair, side: Side) -> None:
    pair.run(side, FreezeChannel(pair.fixed.channel_id, Code.ENTRY_INVALID.name, "a test"))


def away(pair: Pair, side: Side, who: Signer, book_side: int, price: int, lots: int, **more: object) -> Hash:
    """A user's order that rests on the other broker's book."""
    market = market_of(pair.other(side).signer.address)
    return pair.place(side, pair.order(side, who, book_side, price, lots, market=market, **more))  # type: ignore[arg-type]


# -- a frozen channel does not stop the node


def test_frozen_peer_orders_leave_the_book_and_local_trading_goes_on(pair: Pair) -> None:
    away(pair, pair.a, ALICE, 0, 6_000_000, 5)
    pair.pump()
    assert pair.b.exchange.snapshot(pair.b.market.market_id, 10)["bids"]
    freeze(pair, pair.b)
    assert not pair.b.exchange.snapshot(pair.b.market.market_id, 10)["bids"]
    order = pair.place(pair.b, pair.order(pair.b, BOB, 1, 6_000_000, 5))
    assert pair.b.exchange.orders[order].local_lots == 5


def test_frozen_peer_orders_expire_without_stopping_the_node(pair: Pair) -> None:
    away(pair, pair.a, ALICE, 0, 6_000_000, 5, valid_ms=50)
    pair.pump()
    freeze(pair, pair.b)
    pair.now += 1_000
    pair.run(pair.b, Expire())


def test_a_user_cancels_while_the_channel_is_frozen_and_his_funds_stay_reserved(pair: Pair) -> None:
    order_id = away(pair, pair.a, ALICE, 0, 6_000_000, 5)
    pair.pump()
    freeze(pair, pair.a)
    pair.cancel(pair.a, order_id, ALICE)
    assert pair.a.exchange.orders[order_id].remote_lots == 5
    assert pair.a.exchange.ledger.balance(ALICE.address, USD).locked > 0


def test_a_final_channel_is_not_frozen_so_that_payouts_are_still_collected(pair: Pair) -> None:
    pair.close()
    assert pair.phase(pair.a) is Phase.FINAL
    freeze(pair, pair.a)
    assert pair.phase(pair.a) is Phase.FINAL


# -- nothing leaves before it is durable


async def test_what_was_executed_is_not_sent_again_before_it_is_durable(pair: Pair, tmp_path: Path) -> None:
    """A resend reads memory; it must wait for the disk like the first sending."""
    async with Store.open(tmp_path / "broker.sqlite", MIGRATIONS) as store:
        released: list[object] = []
        engine = Engine(pair.a.core, store, FixedClock(pair.now), released.extend)
        engine.rows.fixed[pair.fixed.channel_id] = pair.fixed
        sent: list[str] = []
        done = engine.execute(DepositSeen(ALICE.address, USD, 5))
        engine.after(lambda: sent.append("again"))
        assert sent == []
        running = asyncio.ensure_future(engine.run())
        await done
        await engine.durable()
        assert sent == ["again"]
        running.cancel()


async def test_after_the_disk_has_failed_nothing_is_sent_again(pair: Pair, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "broker.sqlite", MIGRATIONS)
    engine = Engine(pair.a.core, store, FixedClock(pair.now), lambda effects: None)
    await store.close()
    with pytest.raises(LocalRefusal, match="closed"):
        engine.execute(DepositSeen(ALICE.address, USD, 5))
    with pytest.raises(LocalRefusal):
        engine.after(lambda: pytest.fail("sent"))
