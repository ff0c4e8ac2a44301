"""The engine: executes actions on the core, commits them, and only then lets their effects out.

Execution is synchronous and in order; commits are grouped by the store's writer; effects are released in the order of
execution, each after the commit that holds its action. When a commit fails, nothing is released any more: the node has
stopped signing, and reads still answer. DESIGN section 4, rule 4; FAULTS 1, 2, 13.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker.actions import Action, Propose, decode
from broker.core import Core
from broker.effects import Effect, Journalled, Opened
from broker.records import Rows
from channel.errors import Code, InvariantBroken, LocalRefusal, PeerFault, XlnError
from channel.typed import Domain
from node import logs
from node.clock import Clock
from node.store import Statement, Store

MAX_UNRELEASED = 8_192
MAX_UNRELEASED_BYTES = 64 * 1024 * 1024  # a quarter of what the store takes: it never refuses what was executed
PAGE_ROWS = 5_000

_log = logs.get("broker.engine")


@dataclass(slots=True)
class _Release:
    durable: "asyncio.Future[None]"
    effects: list[Effect]
    done: "asyncio.Future[list[Effect]]"
    size_bytes: int = 0
    work: Callable[[], None] | None = None


class Engine:
    """Owns the core. `release(effects)` is called with the effects of each action, in order, once they are durable."""

    def __init__(self, core: Core, store: Store, clock: Clock, release: Callable[[Sequence[Effect]], None]) -> None:
        self.core = core
        self.store = store
        self.clock = clock
        self.rows = Rows(core.exchange.address)
        self.failure: str | None = None
        self._release = release
        self._queue: deque[_Release] = deque()
        self._queued_bytes = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    # -- start

    async def replay(self, custody: Domain) -> int:
        """Executes what the database has, and checks that the same journals come out. Returns the number of actions.

        Raises InvariantBroken STORAGE when this program would have done something else than what was done.
        """
        count, last = 0, {}
        async for page in self.store.pages("SELECT n, ts_ms, action FROM actions ORDER BY n", page_rows=PAGE_ROWS):
            for _, ts_ms, text in page:
                effects = self.core.execute(decode(str(text), custody), int(str(ts_ms)))
                self._note_opened(effects)
                self.rows.count(effects)
                last.update({e.channel_id: e for e in effects if isinstance(e, Journalled)})
                count += 1
        for channel_id, effect in last.items():
            stored = await self.store.read(
                "SELECT n, record FROM journal WHERE channel = ? ORDER BY n DESC LIMIT 1", (channel_id,)
            )
            expected = (self.rows.journal_length[channel_id] - 1, self.rows.record_text(effect))
            if not stored or (stored[0][0], stored[0][1]) != expected:
                raise InvariantBroken(Code.STORAGE, "replaying the actions does not give the journal that was stored")
        return count

    # -- running

    def execute(self, action: Action, extra: Sequence[Statement] = ()) -> "asyncio.Future[list[Effect]]":
        """Executes one action now; the future gives its effects once they are durable and released.

        Raises at once, with nothing changed: PeerFault and LocalRefusal of the action, BUSY when too much waits for the
        disk, STORAGE when the disk has failed. InvariantBroken stops the node.
        """
        return self.execute_all([action], extra)

    def execute_all(self, actions: Sequence[Action], extra: Sequence[Statement] = ()) -> "asyncio.Future[list[Effect]]":
        """Several actions and further rows in one transaction. Only the first action may be refused."""
        if self.failure is not None:
            raise LocalRefusal(Code.STORAGE, self.failure)
        if len(self._queue) >= MAX_UNRELEASED or self._queued_bytes >= MAX_UNRELEASED_BYTES:
            raise LocalRefusal(Code.BUSY, "too many actions wait for the disk")
        now_ms = self.clock.now_ms()
        statements, effects = list(extra), list[Effect]()
        for index, action in enumerate(actions):
            done = self._execute_one(action, now_ms, first=index == 0)
            if isinstance(action, Propose) and not done:
                continue  # nothing to say: nothing changed
            self._note_opened(done)
            statements += self.rows.statements(action, now_ms, done)
            effects += done
        waiter: asyncio.Future[list[Effect]] = asyncio.get_running_loop().create_future()
        if not statements:
            waiter.set_result([])
            return waiter
        try:
            durable = self.store.submit(statements)
        except (LocalRefusal, InvariantBroken) as error:
            self._fail(f"{error}; the node has stopped signing")
            raise
        self._enqueue(_Release(durable, effects, waiter, _size_of(statements)))
        return waiter

    def after(self, work: Callable[[], None]) -> None:
        """Runs `work` in the order of releases: when all that was executed until now is durable and released.

        What is read from the core now and sent by `work` then cannot leave before its commit. Raises LocalRefusal
        STORAGE when the disk has failed; `work` never runs when it fails meanwhile.
        """
        if self.failure is not None:
            raise LocalRefusal(Code.STORAGE, self.failure)
        if not self._queue:
            work()
            return
        loop = asyncio.get_running_loop()
        durable: asyncio.Future[None] = loop.create_future()
        durable.set_result(None)
        self._enqueue(_Release(durable, [], loop.create_future(), work=work))

    def _enqueue(self, item: _Release) -> None:
        self._queue.append(item)
        self._queued_bytes += item.size_bytes
        if not self._has_room():
            self._room.clear()
        self._changed.set()

    def _has_room(self) -> bool:
        return len(self._queue) < MAX_UNRELEASED // 2 and self._queued_bytes < MAX_UNRELEASED_BYTES // 2

    def _execute_one(self, action: Action, now_ms: int, *, first: bool) -> list[Effect]:
        try:
            return self.core.execute(action, now_ms)
        except InvariantBroken as error:
            if error.code is not Code.FORK:  # a fork is found before anything changes; the channel is frozen for it
                self._fail(f"{error}; the node has stopped")
            raise
        except (PeerFault, LocalRefusal) as error:
            if not first:
                self._fail(f"an action was half done: {error}")
                raise InvariantBroken(Code.CONSERVATION, f"an action was half done: {error}") from error
            raise

    def _note_opened(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Opened):
                self.rows.fixed[effect.channel_id] = self.core.desk(effect.channel_id).channel.fixed

    def _fail(self, message: str) -> None:
        if self.failure is None:
            self.failure = message
            _log.error("stopped", reason=message)

    async def room(self) -> None:
        """Returns when less than half of what may wait for the disk does: back pressure for peers' messages."""
        await self._room.wait()

    async def durable(self) -> None:
        """Returns when everything executed so far is on the disk. Raises LocalRefusal STORAGE when it is not."""
        if self._queue:
            await asyncio.wait([self._queue[-1].done])
        if self.failure is not None:
            raise LocalRefusal(Code.STORAGE, self.failure)

    async def run(self) -> None:
        """Releases effects for ever, in order."""
        while True:
            while not self._queue:
                self._changed.clear()
                await self._changed.wait()
            item = self._queue[0]
            try:
                await item.durable
            except (LocalRefusal, InvariantBroken) as error:
                self._fail(f"{error}; the node has stopped signing")
                self._abandon(error)
                return
            self._queue.popleft()
            self._queued_bytes -= item.size_bytes
            if self._has_room():
                self._room.set()
            try:
                if item.work is not None:
                    item.work()
                self._release(item.effects)
            except XlnError as error:  # a peer that is gone, say: what it lacks is sent when it syncs
                _log.warning("not released", error=str(error))
            if not item.done.done():
                item.done.set_result(item.effects)

    def _abandon(self, error: Exception) -> None:
        """What waits was not committed: nobody gets an answer that says it was."""
        for item in self._queue:
            item.durable.cancel()
            if not item.done.done():
                item.done.set_exception(LocalRefusal(Code.STORAGE, f"not stored: {error}"))
                item.done.exception()  # seen, so that nobody's absence is logged
        self._queue.clear()
        self._room.set()


def _size_of(statements: Sequence[Statement]) -> int:
    return sum(len(value) for _, params in statements for value in params if isinstance(value, (str, bytes)))
