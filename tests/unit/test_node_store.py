"""The store: group commit, one batch's failure, order, failure of the disk, versions, exclusive use."""

import asyncio
import contextlib
import gc
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.units import UINT256_MAX
from node.store import ConstraintBroken, Statement, Store, amount_from_text, amount_text

SCHEMA = (
    "CREATE TABLE item (id INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT;",
    """CREATE TABLE parent (id INTEGER PRIMARY KEY) STRICT;
    CREATE TABLE child (id INTEGER PRIMARY KEY,
                        parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED) STRICT;
    -- a comment at the end""",
)
INSERT = "INSERT INTO item (id, text) VALUES (?, ?)"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(tmp_path / "node.sqlite", SCHEMA)
    yield store
    store.close_now()


async def ids(store: Store) -> list[object]:
    return [row[0] for row in await store.read("SELECT id FROM item ORDER BY id")]


async def test_a_commit_is_there_when_it_is_acknowledged(store: Store) -> None:
    await store.commit([(INSERT, (1, "a")), Statement(INSERT, (2, "b"))])
    with contextlib.closing(sqlite3.connect(store.path)) as other:
        assert other.execute("SELECT id, text FROM item ORDER BY id").fetchall() == [(1, "a"), (2, "b")]
    assert await store.read("SELECT text FROM item WHERE id = ?", (2,)) == [("b",)]


async def test_the_writer_syncs_the_log_at_every_commit(store: Store) -> None:
    assert store._write.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._write.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert store._write.execute("PRAGMA foreign_keys").fetchone() == (1,)


async def test_a_batch_is_all_or_nothing_and_fails_alone(store: Store) -> None:
    await store.commit([(INSERT, (7, "taken"))])
    good, bad, also_good = (
        store.submit([(INSERT, (1, "a"))]),
        store.submit([(INSERT, (2, "b")), (INSERT, (7, "again"))]),
        store.submit([(INSERT, (3, "c"))]),
    )
    results = await asyncio.gather(good, bad, also_good, return_exceptions=True)
    assert results[0] is None
    assert results[2] is None
    error = results[1]
    assert isinstance(error, ConstraintBroken)
    assert error.code is Code.STORAGE
    assert error.data["constraint"] == "SQLITE_CONSTRAINT_PRIMARYKEY"
    assert await ids(store) == [1, 3, 7]


async def test_a_deferred_constraint_fails_only_the_batch_that_broke_it(store: Store) -> None:
    futures = [
        store.submit([("INSERT INTO parent VALUES (1)", ())]),
        store.submit([("INSERT INTO child VALUES (1, 99)", ())]),
        store.submit([("INSERT INTO child VALUES (2, 1)", ())]),
    ]
    results = await asyncio.gather(*futures, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), ConstraintBroken, type(None)]
    assert await store.read("SELECT id FROM child") == [(2,)]


@pytest.mark.parametrize(
    "statement",
    [("SELECT nothing FROM nowhere", ()), (INSERT, (1,)), (INSERT, ("x", "y")), (INSERT, (1, "\ud800"))],
)
async def test_a_wrong_statement_fails_its_batch_only(store: Store, statement: tuple[str, tuple[str, ...]]) -> None:
    wrong, right = store.submit([statement]), store.submit([(INSERT, (5, "a"))])
    with pytest.raises(InvariantBroken) as caught:
        await wrong
    assert caught.value.code is Code.STORAGE
    await right
    assert await ids(store) == [5]
    assert store.failed is None


@pytest.mark.parametrize("value", [1.5, 2**63, -(2**63) - 1, [1]])
async def test_values_that_sqlite_must_not_get_are_refused_at_once(store: Store, value: object) -> None:
    with pytest.raises(InvariantBroken):
        store.submit([(INSERT, (1, value))])  # type: ignore[list-item]


async def test_many_batches_share_a_commit_and_keep_their_order(store: Store) -> None:
    done: list[int] = []
    futures = []
    for number in range(1_000):
        future = store.submit([(INSERT, (number, "x"))])
        future.add_done_callback(lambda _, number=number: done.append(number))
        futures.append(future)
    await asyncio.gather(*futures)
    assert done == list(range(1_000))
    assert [row[0] for row in await store.read("SELECT id FROM item ORDER BY rowid")] == list(range(1_000))
    assert store.stats.batches == 1_000
    assert 4 <= store.stats.groups < 500


async def test_later_statements_win_in_the_order_of_submission(store: Store) -> None:
    await store.commit([(INSERT, (1, "start"))])
    futures = [store.submit([("UPDATE item SET text = ? WHERE id = 1", (str(n),))]) for n in range(300)]
    await asyncio.gather(*futures)
    assert await store.read("SELECT text FROM item") == [("299",)]


async def test_cancelling_a_commit_does_not_take_it_back(store: Store) -> None:
    task = asyncio.create_task(store.commit([(INSERT, (1, "a"))]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.commit([(INSERT, (2, "b"))])
    assert await ids(store) == [1, 2]


async def test_the_queue_is_bounded(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.sqlite", SCHEMA, queue_batches_max=4, queue_bytes_max=1_000)
    try:
        with store._wake:  # the writer cannot take anything
            futures = [store.submit([(INSERT, (number, "x"))]) for number in range(4)]
            with pytest.raises(LocalRefusal) as caught:
                store.submit([(INSERT, (4, "x"))])
        assert caught.value.code is Code.BUSY
        await asyncio.gather(*futures)
        with pytest.raises(LocalRefusal):
            store.submit([(INSERT, (5, "x" * 2_000))])
        await store.commit([(INSERT, (6, "x"))])
        assert await ids(store) == [0, 1, 2, 3, 6]
    finally:
        store.close_now()


async def test_a_full_disk_stops_writing_and_leaves_reading(store: Store) -> None:
    await store.commit([(INSERT, (1, "a"))])
    store._write.execute("PRAGMA max_page_count = 10")  # what SQLite answers with is that of a full disk
    first = store.submit([(INSERT, (2, "b" * 200_000))])
    second = store.submit([(INSERT, (3, "c"))])
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert [getattr(result, "code", None) for result in results] == [Code.STORAGE, Code.STORAGE]
    assert store.failed is not None
    assert "full" in store.failed
    with pytest.raises(LocalRefusal) as caught:
        await store.commit([(INSERT, (4, "d"))])
    assert caught.value.code is Code.STORAGE
    assert await ids(store) == [1]


async def test_close_commits_what_is_queued_and_then_refuses(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "node.sqlite", SCHEMA)
    futures = [store.submit([(INSERT, (number, "x"))]) for number in range(500)]
    await store.close()
    await asyncio.gather(*futures)
    await store.close()
    with pytest.raises(LocalRefusal):
        store.submit([(INSERT, (1_000, "x"))])
    with pytest.raises(LocalRefusal):
        await store.read("SELECT 1")
    async with Store.open(tmp_path / "node.sqlite", SCHEMA) as again:
        assert len(await ids(again)) == 500
    assert not (tmp_path / "node.sqlite-wal").exists()


async def test_pages_are_one_snapshot(store: Store) -> None:
    await store.commit([(INSERT, (number, "x")) for number in range(25)])
    seen: list[int] = []
    async for page in store.pages("SELECT id FROM item ORDER BY id", page_rows=10):
        seen.append(len(page))
        await store.commit([("DELETE FROM item", ())])
    assert seen == [10, 10, 5]
    assert await ids(store) == []


async def test_pages_left_early_close_their_connection(store: Store) -> None:
    await store.commit([(INSERT, (number, "x")) for number in range(25)])
    async with contextlib.aclosing(store.pages("SELECT id FROM item", page_rows=10)) as pages:
        async for _ in pages:
            break
    gc.collect()
    await store.close()
    assert not store.path.with_name("node.sqlite-wal").exists()


async def test_reading_is_bounded_and_read_only(store: Store) -> None:
    await store.commit([(INSERT, (number, "x")) for number in range(25)])
    with pytest.raises(LocalRefusal, match="more than 24"):
        await store.read("SELECT id FROM item", rows_max=24)
    with pytest.raises(LocalRefusal, match="readonly"):
        await store.read("DELETE FROM item")
    with pytest.raises(LocalRefusal):
        await store.read("SELECT nothing FROM nowhere")


async def test_a_second_user_is_told_who_has_it(store: Store) -> None:
    with pytest.raises(LocalRefusal, match=r"in use by process \d+") as caught:
        Store.open(store.path, SCHEMA)
    assert caught.value.code is Code.STORAGE


async def test_migrations_run_once_and_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    async with Store.open(path, SCHEMA[:1]) as store:
        await store.commit([(INSERT, (1, "kept"))])
    async with Store.open(path, SCHEMA) as store:
        assert await ids(store) == [1]
        assert await store.read("PRAGMA user_version") == [(2,)]
    with pytest.raises(LocalRefusal, match="schema version 2, this program knows up to 1"):
        Store.open(path, SCHEMA[:1])
    async with Store.open(path, SCHEMA) as store:  # the refusal released the lock
        assert await ids(store) == [1]


async def test_a_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    with pytest.raises(LocalRefusal):
        Store.open(path, ["CREATE TABLE a (x); CREATE TABLE a (x);"])
    async with Store.open(path, SCHEMA[:1]) as store:
        assert await store.read("SELECT name FROM sqlite_master WHERE name = 'a'") == []
        assert await store.read("PRAGMA user_version") == [(1,)]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    path.write_bytes(b"this is not a database, not at all" * 100)
    with pytest.raises(LocalRefusal, match="not a database"):
        Store.open(path, SCHEMA)


def test_files_are_private(store: Store) -> None:
    assert store.path.stat().st_mode & 0o777 == 0o600


@given(st.integers(min_value=0, max_value=UINT256_MAX))
def test_amounts_round_trip(value: int) -> None:
    assert amount_from_text(amount_text(value)) == value


@pytest.mark.parametrize("value", [-1, UINT256_MAX + 1])
def test_amounts_outside_uint256_are_refused(value: int) -> None:
    with pytest.raises(InvariantBroken):
        amount_text(value)


@pytest.mark.parametrize("value", ["", "01", "-1", "1.0", " 1", "٣", "9" * 78, "9" * 10_000, b"1", 1, None])
def test_only_what_was_written_is_read_back(value: object) -> None:
    with pytest.raises(InvariantBroken):
        amount_from_text(value)  # type: ignore[arg-type]
