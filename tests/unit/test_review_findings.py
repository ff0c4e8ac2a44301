"""Laws that a review found broken: each test is named after its law."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from broker import desk as desks
from broker import exchange as exchanges
from broker import wire as wires
from broker.actions import DepositSeen, Expire, FreezeChannel, OpenChannel, PeerEntry, Withdraw
from broker.chainwork import ChainWork
from broker.effects import SendEntry
from broker.engine import Engine
from broker.exchange import Withdrawal
from broker.records import MIGRATIONS
from broker.wire import Wire
from channel import position, transition
from channel.entry import MAX_BODY_BYTES, Entry
from channel.errors import Code, LocalRefusal
from channel.journal import record_to_json
from channel.signing import Signer
from channel.state import FixedPart
from channel.strictjson import dumps, loads
from channel.transition import Phase
from channel.units import ZERO_HASH, Hash, format_hex
from contracts.client import ChainClient
from contracts.events import LockRegistered, LogRef
from node.clock import FixedClock
from node.store import Store
from rpc import jsonrpc
from rpc.transport import DEFAULT_LIMITS, Connection
from tests.support.memory_node import write_and_load
from tests.support.pair import BTC, COLLATERAL, USD, XLN, Pair, Side, custody_of, market_of, user
from xln.adjudication import MAX_RECORD_BYTES

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


# -- the chain


async def test_a_lock_for_other_terms_on_chain_voids_the_channel_and_not_the_node(tmp_path: Path) -> None:
    """The peer can make XLN sign its lock for other terms of the same channelId, and register it."""
    pair = Pair()
    pair.run(pair.a, OpenChannel(pair.fixed, pair.terms))
    async with Store.open(tmp_path / "broker.sqlite", MIGRATIONS) as store:
        engine = Engine(pair.a.core, store, FixedClock(pair.now), lambda effects: None)
        engine.rows.fixed[pair.fixed.channel_id] = pair.fixed
        config = write_and_load(tmp_path / "node")
        client = cast(ChainClient, None)
        work = ChainWork(config, engine, pair.a.signer, client, custody_of(pair.a.signer.address))
        ref = LogRef(
            contract=COLLATERAL, block_number=1, block_hash=Hash(b"\1" * 32), tx_hash=Hash(b"\2" * 32), log_index=0
        )
        event = LockRegistered(
            ref=ref,
            lock_id=Hash(b"\3" * 32),
            channel_id=pair.fixed.channel_id,
            owner=pair.b.signer.address,
            token=USD,
            amount=1,
            terms_hash=Hash(b"\7" * 32),
            expiry_unix_s=10,
            open_by_unix_s=5,
        )
        actions = work._confirmed(event, [])
        assert [type(a) for a in actions] == [FreezeChannel]
        pair.run(pair.a, actions[0])
        assert pair.phase(pair.a) is Phase.FROZEN
        # and nobody but XlnCollateral registers locks
        forged = replace(event, ref=replace(ref, contract=custody_of(pair.b.signer.address)))
        assert work._confirmed(forged, []) == []


async def test_a_withdrawal_is_not_sent_before_it_is_durable(pair: Pair, tmp_path: Path) -> None:
    async with Store.open(tmp_path / "broker.sqlite", MIGRATIONS) as store:
        engine = Engine(pair.a.core, store, FixedClock(pair.now), lambda effects: None)
        config = write_and_load(tmp_path / "node")
        work = ChainWork(config, engine, pair.a.signer, cast(ChainClient, None), custody_of(pair.a.signer.address))
        request = Withdrawal(Hash(b"\5" * 32), ALICE.address, USD, 5, ALICE.address, 2**40, b"s" * 65)
        engine.execute(Withdraw(request))
        work._serve_withdrawals()
        assert work._withdrawing == {}
        work.approve(request.withdrawal_id)
        work._serve_withdrawals()
        assert list(work._withdrawing) == [request.withdrawal_id]
        await work.stop_work()


# -- own entries always apply, and what a peer sends is bounded


def test_the_4097th_order_at_a_peer_is_refused_and_does_not_stop_the_node(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(position, "MAX_OPEN_ORDERS", 2)
    monkeypatch.setattr(desks, "MAX_OPEN_ORDERS", 2)
    for _ in range(2):
        away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    with pytest.raises(LocalRefusal) as refused:
        away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    assert refused.value.code is Code.ORDER_LIMIT
    part = pair.place(pair.a, pair.order(pair.a, ALICE, 0, 6_000_000, 4), remote_lots=2)
    assert pair.a.exchange.orders[part].local_lots == 4, "what the channel does not take stays here"


def test_own_notices_fit_when_the_peers_entries_have_filled_the_channel(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transition, "MAX_PENDING", 1)
    away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    away_entry = pair.a.outbox.popleft()
    assert isinstance(away_entry, SendEntry)
    pair.run(pair.b, PeerEntry(away_entry.entry))  # taken, and answered with a notice
    assert len(pair.b.core.desks[pair.fixed.channel_id].channel.pending) == 2
    with pytest.raises(LocalRefusal) as refused:
        away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    assert refused.value.code is Code.BUSY


def test_a_peer_that_signs_no_turn_does_not_fill_the_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transition, "MAX_PENDING_BYTES", 300)
    away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    pair.run(pair.b, PeerEntry(cast(SendEntry, pair.a.outbox.popleft()).entry))
    monkeypatch.setattr(transition, "MAX_PENDING_BYTES", 2**30)
    away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    entry = cast(SendEntry, pair.a.outbox.popleft()).entry
    monkeypatch.setattr(transition, "MAX_PENDING_BYTES", 300)
    with pytest.raises(LocalRefusal) as refused:
        pair.run(pair.b, PeerEntry(entry))
    assert refused.value.code is Code.BUSY
    monkeypatch.setattr(transition, "MAX_PENDING_BYTES", 2**30)
    pair.run(pair.b, PeerEntry(entry))
    pair.pump()
    for side in pair.sides:
        channel = side.core.desks[pair.fixed.channel_id].channel
        assert channel.pending == ()
        assert channel.pending_bytes == 0


def test_a_second_cancel_of_one_order_adds_nothing_to_the_journal(pair: Pair) -> None:
    order_id = away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    pair.cancel(pair.a, order_id, ALICE)
    sent = len(pair.a.sent_entries)
    pair.cancel(pair.a, order_id, ALICE)
    assert len(pair.a.sent_entries) == sent


def test_an_order_for_a_full_book_is_refused_and_changes_nothing(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "MAX_RESTING_ORDERS", 1)
    pair.place(pair.a, pair.order(pair.a, ALICE, 0, 6_000_000, 1))
    before = pair.a.exchange.ledger.balance(ALICE.address, USD)
    signed = pair.order(pair.a, ALICE, 0, 6_000_000, 1)
    with pytest.raises(LocalRefusal) as refused:
        pair.place(pair.a, signed)
    assert refused.value.code is Code.BUSY
    assert pair.a.exchange.ledger.balance(ALICE.address, USD) == before
    assert signed.order_id not in pair.a.exchange.orders


def test_closed_orders_of_a_peer_leave_no_expiries_behind(pair: Pair) -> None:
    for _ in range(30):
        order_id = away(pair, pair.a, ALICE, 0, 6_000_000, 1, valid_ms=10**8)
        pair.pump()
        pair.cancel(pair.a, order_id, ALICE)
        pair.pump()
    exchange = pair.b.exchange
    exchange._expiries += [(2**53 - n, Hash(n.to_bytes(32, "big"))) for n in range(2000)]
    away(pair, pair.a, ALICE, 0, 6_000_000, 1, valid_ms=10**8)
    pair.pump()
    assert len(exchange._expiries) == 1


def test_one_entry_gets_one_snapshot_of_a_book(pair: Pair) -> None:
    desk = pair.a.core.desks[pair.fixed.channel_id]
    for _ in range(5):
        desk.add_call("orderbook.subscribe", {"market": format_hex(pair.b.market.market_id)}, pair.now, answered=True)
    effects = desk.flush(pair.now)
    entry = next(e.entry for e in effects if isinstance(e, SendEntry))
    pair.run(pair.b, PeerEntry(entry))
    answers = pair.b.answers[-5:]
    assert [a.error is None for a in answers] == [True, False, False, False, False]


# -- a channel that was never opened does not keep the node from opening another


def later(pair: Pair) -> OpenChannel:
    fixed = FixedPart(
        chain_id=pair.fixed.chain_id,
        participants=pair.fixed.participants,
        channel_nonce=pair.fixed.channel_nonce + 1,
        app_definition=pair.fixed.app_definition,
        challenge_duration_s=pair.fixed.challenge_duration_s,
    )
    return OpenChannel(fixed, pair.terms)


def test_a_channel_frozen_before_its_first_entry_makes_room_for_another() -> None:
    pair = Pair()
    pair.run(pair.a, OpenChannel(pair.fixed, pair.terms))
    with pytest.raises(LocalRefusal) as refused:
        pair.run(pair.a, later(pair))
    assert refused.value.code is Code.CHANNEL_PHASE
    freeze(pair, pair.a)
    pair.run(pair.a, later(pair))
    assert len(pair.a.core.desks) == 2


def test_a_channel_frozen_with_entries_keeps_its_place(pair: Pair) -> None:
    away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    freeze(pair, pair.a)
    with pytest.raises(LocalRefusal) as refused:
        pair.run(pair.a, later(pair))
    assert refused.value.code is Code.CHANNEL_PHASE


@pytest.mark.parametrize("character", ["\x01", '"', "\\", "ü"])
def test_the_longest_body_of_a_peer_still_reaches_xln(character: str) -> None:
    """Otherwise one entry could keep a channel from ever being attested."""
    pair = Pair()
    body = character * (MAX_BODY_BYTES // len(character.encode()))
    entry = Entry(
        sender=pair.b.signer.address, to=pair.a.signer.address, channel_id=pair.fixed.channel_id, seq=2**53 - 1,
        prev=ZERO_HASH, ts_ms=2**53 - 1, body=body, signature=bytes(65), entry_hash=ZERO_HASH,
    )  # fmt: skip
    record = dumps(record_to_json(entry, pair.fixed))
    assert len(record.encode()) <= MAX_RECORD_BYTES
    params = {"ch": format_hex(pair.fixed.channel_id), "at": 2**53 - 1, "records": [record]}
    assert len(jsonrpc.request("r1000000", "xln.journal", params)) <= DEFAULT_LIMITS.frame_bytes


async def test_a_long_queue_is_sent_in_parts_that_fit_the_outbox(pair: Pair, tmp_path: Path) -> None:
    """All at once would overflow it, cut the connection, and so never arrive."""
    for _ in range(20):
        away(pair, pair.a, ALICE, 0, 6_000_000, 1)
    desk = pair.a.core.desks[pair.fixed.channel_id]
    entries = [p.entry for p in desk.channel.pending]
    sent: list[str] = []

    class Outbox:
        def send_nowait(self, payload: str) -> None:
            sent.append(payload)

    async with Store.open(tmp_path / "broker.sqlite", MIGRATIONS) as store:
        engine = Engine(pair.a.core, store, FixedClock(pair.now), lambda effects: None)
        wire = Wire(engine, pair.a.signer, XLN.address, {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wires, "RESEND_BYTES", 5_000)
            wire._send_missing(cast(Connection, Outbox()), desk, entries, [])
    assert 0 < len(sent) < 20
    assert sum(map(len, sent)) <= 5_000
    assert [loads(text, max_bytes=10**6)["seq"] for text in sent] == list(range(1, len(sent) + 1))  # type: ignore[index]
