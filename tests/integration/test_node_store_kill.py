"""A process that commits in a loop is killed with -9: every acknowledged commit is there, and the store opens again."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from channel.errors import LocalRefusal
from node.store import Store

SCHEMA = ("CREATE TABLE item (id INTEGER PRIMARY KEY, half INTEGER NOT NULL) STRICT;",)

# Prints a number once its commit is acknowledged. Every batch writes two rows; several batches are in flight.
PROGRAM = textwrap.dedent(
    """
    import asyncio, os, sys
    from pathlib import Path
    from node.store import Store

    async def main():
        store = Store.open(Path(sys.argv[1]), [sys.argv[2]])
        rows = await store.read("SELECT coalesce(max(id), 0) FROM item")
        number = rows[0][0] // 2
        waiting = asyncio.Semaphore(64)
        def acknowledged(future, number):
            future.result()
            os.write(1, b"%d\\n" % number)
            waiting.release()
        while True:
            await waiting.acquire()
            number += 1
            insert = "INSERT INTO item VALUES (?, ?)"
            future = store.submit([(insert, (2 * number - 1, 1)), (insert, (2 * number, 2))])
            future.add_done_callback(lambda f, n=number: acknowledged(f, n))

    asyncio.run(main())
    """
)


def test_kill_9_loses_no_acknowledged_commit(tmp_path: Path) -> None:
    path = tmp_path / "node.sqlite"
    acknowledged: set[int] = set()
    for round_number in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(path), SCHEMA[0]],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert child.stdout is not None
        # Until it has acknowledged something, then a little longer.
        first = child.stdout.readline()
        assert first, "the child died before its first commit"
        with pytest.raises(LocalRefusal, match=f"process {child.pid}"):
            Store.open(path, SCHEMA)
        time.sleep(0.2 + 0.07 * round_number)
        child.send_signal(signal.SIGKILL)
        rest, _ = child.communicate(timeout=10)
        # The last line may be cut short.
        acknowledged |= {int(line) for line in (first + rest).split(b"\n")[:-1]}
        store = Store.open(path, SCHEMA)
        try:
            ids = {row[0] for row in store.read_now("SELECT id FROM item", rows_max=10_000_000)}
            assert store.read_now("PRAGMA integrity_check") == [("ok",)]
        finally:
            store.close_now()
        assert len(acknowledged) > 50
        assert {2 * number for number in acknowledged} <= ids
        assert {2 * number - 1 for number in acknowledged} <= ids
        # No half of a batch, no gap in the order of submission.
        assert ids == set(range(1, max(ids) + 1))
        assert max(ids) % 2 == 0
