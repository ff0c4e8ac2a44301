"""The wire between two brokers' engines, with real stores: what is lost, doubled, reordered, or not to be believed."""

import asyncio
import json
import random
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.actions import FreezeChannel, SubscribeBook
from channel.calls import MAX_BATCH
from channel.entry import Entry, entry_digest, entry_to_json
from channel.errors import Code
from channel.orders import SignedOrder, TimeInForce
from channel.signing import Signer, eth_sign_digest
from channel.strictjson import dumpb, loads
from channel.transition import Phase
from channel.typed import REFUSAL, SYNC
from channel.units import ZERO_HASH, Hash, format_hex
from rpc import jsonrpc
from tests.support.pair import BTC, USD, user
from tests.support.wires import MAX_FRAME, Line, WiredNode

ALICE, BOB = user(11), user(12)
ASK = 6_000_000


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    async with Line.open(tmp_path) as line:
        await line.deposit(line.a, ALICE, USD, 10**13)
        await line.deposit(line.b, BOB, BTC, 10**11)
        await line.place(line.b, line.pair.order(line.pair.b, BOB, 1, ASK, 10_000))
        await line.pump()
        yield line


def taker(line: Line, lots: int = 10) -> SignedOrder:
    return line.pair.order(line.pair.a, ALICE, 0, ASK, lots, tif=TimeInForce.IOC)


async def take(line: Line, lots: int = 10) -> SignedOrder:
    signed = taker(line, lots)
    await line.place(line.a, signed, lots)
    return signed


def filled(line: Line, signed: SignedOrder) -> int:
    exchange = line.a.core.exchange
    live = exchange.orders.get(signed.order_id) or exchange.closed[signed.order_id]
    return live.filled_lots


def value(frame: bytes) -> Any:
    return loads(frame, max_bytes=MAX_FRAME)


def method(frame: bytes) -> str:
    found = value(frame)
    return "entry" if "body" in found else str(found.get("method", "response"))


def some(name: str, parity: int | None = None, into: list[bytes] | None = None) -> Callable[[bytes], bool]:
    """Loses the first few of a kind (of turns of that parity): a session that goes on cannot lose for ever."""
    left = 5

    def lose(frame: bytes) -> bool:
        nonlocal left
        wrong = method(frame) != name or (parity is not None and value(frame)["params"]["turn"] % 2 != parity)
        if left == 0 or wrong:
            return False
        left -= 1
        if into is not None:
            into.append(frame)
        return True

    return lose


def rows(node: WiredNode, query: str) -> list[Any]:
    with sqlite3.connect(node.folder / "broker.sqlite") as db:
        found = db.execute(query).fetchall()
    db.close()
    return found


async def answers_to(line: Line, sender: WiredNode, frame: object) -> list[Any]:
    """What the other side sends back to one frame made by hand."""
    receiver = line.other(sender)
    assert receiver.end is not None
    first = len(receiver.end.sent)
    await line.deliver(sender, frame if isinstance(frame, bytes) else dumpb(frame))
    await line.settle()
    return [value(data) for data in receiver.end.sent[first:]]


async def code_of(line: Line, sender: WiredNode, name: str, params: dict[str, Any]) -> str:
    request = {"jsonrpc": "2.0", "id": "x", "method": name, "params": params}
    (answer,) = [a for a in await answers_to(line, sender, request) if a.get("id") == "x"]
    return str(answer["error"]["data"]["code"])


def made(node: WiredNode, body: str, seq: int, prev: Hash) -> Entry:
    """An entry signed with the node's key."""
    desk = node.desk
    fields: dict[str, Any] = {
        "to": desk.peer, "channel_id": desk.channel_id, "seq": seq, "prev": prev, "ts_ms": 1, "body": body,
    }  # fmt: skip
    digest = entry_digest(desk.domain, **fields)
    return Entry(sender=node.signer.address, signature=node.signer.sign(digest), entry_hash=digest, **fields)


async def make_mover(line: Line, node: WiredNode) -> None:
    """At rest, with the next turn the node's."""
    if not node.desk.channel.is_mover:
        market = next(m for m in node.desk.channel.terms.markets if m.holder == node.desk.peer)
        await node.run(SubscribeBook(line.channel_id, Hash(market.market_id), True))
        await line.pump()
    assert node.desk.channel.is_mover


# -- what the network does


@pytest.mark.parametrize("lost", ["entry", "channel.propose", "channel.countersign", "response"])
@pytest.mark.parametrize("restarted", [None, "a", "b"])
async def test_what_is_lost_is_recovered_by_the_next_sync(line: Line, lost: str, restarted: str | None) -> None:
    """FAULTS 2, 3, 4, 11: whatever kind of message is lost, and whoever starts again."""
    signed = await take(line)
    await line.pump(lose=some(lost))
    if restarted is not None:
        await line.restart(line.a if restarted == "a" else line.b)
    await line.reconnect()
    await line.pump()
    line.agree()
    assert filled(line, signed) == 10
    again = await take(line)
    await line.pump()
    line.agree()
    assert filled(line, again) == 10


@pytest.mark.parametrize("name", ["entry", "channel.propose"])
async def test_what_is_sent_again_is_the_same_to_the_byte(line: Line, name: str) -> None:
    """FAULT 2: also after both were killed."""
    await take(line)
    lost: list[bytes] = []
    await line.pump(lose=some(name, into=lost))
    first = {_key(frame): frame for frame in lost}
    for node in line.nodes:
        await line.restart(node)
    await line.connect()
    again: list[bytes] = []
    await line.pump(lose=lambda frame: bool(again.append(frame)))
    repeated = [frame for frame in again if method(frame) == name and _key(frame) in first]
    assert repeated
    assert all(frame == first[_key(frame)] for frame in repeated)
    line.agree()


def _key(frame: bytes) -> tuple[Any, ...]:
    """What must have the same bytes for ever: an entry by its number, a proposal by its turn."""
    found = value(frame)
    return (
        (found["to"], found["seq"]) if "body" in found else (found.get("method"), found.get("params", {}).get("turn"))
    )


async def test_everything_twice_is_executed_once(line: Line) -> None:
    """FAULT 5."""
    signed = await take(line)
    for _ in range(1_000):
        await line.settle()
        sender = next((n for n in line.nodes if n.end is not None and n.end.outbox), None)
        if sender is None:
            for node in line.nodes:
                await line.propose(node)
            await line.settle()
            if not any(n.end is not None and n.end.outbox for n in line.nodes):
                break
            continue
        assert sender.end is not None
        frame = sender.end.outbox[0]
        await line.deliver(sender)
        if "r" not in str(value(frame).get("id", "")):
            await line.deliver(sender, frame)
    line.agree()
    assert filled(line, signed) == 10
    assert rows(line.a, "SELECT count(*) FROM evidence") == [(0,)]


async def test_entries_out_of_order_are_asked_for_again(line: Line) -> None:
    """FAULT 6."""
    orders = [await take(line, lots) for lots in (3, 4, 5)]
    await line.settle()
    assert line.a.end is not None
    line.a.end.outbox.rotate(1)
    assert [method(frame) for frame in line.a.end.outbox][:2] == ["entry", "entry"]
    gap = line.a.end.outbox[0]
    (answer, *_) = await answers_to(line, line.a, line.a.end.outbox.popleft())
    assert answer["error"]["data"]["code"] == "entry.gap"
    assert answer["error"]["data"]["seq"] == value(gap)["seq"]
    await line.pump()
    line.agree()
    assert [filled(line, signed) for signed in orders] == [3, 4, 5]


@pytest.mark.parametrize("seed", range(12))
async def test_any_loss_and_restart_heals(line: Line, seed: int) -> None:
    """Laws C, M, V after a seeded run of trades, losses, repetitions, cuts and restarts."""
    rng = random.Random(seed)
    orders = []
    turns = [0, 0]
    for _ in range(25):
        match rng.randrange(6):
            case 0 | 1:
                orders.append(await take(line, rng.randint(1, 20)))
            case 2:
                await line.restart(rng.choice(line.nodes))
                await line.connect()
            case 3:
                await line.reconnect()
            case _:
                await line.pump(lose=lambda _: rng.random() < 0.15)
        for index, node in enumerate(line.nodes):
            cosigned = node.desk.channel.cosigned
            assert cosigned is not None
            assert cosigned.state.turn >= turns[index], "signed turns never fall"
            turns[index] = cosigned.state.turn
    await line.reconnect()
    await line.pump()
    line.agree()
    for signed in orders:
        live = line.a.core.exchange.closed[signed.order_id]
        assert live.filled_lots + live.cancelled_lots == signed.order.amount_lots
    one, other = (dict(rows(n, "SELECT turn, state_hash FROM signed WHERE turn > 1")) for n in line.nodes)
    both = one.keys() & other.keys()
    last = line.a.desk.channel.cosigned
    assert last is not None
    assert last.state.turn in both
    assert all(one[turn] == other[turn] for turn in both), "no turn is signed in two ways"
    # Law D: what is stored executes into the same.
    for node in line.nodes:
        channel = node.desk.channel
        await line.restart(node)
        assert node.desk.channel == channel


# -- who is not to be believed


async def test_nothing_is_sent_before_the_sync(line: Line) -> None:
    await line.disconnect()
    signed = await take(line)
    assert line.a.core.exchange.orders[signed.order_id].remote, "it is on its way as soon as there is one"
    await line.connect()
    assert line.a.end is not None
    await line.settle()
    assert [method(frame) for frame in line.a.end.sent] == ["channel.sync"]
    await line.pump()
    assert filled(line, signed) == 10


async def test_a_used_seq_with_other_bytes_before_and_after_the_first_is_durable(line: Line) -> None:
    desk = line.a.desk
    seq, prev = desk.channel.view.last_seq[0], ZERO_HASH
    other = made(line.a, '{"jsonrpc":"2.0","method":"order.update","params":{"op":"cancel_all"}}', seq, prev)
    (answer,) = await answers_to(line, line.a, entry_to_json(other))
    assert answer["error"]["data"]["code"] == "entry.equivocation"

    await take(line)
    await line.settle()
    assert line.a.end is not None
    entry = line.a.end.outbox.popleft()
    raw = value(entry)
    twin = made(
        line.a, raw["body"].replace('"amount":10', '"amount":11'), raw["seq"], Hash(bytes.fromhex(raw["prev"][2:]))
    )
    with sqlite3.connect(line.b.folder / "broker.sqlite", isolation_level=None) as held:
        held.execute("BEGIN IMMEDIATE")  # B cannot commit
        await line.deliver(line.a, entry)
        judged = asyncio.create_task(answers_to(line, line.a, entry_to_json(twin)))
        await asyncio.sleep(0.05)
        assert not judged.done()
        held.execute("ROLLBACK")
        found = await judged
    held.close()
    assert [a["error"]["data"]["code"] for a in found if "error" in a] == ["entry.equivocation"]
    kept = [json.loads(text) for (text,) in rows(line.b, "SELECT bytes FROM evidence ORDER BY id")]
    assert [k["sig"] for k in kept] == [format_hex(other.signature), format_hex(twin.signature)]
    await line.pump()
    line.agree()


async def test_two_states_of_one_turn_freeze_the_channel_and_are_kept(line: Line) -> None:
    """FAULT 9."""
    await take(line)
    await line.pump()
    desk = line.b.desk
    await make_mover(line, line.b)  # the last turn was A's
    cosigned = desk.channel.cosigned
    assert cosigned is not None
    turn = cosigned.state.turn
    assert turn % 2 == 0
    forged = Hash(b"\x77" * 32)
    params = {
        "ch": format_hex(line.channel_id), "turn": turn, "final": False, "t": 1, "runs": [],
        "hash": format_hex(forged), "sig": format_hex(line.a.signer.sign(eth_sign_digest(forged))),
    }  # fmt: skip
    assert await code_of(line, line.a, "channel.propose", params) == "invariant.fork"
    assert line.b.desk.channel.phase is Phase.FROZEN
    assert line.b.engine.failure is None, "the node goes on; the channel does not"
    assert [c for (c,) in rows(line.b, "SELECT code FROM evidence")] == ["invariant.fork"]
    signed = rows(line.b, "SELECT count(*) FROM signed")
    await take(line)
    await line.pump()
    assert rows(line.b, "SELECT count(*) FROM signed") == signed
    await line.restart(line.b)
    assert line.b.desk.channel.phase is Phase.FROZEN


async def test_an_old_copy_of_the_database_signs_nothing(line: Line, tmp_path: Path) -> None:
    """FAULT 14."""
    await line.disconnect()
    await line.a.stop()
    shutil.copytree(line.a.folder, tmp_path / "copy")
    await line.a.start()
    await line.connect()
    await take(line)
    await line.pump()
    await line.disconnect()
    await line.a.stop()
    shutil.rmtree(line.a.folder)
    shutil.copytree(tmp_path / "copy", line.a.folder)
    await line.a.start()
    await line.connect()
    await line.pump()
    frozen = line.a.desk.channel.frozen_by
    assert frozen is not None
    assert frozen[0] is Code.CHANNEL_LOST_STATE
    assert line.channel_id not in line.b.wire.synced, "B has been told, sends nothing and routes nothing there"
    assert line.b.desk.channel.phase is Phase.ACTIVE


def sync(line: Line, signer: Signer, **changes: Any) -> dict[str, Any]:
    """What A would say, signed by `signer`."""
    channel = line.a.desk.channel
    assert channel.cosigned is not None
    said: dict[str, Any] = {
        "ch": channel.fixed.channel_id, "turn": channel.cosigned.state.turn, "hash": channel.cosigned.state.state_hash,
        "sent": channel.view.last_seq[0], "received": channel.view.last_seq[1], "ts": 1, **changes,
    }  # fmt: skip
    signature = signer.sign(line.a.desk.domain.digest(SYNC.hash(*said.values())))
    assert line.a.desk.last_cosigned is not None
    return {
        **said,
        "ch": format_hex(said["ch"]),
        "hash": format_hex(said["hash"]),
        "sig": format_hex(signature),
        "yours": format_hex(line.a.desk.last_cosigned[1][1]),
    }


async def test_a_sync_is_of_the_peer_and_of_this_channel(line: Line) -> None:
    good = sync(line, line.a.signer)
    request = {"jsonrpc": "2.0", "id": "x", "method": "channel.sync", "params": good}
    assert any("result" in answer for answer in await answers_to(line, line.a, request))
    assert await code_of(line, line.a, "channel.sync", sync(line, user(99))) == "signature.signer"
    assert await code_of(line, line.a, "channel.sync", good | {"received": 0}) == "signature.signer"
    assert await code_of(line, line.a, "channel.sync", good | {"more": 1}) == "rpc.params"
    # What the peer only claims to hold freezes nothing: a state needs this node's signature.
    ahead = sync(line, line.a.signer, turn=99, hash=Hash(b"\x07" * 32))
    assert await code_of(line, line.a, "channel.sync", ahead) == "signature.signer"
    assert await code_of(line, line.a, "channel.sync", ahead | {"yours": None}) == "signature.invalid"
    assert await code_of(line, line.a, "channel.sync", sync(line, line.a.signer, received=10**6)) == "entry.gap"
    assert await code_of(line, line.a, "channel.sync", good | {"ch": format_hex(b"\x01" * 32)}) == "channel.unknown"
    assert line.b.desk.channel.phase is Phase.ACTIVE


async def test_what_was_not_proposed_is_not_countersigned_nor_refused(line: Line) -> None:
    turn, state_hash = line.b.desk.channel.next_turn, Hash(b"\x12" * 32)
    ch = format_hex(line.channel_id)
    before = line.b.desk.channel
    countersign = {"ch": ch, "turn": turn, "hash": format_hex(state_hash)}
    sig = format_hex(line.a.signer.sign(eth_sign_digest(state_hash)))
    assert await code_of(line, line.a, "channel.countersign", countersign | {"sig": sig}) == "channel.turn"
    wrong = format_hex(user(99).sign(eth_sign_digest(state_hash)))
    assert await code_of(line, line.a, "channel.countersign", countersign | {"sig": wrong}) == "signature.signer"

    digest = line.a.desk.domain.digest(REFUSAL.hash(line.channel_id, turn, state_hash, "channel.state"))
    refusal = countersign | {"code": "channel.state", "sig": format_hex(line.a.signer.sign(digest))}
    assert await code_of(line, line.a, "channel.refuse", refusal) == "channel.turn"
    assert await code_of(line, line.a, "channel.refuse", refusal | {"code": "channel.mover"}) == "signature.signer"
    assert line.b.desk.channel == before
    assert rows(line.b, "SELECT count(*) FROM evidence") == [(0,)]


async def test_a_proposal_whose_entries_are_not_here_burns_nothing(line: Line) -> None:
    """The entry was lost, the proposal came: it is asked for, and the same turn is signed."""
    await make_mover(line, line.a)
    line.b.proposes = False
    turn = line.a.desk.channel.next_turn
    signed = await take(line)
    await line.settle()
    assert line.a.end is not None
    line.a.end.outbox.clear()
    await line.propose(line.a)
    await line.settle()
    frame = line.a.end.outbox.popleft()
    assert (method(frame), value(frame)["params"]["turn"]) == ("channel.propose", turn)
    (answer,) = [a for a in await answers_to(line, line.a, frame) if "error" in a]
    assert answer["error"]["data"]["code"] == "channel.entries"
    assert line.b.desk.channel.burnt_turn < turn
    await line.reconnect()
    line.b.proposes = True
    await line.pump()
    line.agree()
    assert filled(line, signed) == 10
    assert (turn,) in rows(line.b, "SELECT turn FROM signed")


async def test_methods_and_notes_that_do_not_exist(line: Line) -> None:
    assert await code_of(line, line.a, "channel.topup", {}) == "rpc.method"
    assert await code_of(line, line.a, "channel.close", {}) == "rpc.method"  # of the node, not of the wire
    (answer,) = await answers_to(line, line.a, {"jsonrpc": "2.0", "method": "price.update", "params": {}})
    assert (answer["id"], answer["error"]["data"]["code"]) == (None, "rpc.method")
    (answer,) = await answers_to(line, line.a, {"jsonrpc": "2.0", "method": "orderbook.increment", "params": {}})
    assert answer["error"]["data"]["code"] == "rpc.params"


async def test_a_missing_increment_asks_for_the_book_again(line: Line) -> None:
    key = (line.channel_id, line.pair.b.market.market_id)
    assert key in line.a.wire.peer_books
    await line.place(line.b, line.pair.order(line.pair.b, BOB, 1, ASK + 100, 1))
    await line.settle()
    assert line.b.end is not None
    assert method(line.b.end.outbox.popleft()) == "orderbook.increment"
    await line.place(line.b, line.pair.order(line.pair.b, BOB, 1, ASK + 200, 2))
    await line.pump()
    line.clock.advance(1_000)
    line.a.wire.subscribe_books(line.a.desk)  # as the node's tick does
    await line.pump()
    book = line.a.wire.peer_books[key]
    assert book.seq == line.b.core.exchange.book_seq[key[1]]
    assert {price for price, _ in book.depth(1, 10)} == {ASK, ASK + 100, ASK + 200}


async def test_a_frozen_channel_is_not_synced(line: Line) -> None:
    await line.b.run(FreezeChannel(line.channel_id, Code.CHANNEL_LOST_STATE.name, "by hand"))
    await line.reconnect()
    await line.pump()
    assert line.channel_id not in line.b.wire.synced
    assert line.b.desk.resend(0) == []


async def test_a_batch_of_many_calls_is_one_entry(line: Line) -> None:
    """References of orders follow from the entry's number and the place in it."""
    signed = await take(line)
    await line.pump()
    (row,) = rows(line.b, "SELECT seq, answer FROM answers ORDER BY seq DESC LIMIT 1")
    answer = value(row[1])
    assert answer == {"jsonrpc": "2.0", "id": row[0] * MAX_BATCH, "result": {"order": row[0] * MAX_BATCH}}
    assert jsonrpc.parse(answer)
    assert filled(line, signed) == 10
