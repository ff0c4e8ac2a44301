"""Child processes of ours: each with its own folder, log and process group, and a deadline for all it does.

Invariants: `start` returns only when the child has said that it is ready, or raises with the end of its log; a child
never outlives its parent (`node.child`); `terminate` ends the whole process group, by force if it must. A child says
that it is ready with `announce`: a line `ready {json}` on its standard output, which is in its log.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import orjson

from channel.errors import Code, LocalRefusal

READY_PREFIX: Final = b"ready "
POLL_S: Final = 0.03
READY_DEADLINE_S: Final = 30.0
STOP_DEADLINE_S: Final = 20.0
KILL_DEADLINE_S: Final = 5.0
TAIL_LINES: Final = 15
TAIL_BYTES: Final = 8_192
READY_SCAN_BYTES_MAX: Final = 1024 * 1024

_ROOT = Path(__file__).resolve().parents[1]


def announce(**fields: object) -> None:
    """Called by a child when it is ready to work: one line on standard output."""
    sys.stdout.buffer.write(READY_PREFIX + orjson.dumps(fields) + b"\n")
    sys.stdout.buffer.flush()


class Child:
    """A running child. Made by `Child.start`."""

    def __init__(self, name: str, folder: Path, log_path: Path, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.folder = folder
        self.log_path = log_path
        self.ready: Mapping[str, object] = {}  # what the child announced
        self._process = process
        self._swept = False  # its group was killed after it ended: its number may be somebody else's by now

    @classmethod
    async def start(
        cls,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        folder: Path,
        log_path: Path | None = None,
        env: Mapping[str, str] | None = None,
        ready_file: Path | None = None,
        deadline_s: float = READY_DEADLINE_S,
    ) -> Self:
        """Runs `python -m module arguments…` in `folder`, which is made if needed, and waits until it is ready.

        Its output is appended to `log_path` (default `<folder>/<name>.out`). Ready means: it has announced so, or, when
        `ready_file` is given, that file is there (one left over is removed first). `env` is added to our environment.

        Raises LocalRefusal: PEER_UNAVAILABLE when it ends before it is ready, with the end of its log in the message,
        TIMEOUT when it is not ready in time (it is then killed).
        """
        log_path = log_path or folder / f"{name}.out"
        _prepare(folder, ready_file)
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
        with log_path.open("ab") as log:
            start_bytes = log.tell()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", "-m", "node.child", str(os.getpid()), module, *arguments),
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,  # Ctrl-C is for the parent, which then stops its children in order
            )
        child = cls(name, folder, log_path, process)
        try:
            async with asyncio.timeout(deadline_s):
                await child._wait_ready(start_bytes, ready_file)
        except TimeoutError:
            await child.kill9()
            raise LocalRefusal(
                Code.TIMEOUT, f"{name} was not ready within {deadline_s:.0f} s; the end of {log_path}:\n{child.tail()}"
            ) from None
        except BaseException:
            await child.kill9()
            raise
        return child

    async def _wait_ready(self, start_bytes: int, ready_file: Path | None) -> None:
        while True:
            alive = self.alive
            announced = self._announced(start_bytes) if ready_file is None else _exists(ready_file)
            if announced is not None:
                self.ready = announced
                return
            if not alive:
                raise LocalRefusal(
                    Code.PEER_UNAVAILABLE,
                    f"{self.name} ended with status {self._process.returncode} before it was ready; the end of "
                    f"{self.log_path}:\n{self.tail()}",
                )
            await asyncio.sleep(POLL_S)

    def _announced(self, start_bytes: int) -> dict[str, object] | None:
        with self.log_path.open("rb") as log:
            log.seek(start_bytes)
            lines = log.read(READY_SCAN_BYTES_MAX).split(b"\n")[:-1]
        for line in lines:
            if line.startswith(READY_PREFIX):
                with contextlib.suppress(ValueError):
                    value = orjson.loads(line[len(READY_PREFIX) :])
                    if isinstance(value, dict):
                        return value
        return None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The end of its log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError as error:
            return f"({error.strerror})"
        return "\n".join(text.splitlines()[-lines:])

    async def wait(self, deadline_s: float) -> int:
        """Its exit status, when it ends by itself. Raises LocalRefusal TIMEOUT."""
        try:
            async with asyncio.timeout(deadline_s):
                return await self._process.wait()
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"{self.name} still runs after {deadline_s:.0f} s") from None

    async def terminate(self, deadline_s: float = STOP_DEADLINE_S) -> int:
        """SIGTERM, then SIGKILL for what is left of its group after the deadline. Returns the exit status."""
        if self.alive:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(LocalRefusal):
                await self.wait(deadline_s)
        return await self.kill9()

    async def kill9(self) -> int:
        """SIGKILL to the whole group, as a crash would have it. Returns the exit status."""
        self._signal(signal.SIGKILL)
        status = await self.wait(KILL_DEADLINE_S)
        self._swept = True
        return status

    def _signal(self, number: signal.Signals) -> None:
        if not self._swept:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
                os.killpg(self._process.pid, number)


class Children:
    """The children of one job: `async with Children() as children: a = await children.start(…)`; all end with it."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    async def start(
        self,
        name: str,
        module: str,
        arguments: Sequence[str] = (),
        *,
        folder: Path,
        log_path: Path | None = None,
        env: Mapping[str, str] | None = None,
        ready_file: Path | None = None,
        deadline_s: float = READY_DEADLINE_S,
    ) -> Child:
        """What `Child.start` does; the child then belongs to this group."""
        child = await Child.start(
            name,
            module,
            arguments,
            folder=folder,
            log_path=log_path,
            env=env,
            ready_file=ready_file,
            deadline_s=deadline_s,
        )
        self._children = [other for other in self._children if other.alive] + [child]
        return child

    async def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Terminates all, the last started first, so that nobody loses what it depends on."""
        while self._children:
            await self._children[-1].terminate(deadline_s)
            self._children.pop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Shielded: a second Ctrl-C must not leave children behind.
        stopping = asyncio.ensure_future(self.stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            for child in self._children:
                child._signal(signal.SIGKILL)
            await stopping
            raise


def _prepare(folder: Path, ready_file: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)


def _exists(ready_file: Path) -> dict[str, object] | None:
    return {} if ready_file.exists() else None
