"""Rows of the broker's database: what an action and its effects become, and what the schema keeps from happening."""

import json
import sqlite3

import pytest

from broker.actions import Action, DepositSeen, PlaceOrder, Propose, decode, encode
from broker.effects import Answer, Effect, Journalled, SendEntry, Signed
from broker.records import MIGRATIONS, Rows, answer_bytes
from channel.entry import Entry
from channel.errors import Code
from channel.journal import record_from_json
from channel.orders import TimeInForce
from channel.typed import custody_domain
from tests.support.pair import BTC, CHAIN_ID, NOW, USD, Pair, custody_of, user

ALICE, BOB = user(11), user(12)


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.open()
    pair.deposit(pair.a, ALICE, USD, 10**12)
    pair.deposit(pair.b, BOB, BTC, 10**10)
    return pair


@pytest.fixture
def rows(pair: Pair) -> Rows:
    rows = Rows(pair.a.signer.address)
    rows.fixed[pair.fixed.channel_id] = pair.fixed
    return rows


@pytest.fixture
def db() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    for script in MIGRATIONS:
        db.executescript(script)
    return db


def remote(pair: Pair) -> tuple[Action, list[Effect]]:
    signed = pair.order(pair.a, ALICE, 0, 6_000_000, 10, tif=TimeInForce.IOC)
    action = PlaceOrder(signed, ((pair.fixed.channel_id, 10),), 6_000_000)
    return action, pair.run(pair.a, action)


def test_an_action_and_its_effects_are_one_list_of_rows(pair: Pair, rows: Rows, db: sqlite3.Connection) -> None:
    action, effects = remote(pair)
    for statement in rows.statements(action, NOW, effects):
        db.execute(statement.sql, statement.params)
    ((ts_ms, text),) = db.execute("SELECT ts_ms, action FROM actions").fetchall()
    assert ts_ms == NOW
    assert decode(text, custody_domain(CHAIN_ID, custody_of(pair.a.signer.address))) == action
    ((channel, n, record, sender, seq, digest),) = db.execute("SELECT * FROM journal").fetchall()
    (entry,) = [e.record for e in effects if isinstance(e, Journalled)]
    assert isinstance(entry, Entry)
    assert (channel, n, sender, seq, digest) == (pair.fixed.channel_id, 0, 0, entry.seq, entry.entry_hash)
    assert record_from_json(json.loads(record), pair.fixed, pair.terms) == entry
    assert [e.entry for e in effects if isinstance(e, SendEntry)] == [entry]


def test_a_signature_is_a_row_before_it_is_sent(pair: Pair, rows: Rows, db: sqlite3.Connection) -> None:
    signed = Signed(pair.fixed.channel_id, 7, b"\x07" * 32, False)  # type: ignore[arg-type]
    (_, row) = rows.statements(Propose(pair.fixed.channel_id), NOW, [signed])
    db.execute(row.sql, row.params)
    assert db.execute("SELECT turn, signer, state_hash, is_final FROM signed").fetchall() == [
        (7, pair.a.signer.address, b"\x07" * 32, 0)
    ]
    other = Signed(pair.fixed.channel_id, 7, b"\x08" * 32, True)  # type: ignore[arg-type]
    (_, row) = rows.statements(Propose(pair.fixed.channel_id), NOW, [other])
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(row.sql, row.params)


def test_a_sender_has_one_entry_for_a_number(pair: Pair, rows: Rows, db: sqlite3.Connection) -> None:
    action, effects = remote(pair)
    for statement in rows.statements(action, NOW, effects):
        db.execute(statement.sql, statement.params)
    (again,) = [s for s in rows.statements(action, NOW, effects) if "journal" in s.sql]
    with pytest.raises(sqlite3.IntegrityError):
        db.execute(again.sql, again.params)


def test_records_are_numbered_without_gaps_also_after_a_replay(pair: Pair, rows: Rows) -> None:
    written: list[object] = []
    everything: list[list[Effect]] = []
    for _ in range(3):
        action, effects = remote(pair)
        everything.append(effects)
        written += [s.params[1] for s in rows.statements(action, NOW, effects) if "journal" in s.sql]
    assert written == [0, 1, 2]
    replayed = Rows(pair.a.signer.address)
    for effects in everything:
        replayed.count(effects)
    assert replayed.journal_length == rows.journal_length == {pair.fixed.channel_id: 3}
    assert replayed.actions == rows.actions == 3


def test_no_action_is_stored_after_one_that_is_missing(rows: Rows, db: sqlite3.Connection) -> None:
    action = DepositSeen(ALICE.address, USD, 1)
    first, second, third = (rows.statements(action, NOW, [])[0] for _ in range(3))
    db.execute(first.sql, first.params)
    with pytest.raises(sqlite3.IntegrityError, match="is missing"):
        db.execute(third.sql, third.params)
    db.execute(second.sql, second.params)
    db.execute(third.sql, third.params)
    assert db.execute("SELECT n FROM actions").fetchall() == [(1,), (2,), (3,)]


def test_answers_are_kept_by_entry_and_place(pair: Pair, rows: Rows, db: sqlite3.Connection) -> None:
    answers = [
        Answer(pair.fixed.channel_id, 4, 2048, {"order": 2048}),
        Answer(pair.fixed.channel_id, 4, None, {}),  # a notification has no answer
        Answer(pair.fixed.channel_id, 4, "x", None, (Code.ORDER_SIGNATURE, "not the owner's")),
    ]
    action = DepositSeen(ALICE.address, USD, 1)
    for statement in rows.statements(action, NOW, answers):
        db.execute(statement.sql, statement.params)
    stored = db.execute("SELECT n, answer FROM answers WHERE seq = 4 ORDER BY n").fetchall()
    assert [n for n, _ in stored] == [0, 1]
    assert [json.loads(answer) for _, answer in stored] == [
        {"jsonrpc": "2.0", "id": 2048, "result": {"order": 2048}},
        {
            "jsonrpc": "2.0",
            "id": "x",
            "error": {"code": -32140, "message": "not the owner's", "data": {"code": "order.signature"}},
        },
    ]
    assert [answer for _, answer in stored] == [answer_bytes(a) for a in answers if a.call_id is not None]


def test_every_action_of_a_life_is_stored_as_it_was(pair: Pair, rows: Rows, db: sqlite3.Connection) -> None:
    """What two brokers did in trading and closing reads back from rows into the same actions."""
    pair.place(pair.b, pair.order(pair.b, BOB, 1, 6_000_000, 10))
    remote(pair)
    pair.pump()
    pair.close()
    domain = custody_domain(CHAIN_ID, custody_of(pair.a.signer.address))
    for text, now_ms in pair.a.actions:
        action = decode(text, domain)
        (statement,) = rows.statements(action, now_ms, [])
        db.execute(statement.sql, statement.params)
        assert encode(action) == text
    stored = db.execute("SELECT action, ts_ms FROM actions ORDER BY n").fetchall()
    assert stored == pair.a.actions
