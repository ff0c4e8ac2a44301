"""What the service keeps: memory and database agree after a restart, and when the chain has paid an outcome."""

from dataclasses import replace
from pathlib import Path

import pytest

from channel.errors import Code, LocalRefusal
from channel.locks import Lock, SignedLock
from channel.state import FixedPart
from channel.units import Address, ChannelId, Hash
from contracts.watcher import Cursor
from node.store import ConstraintBroken, Statement, Store
from tests.support.journals import eth_usd_terms
from xln import book as books
from xln import locks
from xln.adjudication import CustodyRows
from xln.book import Attestation, Head, Settlement
from xln.locks import Ledger

ADJUDICATOR, COLLATERAL, XLN = Address(b"\xad" * 20), Address(b"\xc0" * 20), Address(b"\x77" * 20)
A, B, USD, ETH = Address(b"\x0a" * 20), Address(b"\x0b" * 20), Address(b"\x0d" * 20), Address(bytes(20))
CUSTODY_A, CUSTODY_B = Address(b"\xca" * 20), Address(b"\xcb" * 20)
FIXED = FixedPart(chain_id=1, participants=(A, B), channel_nonce=1, app_definition=ADJUDICATOR, challenge_duration_s=60)
TERMS = eth_usd_terms(FIXED, (CUSTODY_A, CUSTODY_B), COLLATERAL, USD)
CHANNEL = FIXED.channel_id
OUTCOME, OTHER = Hash(b"\x01" * 32), Hash(b"\x02" * 32)
ROWS = (
    CustodyRows(custody=CUSTODY_A, tokens=(USD,), amounts=(2**200,)),
    CustodyRows(custody=CUSTODY_B, tokens=(ETH, USD), amounts=(5, 6)),
)
ATTESTATION = Attestation(
    turn=9, state_hash=OTHER, outcome_hash=OUTCOME, outcome=b"o", signed=tuple((rows, b"\x05" * 65) for rows in ROWS)
)


def open_store(folder: Path) -> Store:
    return Store.open(folder / "xln.sqlite", books.MIGRATIONS)


def load(store: Store) -> books.Book:
    return books.load(store, chain_id=1, adjudicator=ADJUDICATOR, collateral=COLLATERAL, xln=XLN)


def ledger_with_locks() -> Ledger:
    """One lock registered, one signed, one known from the chain only."""
    ledger = Ledger(chain_id=1, adjudicator=ADJUDICATOR, collateral=COLLATERAL, block_time_s=1_000)
    for broker, custody in ((A, CUSTODY_A), (B, CUSTODY_B)):
        ledger = locks.deposited(locks.broker_registered(ledger, broker, custody), broker, USD, 2**201)
    for owner in (A, B):
        lock = Lock(
            channel_id=CHANNEL,
            terms_hash=TERMS.terms_hash,
            owner=owner,
            token=USD,
            amount=2**200,
            expiry_s=9_000,
            open_by_s=2_000,
        )
        ledger = locks.lock_signed(ledger, SignedLock(lock=lock, signature=b"\x04" * 65), FIXED)
        if owner == A:
            ledger = locks.lock_registered(ledger, lock)
            ledger = locks.lock_registered(ledger, replace(lock, channel_id=ChannelId(b"\x09" * 32), amount=3))
    return locks.channel_opened(ledger, CHANNEL)


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    empty = Ledger(chain_id=1, adjudicator=ADJUDICATOR, collateral=COLLATERAL)
    ledger, cursor = ledger_with_locks(), Cursor(number=7, hash=OTHER)
    settlement = Settlement(concluded=OUTCOME, executed={CUSTODY_A: OUTCOME}, paid={(CUSTODY_A, USD): 2**199})
    async with open_store(tmp_path) as store:
        await store.commit(
            [
                books.deployment_statement(empty, XLN),
                books.broker_statement(A, CUSTODY_A, "ws://a"),
                books.broker_statement(B, CUSTODY_B, "ws://b"),
                *books.ledger_statements(empty, ledger),
                books.header_statement(FIXED, TERMS),
                books.cursor_statement(cursor, ledger.block_time_s),
                *books.record_statements(CHANNEL, A, 0, ["{}", "[]"], Head(next=2, size_bytes=4, final=True)),
                books.attestation_statement(CHANNEL, ATTESTATION),
                books.release_statement(CHANNEL, A, b"\x06" * 65, "settled"),
                *books.settlement_statements(CHANNEL, settlement),
            ]
        )
    async with open_store(tmp_path) as store:
        book = load(store)
        assert book.ledger == ledger
        assert (book.cursor, book.urls) == (cursor, {A: "ws://a", B: "ws://b"})
        file = book.channels[CHANNEL]
        assert (file.fixed, file.terms, file.attestation) == (FIXED, TERMS, ATTESTATION)
        assert file.heads == {A: Head(next=2, size_bytes=4, final=True)}
        assert book.settlements == {CHANNEL: settlement}
        assert book.releases == {(CHANNEL, A): b"\x06" * 65}
        assert list(books.read_records(store, CHANNEL, A, 0, 2)) == ["{}", "[]"]
        with pytest.raises(LocalRefusal, match="missing"):
            list(books.read_records(store, CHANNEL, A, 0, 3))


async def test_nothing_is_signed_twice(tmp_path: Path) -> None:
    """The rows that guard locks, attestations, releases and used indices of a journal."""
    empty, ledger = Ledger(chain_id=1, adjudicator=ADJUDICATOR, collateral=COLLATERAL), ledger_with_locks()
    (lock_row, *_) = [s for s in books.ledger_statements(empty, ledger) if s.sql.startswith("INSERT INTO locks")]
    guarded: list[list[Statement]] = [
        [lock_row],
        [books.attestation_statement(CHANNEL, ATTESTATION)],
        [books.release_statement(CHANNEL, A, b"\x06" * 65, "settled")],
        books.record_statements(CHANNEL, A, 0, ["{}"], Head(next=1)),
    ]
    async with open_store(tmp_path) as store:
        for statements in guarded:
            await store.commit(statements)
            with pytest.raises(ConstraintBroken):
                await store.commit(statements)


async def test_a_database_of_another_deployment_or_key_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        ledger = Ledger(chain_id=1, adjudicator=ADJUDICATOR, collateral=COLLATERAL)
        await store.commit([books.deployment_statement(ledger, XLN)])
        with pytest.raises(LocalRefusal) as caught:
            books.load(store, chain_id=1, adjudicator=ADJUDICATOR, collateral=COLLATERAL, xln=A)
        assert caught.value.code is Code.CONFIG


def paid_in_full() -> Settlement:
    return Settlement(
        concluded=OUTCOME,
        executed={CUSTODY_A: OUTCOME, CUSTODY_B: OUTCOME},
        paid={(CUSTODY_A, USD): 2**200, (CUSTODY_B, ETH): 5, (CUSTODY_B, USD): 6},
    )


def test_an_outcome_is_covered_only_when_every_row_of_both_custodies_is_paid() -> None:
    assert paid_in_full().covers(ATTESTATION)
    for key in ((CUSTODY_A, USD), (CUSTODY_B, ETH), (CUSTODY_B, USD)):
        short = paid_in_full()
        short.paid[key] -= 1
        assert not short.covers(ATTESTATION)
        del short.paid[key]
        assert not short.covers(ATTESTATION)
    for custody in (CUSTODY_A, CUSTODY_B):
        other = paid_in_full()
        other.executed[custody] = OTHER
        assert not other.covers(ATTESTATION)
        del other.executed[custody]
        assert not other.covers(ATTESTATION)


def test_an_outcome_without_rows_is_covered_when_the_channel_is_concluded_with_it() -> None:
    empty = replace(ATTESTATION, signed=())
    assert not Settlement().covers(empty)
    assert not Settlement(concluded=OTHER).covers(empty)
    assert Settlement(concluded=OUTCOME).covers(empty)
