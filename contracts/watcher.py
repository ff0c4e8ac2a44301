"""What the chain says happened: seen, confirmed, or taken back.

Purpose: follow the logs of our contracts by polling. The pure core (`WatchState` and the functions on it) is fed with
headers and events; `Watcher` fetches them. Subscriptions would only be an optimisation.

Invariants:
- the state is a chain: every scanned block names the one before it as its parent. A reorganisation is found by hashes,
  never by `removed: true`, which endpoints forget to send;
- an event is confirmed when at least `confirmations` blocks, its own counted, have been scanned at or above its block
  (1: it is in the head). Each event is confirmed once, in the order of the chain;
- the cursor is the last block whose events are all confirmed. The caller stores it in the transaction that stores the
  effects. A watcher made from it confirms nothing twice, misses nothing, and shows what is unconfirmed as seen again;
- a block that is replaced at or below the cursor is not repaired here: InvariantBroken CHAIN_REORG, because effects of
  it are booked. `confirmations` is what makes that improbable;
- the work of one poll is bounded; `Poll.behind` says how many blocks are left;
- a poll that fails changes nothing.

Source: DESIGN section 2 (shells commit before effects); the traps that were measured: anvil's reorg gives no removed
logs, ranges above 32 blocks are slow on some endpoints.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from channel.errors import Code, InvariantBroken, LocalRefusal
from channel.units import ZERO_HASH, Address, Hash, format_hex
from contracts.client import BlockRef
from contracts.events import ChainEvent, RawLog, decode_log

RANGE_BLOCKS = 32  # blocks in one request
RANGES_MAX = 8  # requests for headers in one poll
CONFIRMATIONS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The last block whose events are confirmed. A zero hash stands for a block that nobody has looked at yet."""

    number: int
    hash: Hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """A block above the cursor with the events of ours in it, by log index."""

    block: BlockRef
    events: tuple[ChainEvent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """The cursor, and the blocks that are scanned above it, ascending without gaps."""

    confirmations: int
    cursor: Cursor
    window: tuple[Scanned, ...] = ()

    @property
    def top(self) -> Cursor:
        """The last scanned block."""
        if not self.window:
            return self.cursor
        block = self.window[-1].block
        return Cursor(number=block.number, hash=block.hash)


class NotLinked(Exception):
    """The next headers do not continue the scanned chain: there was a reorganisation."""


def extend(
    state: WatchState, blocks: Sequence[BlockRef], events: Iterable[ChainEvent]
) -> tuple[WatchState, tuple[ChainEvent, ...]]:
    """Scans blocks on top of the window. Returns the new state and the events, in the order of the chain.

    Raises NotLinked when a block does not follow the one before it, or an event is of a block that is not given: the
    chain has changed between two answers.
    """
    by_block: dict[Hash, list[ChainEvent]] = {block.hash: [] for block in blocks}
    for event in events:
        if event.ref.block_hash not in by_block:
            raise NotLinked
        by_block[event.ref.block_hash].append(event)
    top, window = state.top, list(state.window)
    seen: list[ChainEvent] = []
    for block in blocks:
        if block.number != top.number + 1 or (top.hash != ZERO_HASH and block.parent_hash != top.hash):
            raise NotLinked
        own = tuple(sorted(by_block[block.hash], key=lambda event: event.ref.log_index))
        window.append(Scanned(block=block, events=own))
        seen += own
        top = Cursor(number=block.number, hash=block.hash)
    return replace(state, window=tuple(window)), tuple(seen)


def rewind(state: WatchState, fork_number: int) -> tuple[WatchState, tuple[ChainEvent, ...]]:
    """Forgets the blocks above `fork_number`. Returns the new state and the events that are taken back."""
    kept = tuple(s for s in state.window if s.block.number <= fork_number)
    dropped = tuple(event for s in state.window[len(kept) :] for event in s.events)
    return replace(state, window=kept), dropped


def confirm(state: WatchState) -> tuple[WatchState, tuple[ChainEvent, ...]]:
    """Moves the cursor up to what is deep enough. Returns the new state and the events confirmed by that."""
    final_number = state.top.number - state.confirmations + 1
    done = tuple(s for s in state.window if s.block.number <= final_number)
    if not done:
        return state, ()
    last = done[-1].block
    cursor = Cursor(number=last.number, hash=last.hash)
    confirmed = tuple(event for s in done for event in s.events)
    return replace(state, cursor=cursor, window=state.window[len(done) :]), confirmed


def amend(state: WatchState, events: Iterable[ChainEvent]) -> tuple[WatchState, tuple[ChainEvent, ...]]:
    """Adds events of a newly watched contract to blocks scanned before. Returns the new state and the events.

    Raises NotLinked when an event is of a block that is not in the window.
    """
    window = {s.block.hash: s for s in state.window}
    seen = []
    for event in events:
        scanned = window.get(event.ref.block_hash)
        if scanned is None:
            raise NotLinked
        own = tuple(sorted((*scanned.events, event), key=lambda e: e.ref.log_index))
        window[event.ref.block_hash] = replace(scanned, events=own)
        seen.append(event)
    return replace(state, window=tuple(window.values())), tuple(seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Poll:
    """What one poll found. Apply `dropped`, then `seen`, then `confirmed`, and store `cursor` with the effects.

    `seen` holds what is new, also what is confirmed at once. `dropped` holds events seen before whose block is gone;
    the same transaction may be seen again, in another block. `behind`: blocks of the head's chain not scanned yet.
    """

    head: BlockRef
    seen: tuple[ChainEvent, ...]
    confirmed: tuple[ChainEvent, ...]
    dropped: tuple[ChainEvent, ...]
    cursor: Cursor
    behind: int


class ChainSource(Protocol):
    """What a watcher asks of a chain; `contracts.client.ChainClient` has it."""

    async def head(self) -> BlockRef: ...
    async def block(self, number: int) -> BlockRef | None: ...
    async def blocks(self, first: int, last: int) -> tuple[BlockRef, ...]: ...
    async def logs_of_blocks(self, hashes: Sequence[Hash], addresses: Sequence[Address]) -> tuple[RawLog, ...]: ...
    async def logs_in_range(self, first: int, last: int, addresses: Sequence[Address]) -> tuple[RawLog, ...]: ...


class Watcher:
    """Follows the events of some contracts. One task polls it; whoever fails to store a poll makes a new one."""

    def __init__(
        self,
        client: ChainSource,
        addresses: Iterable[Address],
        *,
        confirmations: int,
        cursor: Cursor | None = None,
        from_block: int = 0,
    ) -> None:
        """With a `cursor` goes on after it; without, starts with `from_block`. Raises LocalRefusal CONFIG."""
        if not 1 <= confirmations <= CONFIRMATIONS_MAX:
            raise LocalRefusal(Code.CONFIG, f"confirmations must be between 1 and {CONFIRMATIONS_MAX}")
        self._client = client
        self._addresses = tuple(dict.fromkeys(addresses))
        self._new_addresses: tuple[Address, ...] = ()
        start = cursor if cursor is not None else Cursor(number=from_block - 1, hash=ZERO_HASH)
        self._state = WatchState(confirmations=confirmations, cursor=start)
        self._head: BlockRef | None = None
        self._head_since_s = 0.0  # of the loop's clock

    @property
    def cursor(self) -> Cursor:
        return self._state.cursor

    @property
    def head(self) -> BlockRef | None:
        """The head of the last poll."""
        return self._head

    def add_address(self, address: Address) -> None:
        """Watches one more contract, for all blocks above the cursor."""
        if address not in self._addresses and address not in self._new_addresses:
            self._new_addresses += (address,)

    def head_age_s(self, now_unix_s: float) -> float | None:
        """How old the head is: by its own time or since it last changed, whichever is more. None before a poll.

        The second one counts where the chain's clock was moved forward, as on a test network.
        """
        if self._head is None:
            return None
        return max(now_unix_s - self._head.timestamp, asyncio.get_running_loop().time() - self._head_since_s)

    def require_fresh(self, now_unix_s: float, limit_s: float) -> None:
        """Raises LocalRefusal CHAIN_STALE when the head is older than `limit_s`, or was never seen."""
        age_s = self.head_age_s(now_unix_s)
        if age_s is None:
            raise LocalRefusal(Code.CHAIN_STALE, "the chain has not been read yet")
        if age_s > limit_s:
            raise LocalRefusal(
                Code.CHAIN_STALE, f"the chain's head is {age_s:.0f} s old; at most {limit_s:g} s are allowed"
            )

    async def poll(self) -> Poll:
        """Looks once. Raises LocalRefusal CHAIN, or InvariantBroken CHAIN_REORG; nothing has changed then."""
        head = await self._client.head()
        state, addresses = self._state, self._addresses
        state, dropped = await self._drop_replaced(state, head)
        seen: tuple[ChainEvent, ...] = ()
        confirmed: tuple[ChainEvent, ...] = ()
        try:
            if self._new_addresses:
                hashes = [s.block.hash for s in state.window]
                logs = await self._logs_by_hash(hashes, self._new_addresses)
                state, seen = amend(state, _events(logs))
                addresses += self._new_addresses
            for _ in range(RANGES_MAX):
                if state.top.number >= head.number:
                    break
                blocks, logs = await self._fetch(state.top.number + 1, head, addresses)
                state, new = extend(state, blocks, _events(logs))
                seen += new
                state, final = confirm(state)
                confirmed += final
        except NotLinked:
            # The chain changed while it was read. What was read until then is a chain; the next poll finds the fork.
            pass
        if self._head is None or head.hash != self._head.hash:
            self._head_since_s = asyncio.get_running_loop().time()
        self._head = head
        self._state = state
        if addresses != self._addresses:
            self._new_addresses = tuple(a for a in self._new_addresses if a not in addresses)
            self._addresses = addresses
        return Poll(
            head=head,
            seen=seen,
            confirmed=confirmed,
            dropped=dropped,
            cursor=state.cursor,
            behind=max(0, head.number - state.top.number),
        )

    async def _drop_replaced(self, state: WatchState, head: BlockRef) -> tuple[WatchState, tuple[ChainEvent, ...]]:
        """Goes down to the last scanned block that is still in the chain, and forgets those above it."""
        if head.number < state.cursor.number:
            return state, ()  # an endpoint that lags behind; it says nothing about the blocks that it lacks
        top = state.top
        if head.hash == top.hash or (head.number == top.number + 1 and head.parent_hash == top.hash):
            return state, ()
        candidates = [s.block for s in state.window if s.block.number <= head.number]
        known = await self._client.blocks(candidates[0].number, candidates[-1].number) if candidates else ()
        canonical = {block.number: block.hash for block in known}
        canonical[head.number] = head.hash
        for block in reversed(candidates):
            if canonical.get(block.number) == block.hash:
                if block is candidates[-1]:
                    return state, ()  # nothing that this endpoint has contradicts what was scanned
                return rewind(state, block.number)
        await self._require_cursor(state.cursor)
        return rewind(state, state.cursor.number) if candidates else (state, ())

    async def _require_cursor(self, cursor: Cursor) -> None:
        if cursor.number < 0 or cursor.hash == ZERO_HASH:
            return
        block = await self._client.block(cursor.number)
        if block is not None and block.hash != cursor.hash:
            raise InvariantBroken(
                Code.CHAIN_REORG,
                f"block {cursor.number} was confirmed as {format_hex(cursor.hash)} and is {format_hex(block.hash)} now:"
                " the chain was reorganised deeper than the confirmations that are configured",
                number=cursor.number,
                confirmed=cursor.hash,
                found=block.hash,
            )

    async def _fetch(
        self, first: int, head: BlockRef, addresses: tuple[Address, ...]
    ) -> tuple[tuple[BlockRef, ...], tuple[RawLog, ...]]:
        """Headers and logs of up to a range of blocks from `first`.

        Near the head the logs are asked by block hash: an endpoint behind a load balancer that lacks a block must then
        say so, where a range would come back empty and a deposit would be missed.
        """
        last = min(first + RANGE_BLOCKS - 1, head.number)
        blocks = (head,) if first == head.number else await self._client.blocks(first, last)
        if not blocks:
            raise NotLinked
        if not addresses:
            return blocks, ()  # to an endpoint, no address means every address
        if head.number - first < RANGE_BLOCKS + self._state.confirmations:
            return blocks, await self._logs_by_hash([block.hash for block in blocks], addresses)
        return blocks, await self._client.logs_in_range(first, blocks[-1].number, addresses)

    async def _logs_by_hash(self, hashes: Sequence[Hash], addresses: tuple[Address, ...]) -> tuple[RawLog, ...]:
        logs: tuple[RawLog, ...] = ()
        for start in range(0, len(hashes), RANGE_BLOCKS):
            logs += await self._client.logs_of_blocks(hashes[start : start + RANGE_BLOCKS], addresses)
        return logs


def _events(logs: Iterable[RawLog]) -> list[ChainEvent]:
    return [event for log in logs if (event := decode_log(log)) is not None]
