"""The SQLite store: one writer thread, group commit, and an acknowledgement only for what is on the disk.

Invariants:
  - A future that `submit` returned resolves only after the COMMIT of the transaction that holds its batch. The database
    runs in WAL mode with synchronous=FULL, so that COMMIT returns after the fsync: what was acknowledged survives
    kill -9 and loss of power.
  - Batches are applied, and their futures resolve, in the order of submission. Everything that queues up while a commit
    is under way goes into the next transaction (at most `group_batches_max`), so that many batches share one fsync.
  - A batch is atomic. One that breaks a constraint fails alone (savepoint); its neighbours commit.
  - After an error of the disk (full, I/O, corrupt) nothing more is written: the store is `failed`, every later commit
    is refused, reads still answer. Whether the transaction under way survived is unknown: none of it is acknowledged.
  - One process at a time: an flock on `<folder>/lock`. One connection writes and checkpoints.
  - The queue is bounded in batches and in bytes.

Money is TEXT or BLOB in the schema, because SQLite's integers end at 2^63: see `amount_text`. Schemas should use STRICT
tables. DESIGN section 4, rule 4; docs/adr/0002.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from channel.errors import Code, InvariantBroken, LocalRefusal, XlnError
from channel.units import UINT256_MAX
from node.files import sync_directory

SqlValue = None | int | str | bytes
Row = tuple[SqlValue, ...]

BUSY_TIMEOUT_MS = 5_000
STATEMENTS_PER_BATCH_MAX = 1_000_000  # a poll of 256 blocks full of deposits is one batch
JOURNAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
INTEGER_MIN, INTEGER_MAX = -(2**63), 2**63 - 1

# Primary result codes that blame a statement of one batch. Anything else is the disk or the file: the store fails.
_BATCH_ERRORS = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
        sqlite3.SQLITE_TOOBIG,
    }
)


class Statement(NamedTuple):
    """One SQL statement and its parameters. A plain `(sql, params)` pair is as good."""

    sql: str
    params: Sequence[SqlValue] = ()


Statements = Sequence[Statement | tuple[str, Sequence[SqlValue]]]


class ConstraintBroken(InvariantBroken):
    """A batch broke a constraint of the schema; `data["constraint"]` is SQLite's name, SQLITE_CONSTRAINT_UNIQUE say.

    Nothing of the batch was written. Later batches may have been: who pipelines dependent batches stops at the first
    that fails.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """Counts since the store was opened."""

    groups: int  # transactions committed, hence fsyncs of the log
    batches: int  # batches acknowledged
    batches_failed: int
    batches_queued: int


@dataclass(slots=True, eq=False)
class _Batch:
    statements: Statements
    size_bytes: int
    future: "asyncio.Future[None]"
    error: XlnError | None = None


def amount_text(value: int) -> str:
    """Base units as the decimal TEXT that a money column holds. Raises InvariantBroken AMOUNT outside uint256."""
    if not 0 <= value <= UINT256_MAX:
        raise InvariantBroken(Code.AMOUNT, f"an amount must be from 0 to 2^256 - 1, not {value}")
    return str(value)


def amount_from_text(value: SqlValue) -> int:
    """Base units from a money column. Raises InvariantBroken AMOUNT for anything that `amount_text` does not write."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and (value[0] != "0" or value == "0"):
        number = int(value) if len(value) <= 78 else UINT256_MAX + 1
        if number <= UINT256_MAX:
            return number
    raise InvariantBroken(Code.AMOUNT, f"the database holds {value!r} where an amount should be")


class Store:
    """A database file of one process. Made by `Store.open`; closed by `close`, or by `async with`."""

    def __init__(
        self, path: Path, lock_fd: int, *, queue_batches_max: int, queue_bytes_max: int, group_batches_max: int
    ) -> None:
        self.path = path
        self._lock_fd = lock_fd
        self._queue_batches_max = queue_batches_max
        self._queue_bytes_max = queue_bytes_max
        self._group_batches_max = group_batches_max
        self._queue: deque[_Batch] = deque()
        self._queue_bytes = 0
        self._wake = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._groups = self._batches = self._batches_failed = 0
        self._read_lock = threading.Lock()
        self._read_executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-read")
        self._write: sqlite3.Connection
        self._read: sqlite3.Connection
        self._writer: threading.Thread

    @classmethod
    def open(
        cls,
        path: Path,
        migrations: Sequence[str],
        *,
        queue_batches_max: int = 16_384,
        queue_bytes_max: int = 256 * 1024 * 1024,
        group_batches_max: int = 256,
    ) -> Self:
        """Opens or creates the database and brings its schema up to date.

        `migrations`: SQL scripts in order, without BEGIN or COMMIT; the n-th makes schema version n. A script that has
        been released never changes. Each runs in a transaction of its own, together with its version number.

        Raises LocalRefusal STORAGE: another process has it open, the file is of a newer version, not a database, or the
        disk refuses. Blocks for a moment: for start-up.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock_fd = _take_lock(path.parent / "lock")
        store = cls(
            path,
            lock_fd,
            queue_batches_max=queue_batches_max,
            queue_bytes_max=queue_bytes_max,
            group_batches_max=group_batches_max,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, lock_fd)
            undo.callback(store._read_executor.shutdown)
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                store._write = undo.enter_context(contextlib.closing(_connect(path)))
                _migrate(store._write, migrations, path)
                store._read = undo.enter_context(contextlib.closing(_connect(path, read_only=True)))
                sync_directory(path.parent)
            except (sqlite3.Error, OSError) as error:
                raise LocalRefusal(Code.STORAGE, f"cannot open the database {path}: {error}") from error
            undo.pop_all()
        store._writer = threading.Thread(target=store._write_loop, name=f"store-write {path.name}", daemon=True)
        store._writer.start()
        return store

    # ---- writing

    def submit(self, statements: Statements) -> "asyncio.Future[None]":
        """Queues one atomic batch and returns at once; the future resolves when the batch is durable.

        The order of calls is the order of the database. Cancelling the future does not take the batch back. Must be
        called from a running event loop.

        Raises at once: LocalRefusal BUSY when the queue is full, LocalRefusal STORAGE when the store failed or is
        closed, InvariantBroken STORAGE for a value that SQLite must not be given. The future raises ConstraintBroken,
        InvariantBroken STORAGE for a statement that is wrong, and LocalRefusal STORAGE when the disk failed.
        """
        size_bytes = _size_of(statements)
        future = asyncio.get_running_loop().create_future()
        with self._wake:
            self._require_writable()
            if len(self._queue) >= self._queue_batches_max or self._queue_bytes + size_bytes > self._queue_bytes_max:
                raise LocalRefusal(
                    Code.BUSY,
                    f"{len(self._queue)} batches ({self._queue_bytes} bytes) wait for the disk; try again in a moment",
                )
            self._queue.append(_Batch(statements, size_bytes, future))
            self._queue_bytes += size_bytes
            self._wake.notify()
        return future

    async def commit(self, statements: Statements) -> None:
        """Writes one atomic batch; returns when it is durable. Raises what `submit` and its future raise."""
        await self.submit(statements)

    def _require_writable(self) -> None:
        if self._failure is not None:
            raise LocalRefusal(Code.STORAGE, self._failure)
        if self._closing:
            raise LocalRefusal(Code.STORAGE, f"the database {self.path} is closed")

    def _write_loop(self) -> None:
        """The writer thread: takes what is queued, commits it as one group, tells the callers. Ends when closing."""
        while True:
            with self._wake:
                while not self._queue and not self._closing:
                    self._wake.wait()
                if not self._queue:
                    break
                group = [self._queue.popleft() for _ in range(min(len(self._queue), self._group_batches_max))]
                self._queue_bytes -= sum(batch.size_bytes for batch in group)
            try:
                self._commit_group(group)
            except Exception as error:  # noqa: BLE001 - callers wait for this thread: whatever it is, they must hear it
                group += self._fail(error)
                for batch in group:
                    batch.error = LocalRefusal(Code.STORAGE, self._failure or str(error))
            failed = sum(1 for batch in group if batch.error)
            self._batches_failed += failed
            self._batches += len(group) - failed
            _resolve(group)

    def _fail(self, error: Exception) -> list[_Batch]:
        """From here on nothing is written. Returns the batches that were waiting."""
        with contextlib.suppress(sqlite3.Error):
            self._write.rollback()
        with self._wake:
            self._failure = (
                f"the database {self.path} failed ({error}) and writes nothing more; free or repair the disk, then "
                "start again"
            )
            waiting = list(self._queue)
            self._queue.clear()
            self._queue_bytes = 0
        return waiting

    def _commit_group(self, group: Sequence[_Batch]) -> None:
        """One transaction. Sets `error` on batches that are to blame. Raises sqlite3.Error if the disk is."""
        db = self._write
        db.execute("BEGIN IMMEDIATE")
        for batch in group:
            self._apply(batch)
        try:
            db.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            # A deferred constraint shows at COMMIT and does not say whose it is: each batch for itself.
            db.rollback()
            for batch in group:
                batch.error = None
            if len(group) == 1:
                group[0].error = _batch_error(error)
            else:
                for batch in group:
                    self._commit_group((batch,))
            return
        self._groups += 1

    def _apply(self, batch: _Batch) -> None:
        db = self._write
        db.execute("SAVEPOINT batch")
        try:
            for sql, params in batch.statements:
                db.execute(sql, params)
        except (sqlite3.Error, sqlite3.Warning, ValueError, TypeError, OverflowError) as error:
            # Without a code: Python's module refused (wrong number of parameters, a lone surrogate).
            code = getattr(error, "sqlite_errorcode", None)
            if isinstance(error, sqlite3.Error) and code is not None and code & 0xFF not in _BATCH_ERRORS:
                raise
            batch.error = _batch_error(error)
            db.execute("ROLLBACK TO batch")
        db.execute("RELEASE batch")

    # ---- reading

    async def read(self, sql: str, params: Sequence[SqlValue] = (), *, rows_max: int = 100_000) -> list[Row]:
        """All rows of a query, off the event loop. It sees every commit acknowledged before the call.

        Raises LocalRefusal STORAGE: more than `rows_max` rows, the query is wrong, or the disk fails.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor(), self.read_now, sql, params, rows_max)

    def read_now(self, sql: str, params: Sequence[SqlValue] = (), rows_max: int = 100_000) -> list[Row]:
        """What `read` does, blocking: for start-up, and for threads. Same errors."""
        try:
            with self._read_lock:
                cursor = self._read.execute(sql, params)
                rows: list[Row] = cursor.fetchmany(rows_max + 1)
                cursor.close()
        except sqlite3.Error as error:
            raise LocalRefusal(Code.STORAGE, f"cannot read the database {self.path}: {error}") from error
        if len(rows) > rows_max:
            raise LocalRefusal(Code.STORAGE, f"the query has more than {rows_max} rows; read it in pages")
        return rows

    async def pages(
        self, sql: str, params: Sequence[SqlValue] = (), *, page_rows: int = 1_000
    ) -> AsyncIterator[list[Row]]:
        """The rows of a query as one consistent snapshot, page by page, through a connection of its own.

        While it is open the log cannot shrink: iterate to the end, or close it (`contextlib.aclosing`). Raises
        LocalRefusal STORAGE.
        """
        loop = asyncio.get_running_loop()
        executor = self._executor()
        try:
            db = await loop.run_in_executor(executor, lambda: _connect(self.path, read_only=True))
            try:
                cursor = await loop.run_in_executor(executor, db.execute, sql, params)
                while rows := await loop.run_in_executor(executor, cursor.fetchmany, page_rows):
                    yield rows
            finally:
                # After a cancellation the worker may still be at work on it: close behind that, not beside it.
                try:
                    executor.submit(db.close)
                except RuntimeError:  # the store was closed meanwhile, so the worker is idle
                    db.close()
        except sqlite3.Error as error:
            raise LocalRefusal(Code.STORAGE, f"cannot read the database {self.path}: {error}") from error

    def _executor(self) -> ThreadPoolExecutor:
        if self._closing:
            raise LocalRefusal(Code.STORAGE, f"the database {self.path} is closed")
        return self._read_executor

    # ---- state

    @property
    def failed(self) -> str | None:
        """Why nothing can be written any more, or None."""
        return self._failure

    @property
    def stats(self) -> StoreStats:
        return StoreStats(
            groups=self._groups,
            batches=self._batches,
            batches_failed=self._batches_failed,
            batches_queued=len(self._queue),
        )

    async def close(self) -> None:
        """Commits what is queued, then closes. May be called twice."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """What `close` does, blocking."""
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._read_executor.shutdown(wait=True)
        self._writer.join()
        with self._read_lock:
            self._read.close()
        self._write.close()  # the last one checkpoints the log
        os.close(self._lock_fd)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _size_of(statements: Statements) -> int:
    """Bytes that a batch keeps in memory, roughly. Refuses what must not reach SQLite."""
    if len(statements) > STATEMENTS_PER_BATCH_MAX:
        raise InvariantBroken(
            Code.STORAGE, f"a batch has {len(statements)} statements; the limit is {STATEMENTS_PER_BATCH_MAX}"
        )
    size_bytes = 0
    for _, params in statements:
        size_bytes += 64
        for value in params:
            if isinstance(value, (bytes, str)):
                size_bytes += len(value)
            elif isinstance(value, int):
                if not INTEGER_MIN <= value <= INTEGER_MAX:
                    raise InvariantBroken(Code.STORAGE, f"{value} does not fit SQLite's integers; use amount_text")
            elif value is not None:
                raise InvariantBroken(Code.STORAGE, f"a {type(value).__name__} is no value for the database")
    return size_bytes


def _batch_error(error: Exception) -> XlnError:
    name = getattr(error, "sqlite_errorname", None)
    if isinstance(error, sqlite3.IntegrityError):
        return ConstraintBroken(Code.STORAGE, f"the database refuses: {error}", constraint=name)
    return InvariantBroken(Code.STORAGE, f"a statement is wrong: {error}", sqlite=name)


def _resolve(group: Sequence[_Batch]) -> None:
    """Tells the callers, in order, each in its own event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[_Batch]] = {}
    for batch in group:
        loops.setdefault(batch.future.get_loop(), []).append(batch)

    def tell(batches: list[_Batch]) -> None:
        for batch in batches:
            if batch.future.done():  # cancelled: the caller went away, the batch did not
                continue
            if batch.error is None:
                batch.future.set_result(None)
            else:
                batch.future.set_exception(batch.error)

    for loop, batches in loops.items():
        with contextlib.suppress(RuntimeError):  # that loop is closed: nobody is left to tell
            loop.call_soon_threadsafe(tell, batches)


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """A connection without Python's own transactions. check_same_thread is off: the store keeps threads apart."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000)
    try:
        if read_only:
            db.execute("PRAGMA query_only = ON")
        else:
            mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":
                raise sqlite3.OperationalError(f"the file system does not allow WAL mode (SQLite answers {mode})")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")
            db.execute("PRAGMA foreign_keys = ON")
            db.execute(f"PRAGMA journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, migrations: Sequence[str], path: Path) -> None:
    """Raises LocalRefusal STORAGE for a newer schema, sqlite3.Error for a script that fails (nothing of it stays)."""
    have = schema_version(db)
    if have > len(migrations):
        raise LocalRefusal(
            Code.STORAGE,
            f"{path} has schema version {have}, this program knows up to {len(migrations)}: a newer program wrote it; "
            "run that one",
        )
    for version in range(have + 1, len(migrations) + 1):
        try:
            db.executescript(f"BEGIN IMMEDIATE;\n{migrations[version - 1]}\n;PRAGMA user_version = {version};\nCOMMIT;")
        except sqlite3.Error:
            if db.in_transaction:
                db.rollback()
            raise


def schema_version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _take_lock(path: Path) -> int:
    """An exclusive flock that ends with the process. Raises LocalRefusal STORAGE if another holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LocalRefusal(
            Code.STORAGE, f"the folder {path.parent} is in use by process {holder}; one node runs on it at a time"
        ) from None
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())
    return fd
