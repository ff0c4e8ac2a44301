"""The engine on a real store: nothing leaves before its commit, a restart is where the disk is. FAULTS 1, 2, 12, 13."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import broker.engine
from broker.actions import CancelUserOrder, DepositConfirmed, DepositSeen, FreezeChannel, PlaceOrder, Propose
from broker.effects import SendEntry, SendProposal
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault
from channel.orders import SignedOrder, TimeInForce
from channel.transition import Phase
from channel.units import Hash
from node.store import Statement
from tests.support.pair import BTC, USD, user
from tests.support.wires import Line, WiredNode

ALICE, BOB = user(11), user(12)
ASK = 6_000_000


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    """A channel at rest; Bob asks at B, and Alice has money at A."""
    async with Line.open(tmp_path) as line:
        await line.deposit(line.a, ALICE, USD, 10**13)
        await line.deposit(line.b, BOB, BTC, 10**11)
        await line.place(line.b, line.pair.order(line.pair.b, BOB, 1, ASK, 10_000))
        await line.pump()
        line.a.proposes = line.b.proposes = False
        line.a.released.clear()
        yield line


def remote(line: Line, lots: int = 10) -> PlaceOrder:
    signed = line.pair.order(line.pair.a, ALICE, 0, ASK, lots, tif=TimeInForce.IOC)
    return PlaceOrder(signed, ((line.channel_id, lots),), ASK)


@contextlib.contextmanager
def held(node: WiredNode) -> Iterator[None]:
    """The node's disk takes nothing inside the block."""
    with contextlib.closing(sqlite3.connect(node.folder / "broker.sqlite", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


def sent(node: WiredNode) -> int:
    assert node.end is not None
    return len(node.end.sent)


async def test_nothing_is_sent_before_it_is_durable(line: Line) -> None:
    before = sent(line.a)
    with held(line.a):
        placed = line.a.engine.execute(remote(line))
        proposed = line.a.engine.execute(Propose(line.channel_id))
        await asyncio.sleep(0.1)
        assert line.a.core.exchange.orders, "it is executed"
        assert not placed.done()
        assert (line.a.released, sent(line.a)) == ([], before)
    await asyncio.gather(placed, proposed)
    assert next(type(e) for e in line.a.released if isinstance(e, SendEntry | SendProposal)) is SendEntry
    assert sent(line.a) > before


async def test_effects_are_released_in_the_order_of_execution(line: Line) -> None:
    futures = [line.a.engine.execute(remote(line, lots)) for lots in range(1, 30)]
    await asyncio.gather(*futures)
    entries = [effect.entry.seq for effect in line.a.released if isinstance(effect, SendEntry)]
    assert len(entries) == 29
    assert entries == sorted(entries)


async def test_work_after_what_was_executed_waits_for_its_commit(line: Line) -> None:
    done: list[str] = []
    line.a.engine.after(lambda: done.append("nothing waits"))
    assert done == ["nothing waits"]
    with held(line.a):
        line.a.engine.execute(remote(line))
        line.a.engine.after(lambda: done.append("after the commit"))
        await asyncio.sleep(0.05)
        assert done == ["nothing waits"]
    await line.a.engine.durable()
    assert done[1:] == ["after the commit"]


async def test_killed_before_the_commit_nothing_has_happened(line: Line, tmp_path: Path) -> None:
    """FAULT 1: signed, not committed, and so not sent."""
    before = line.a.desk.channel
    frames = sent(line.a)
    with held(line.a):
        line.a.engine.execute(remote(line))
        line.a.engine.execute(Propose(line.channel_id))
        twin = WiredNode(line.a.signer, _copy(line.a.folder, tmp_path), line.clock)
        assert sent(line.a) == frames
    try:
        await twin.start()
        assert twin.desk.channel == before
        assert twin.core.exchange.orders == {}
    finally:
        await twin.stop()


def _copy(folder: Path, tmp_path: Path) -> Path:
    """What is on the disk at this moment, as after a loss of power."""
    (tmp_path / "twin").mkdir()
    with (
        contextlib.closing(sqlite3.connect(f"file:{folder}/broker.sqlite?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "twin" / "broker.sqlite")) as target,
    ):
        source.backup(target)
    return tmp_path / "twin"


async def test_killed_after_the_commit_the_same_bytes_are_there_again(line: Line) -> None:
    """FAULT 2."""
    await line.a.run(remote(line))
    if line.a.desk.channel.is_mover:
        await line.a.run(Propose(line.channel_id))
    channel, resend = line.a.desk.channel, line.a.desk.resend()
    pending = [p.entry for p in channel.pending]
    line.a.released.clear()
    await line.restart(line.a)
    assert line.a.desk.channel == channel
    assert line.a.desk.resend() == resend
    assert [(p.entry, p.entry.signature) for p in line.a.desk.channel.pending] == [(e, e.signature) for e in pending]
    assert line.a.released == [], "replaying sends nothing"


async def test_a_state_is_never_signed_twice_for_one_turn(line: Line) -> None:
    """The row is there already, as if another process had signed: nothing is sent, and the node signs no more."""
    node = line.a if line.a.desk.channel.is_mover else line.b
    taken = remote(line)
    if node is line.a:
        await line.a.run(taken)
    else:
        await line.a.run(taken)
        await line.pump()
    turn = node.desk.channel.next_turn
    row = Statement(
        "INSERT INTO signed (channel, turn, signer, state_hash, is_final) VALUES (?, ?, ?, ?, 0)",
        (line.channel_id, turn, node.signer.address, b"\x01" * 32),
    )
    await node.store.commit([row])
    node.released.clear()
    frames = sent(node)
    with pytest.raises((LocalRefusal, InvariantBroken)) as caught:
        await node.run(Propose(line.channel_id))
    assert caught.value.code is Code.STORAGE
    assert (node.released, sent(node)) == ([], frames)
    assert node.engine.failure is not None
    with pytest.raises(LocalRefusal, match="storage.failed"):
        node.engine.execute(DepositSeen(ALICE.address, USD, 1))
    with pytest.raises(LocalRefusal, match="storage.failed"):
        node.engine.after(lambda: None)
    with pytest.raises(LocalRefusal, match="storage.failed"):
        await node.engine.durable()
    assert await node.store.read("SELECT count(*) FROM journal") != [(0,)], "reads still answer"


async def test_what_is_queued_behind_a_failed_commit_is_not_acknowledged(line: Line) -> None:
    bad = Statement("INSERT INTO signed (channel, turn, signer, state_hash, is_final) VALUES (?, 0, ?, x'00', 0)",
                    (line.channel_id, line.a.signer.address))  # fmt: skip
    first = line.a.engine.execute(DepositSeen(ALICE.address, USD, 1), [bad, bad])
    second = line.a.engine.execute(remote(line))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(r) for r in results] == [LocalRefusal, LocalRefusal]
    assert not [e for e in line.a.released if isinstance(e, SendEntry)]
    before = line.a.engine.rows.actions - 2
    await line.disconnect()
    await line.a.stop()
    assert await line.a.start() == before, "nor is it stored: what it was executed upon is not"
    assert line.a.core.exchange.orders == {}


async def test_refused_actions_leave_no_trace(line: Line) -> None:
    before = await line.a.store.read("SELECT count(*) FROM actions")
    channel = line.a.desk.channel
    for action, kind, code in (
        (CancelUserOrder(Hash(b"\x01" * 32), ALICE.address), LocalRefusal, Code.ORDER_UNKNOWN),
        (_poor(line), LocalRefusal, Code.ORDER_BALANCE),
        (Propose(line.channel_id.__class__(b"\x02" * 32)), PeerFault, Code.CHANNEL_UNKNOWN),
    ):
        with pytest.raises(kind) as caught:
            line.a.engine.execute(action)
        assert caught.value.code is code
    assert await line.a.engine.execute(Propose(line.channel_id)) == [], "nothing to say is nothing to store"
    await line.a.engine.durable()
    assert await line.a.store.read("SELECT count(*) FROM actions") == before
    assert line.a.desk.channel == channel
    assert line.a.engine.failure is None


def _poor(line: Line) -> PlaceOrder:
    signed: SignedOrder = line.pair.order(line.pair.a, BOB, 0, ASK, 1)
    return PlaceOrder(signed, (), ASK)


async def test_only_the_first_of_several_actions_may_be_refused(line: Line) -> None:
    """Else half of them would be executed and none stored: the node stops."""
    good, bad = DepositSeen(ALICE.address, USD, 5), CancelUserOrder(Hash(b"\x01" * 32), ALICE.address)
    with pytest.raises(LocalRefusal):
        line.a.engine.execute_all([bad, good])
    assert line.a.engine.failure is None
    with pytest.raises(InvariantBroken):
        line.a.engine.execute_all([good, bad])
    assert line.a.engine.failure is not None


async def test_a_waiter_that_went_away_does_not_stop_the_others(line: Line) -> None:
    first = line.a.engine.execute(DepositSeen(ALICE.address, USD, 1))
    first.cancel()
    await line.a.engine.execute(DepositConfirmed(ALICE.address, USD, 1))
    assert line.a.engine.failure is None


async def test_too_much_that_waits_for_the_disk_is_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker.engine, "MAX_UNRELEASED", 8)
    with held(line.a):
        waiting = [line.a.engine.execute(DepositSeen(ALICE.address, USD, 1)) for _ in range(8)]
        deposited = line.a.core.exchange.ledger.balance(ALICE.address, USD)
        with pytest.raises(LocalRefusal) as caught:
            line.a.engine.execute(DepositSeen(ALICE.address, USD, 1))
        assert caught.value.code is Code.BUSY
        assert line.a.core.exchange.ledger.balance(ALICE.address, USD) == deposited
        room = asyncio.ensure_future(line.a.engine.room())
        await asyncio.sleep(0)
        assert not room.done(), "peers' messages wait"
    await asyncio.gather(*waiting)
    await asyncio.wait_for(room, 5)


async def test_a_fork_does_not_stop_the_node(line: Line) -> None:
    await line.a.run(FreezeChannel(line.channel_id, Code.FORK.name, "two states"))
    assert line.a.desk.channel.phase is Phase.FROZEN
    await line.a.run(DepositSeen(ALICE.address, USD, 1))


@pytest.mark.parametrize(
    "tamper",
    [
        "UPDATE journal SET record = replace(record, '\"amount\\\":10', '\"amount\\\":11')"
        " WHERE n = (SELECT max(n) FROM journal)",
        "DELETE FROM journal WHERE n = (SELECT max(n) FROM journal)",
        "DELETE FROM actions WHERE n = (SELECT max(n) FROM actions)",
    ],
)
async def test_a_database_that_was_changed_does_not_start(line: Line, tamper: str) -> None:
    """Law D: the actions and the journal must tell the same story."""
    await line.a.run(remote(line))
    await line.disconnect()
    await line.a.stop()
    with contextlib.closing(sqlite3.connect(line.a.folder / "broker.sqlite")) as db, db:
        assert db.execute(tamper).rowcount == 1
        (record,) = db.execute("SELECT record FROM journal WHERE n = (SELECT max(n) FROM journal)").fetchone()
        assert record
    with pytest.raises(InvariantBroken) as caught:
        await line.a.start()
    assert caught.value.code is Code.STORAGE
    await line.a.store.close()
