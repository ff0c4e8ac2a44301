"""Runs the main coroutine of a process: signals, deadlines, exit status.

Invariants: the first SIGINT or SIGTERM asks `main` to stop and starts a deadline; a second one, or the deadline,
cancels it; if even that does not end it, the process ends anyway. A failure with a code is one line on stderr and
status 1; an unexpected one goes to the log with its traceback, the user gets one line, status 70. House rule 8.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Final

from channel.errors import XlnError
from node import logs

EXIT_REFUSED: Final = 1
EXIT_INTERNAL: Final = 70  # EX_SOFTWARE
CANCEL_DEADLINE_S: Final = 5.0

_log = logs.get("node.supervise")


class Stop:
    """The request to stop, which `main` watches."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._reason = ""

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    @property
    def reason(self) -> str:
        """Who asked: the name of a signal, or what `request` was given. Empty until then."""
        return self._reason

    def request(self, reason: str) -> None:
        """Asks for a graceful stop. The first reason counts."""
        if not self._event.is_set():
            self._reason = reason
            self._event.set()

    async def wait(self) -> None:
        await self._event.wait()


Main = Callable[[Stop], Awaitable[int | None]]


def run(main: Main, *, stop_deadline_s: float = 15.0) -> int:
    """Runs `main(stop)` in a new event loop to its end; returns the exit status of the process.

    `main` returns its status (None is 0) when its work is done or soon after `stop` is requested; it has
    `stop_deadline_s` for that. It is 128 + the signal's number when it had to be cancelled.
    """
    try:
        with asyncio.Runner() as runner:
            return runner.run(_supervise(main, stop_deadline_s))
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - the outermost frame: nobody above to tell
        return report(error)


def report(error: BaseException) -> int:
    """Tells the user in a line per failure, and the log the traceback of unexpected ones. Returns the exit status."""
    leaves = _leaves(error)
    expected = [leaf for leaf in leaves if isinstance(leaf, XlnError)]
    if len(expected) == len(leaves):
        for line in dict.fromkeys(f"error: {leaf}" for leaf in expected):
            print(logs.redact(line), file=sys.stderr)  # noqa: T201 - what the user gets to see
            _log.error("stopped", error=line)
        return EXIT_REFUSED
    _log.exception("unexpected failure", error)
    first = next(leaf for leaf in leaves if not isinstance(leaf, XlnError))
    text = f"error: internal: {type(first).__name__}: {first} (this is a bug; the log has the details)"
    print(logs.redact(text), file=sys.stderr)  # noqa: T201 - what the user gets to see
    return EXIT_INTERNAL


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _supervise(main: Main, stop_deadline_s: float) -> int:
    loop = asyncio.get_running_loop()
    stop = Stop()
    task = asyncio.ensure_future(main(stop))
    status_if_cancelled = EXIT_REFUSED

    def on_signal(number: signal.Signals) -> None:
        nonlocal status_if_cancelled
        status_if_cancelled = 128 + number
        if stop.requested:
            _log.warning("second signal, stopping at once", signal=number.name)
            task.cancel()
        else:
            _log.info("stopping", signal=number.name)
            stop.request(number.name)

    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal, number)
            handlers.callback(loop.remove_signal_handler, number)
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait((task,), timeout=stop_deadline_s)
            if not task.done():
                _log.error("did not stop in time", deadline_s=stop_deadline_s)
                task.cancel()
                await asyncio.wait((task,), timeout=CANCEL_DEADLINE_S)
            if not task.done():
                print("error: internal: the process does not stop and is ended", file=sys.stderr)  # noqa: T201
                _log.error("ended by force")
                sys.stderr.flush()
                os._exit(status_if_cancelled)
        finally:
            stopping.cancel()
    if task.cancelled():
        return status_if_cancelled
    return task.result() or 0


async def together(stop: Stop, *services: Coroutine[object, object, object]) -> None:
    """Runs services side by side until `stop` is requested, then cancels them and waits for them.

    A service that raises stops all others, and the error comes out as an exception group. One that returns is done;
    when all are done, so is this.
    """

    async def watch(tasks: Sequence["asyncio.Task[object]"]) -> None:
        waiting = asyncio.create_task(stop.wait())
        all_done = asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.wait((waiting, all_done), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in tasks:
            task.cancel()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(service) for service in services]
        group.create_task(watch(tasks))
