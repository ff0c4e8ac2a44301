"""The plan at work: users of B rest the flow, users of A take it, and the other way round, all over the trader API.

Each maker has a lane of its own, so that the operations on one order stay in their order while the makers run side by
side; takers have lanes too. Lanes are short queues: nobody runs far ahead of the others. An operation on an order that
is consumed by then is skipped and counted, as in the issue; any other refusal is counted by its code.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Final

from broker.client import BrokerClient, OrderView
from broker.clob.book import Side
from channel.errors import Code, LocalRefusal, PeerFault
from channel.signing import Signer
from channel.terms import SIDES
from channel.units import Hash, format_amount
from devnet.flow import DEMO_LOT_BASE_UNITS, STARTING_ROWS, FlowKind, FlowOp, TakerOp
from devnet.network import MARKET, Network
from devnet.plan import (
    CROSS_EVERY,
    CROSS_TAKERS,
    MAKERS,
    RESTERS,
    TAKER_LANES,
    TAKERS,
    Operation,
    Plan,
    cross_rounds,
    maker_of,
    taker_of,
    with_slippage,
)

LANE_QUEUE: Final = 8  # operations that a lane may be behind
BOOK_DEADLINE_S: Final = 20.0  # until A sees B's starting book
SEEN_DEADLINE_S: Final = 0.5  # until B sees an order that rests at A
PAUSE_S: Final = 0.02
AMEND_ATTEMPTS: Final = 50  # while a part of the order is at the peer

_GONE = (Code.ORDER_UNKNOWN,)
_REFUSALS = {code for code in Code if code.name.startswith("ORDER_")} | {Code.CHANNEL_PHASE, Code.BALANCE}


@dataclass(slots=True, kw_only=True)
class TradeStats:
    """What was done, and what came of it. Latencies in milliseconds, of A's orders that went to B."""

    added: int = 0
    amended: int = 0
    removed: int = 0
    skipped_consumed: int = 0
    taken: int = 0
    taken_filled: int = 0  # at least a part of it
    taken_nothing: int = 0  # no liquidity on that side, or gone by then
    crosses: int = 0
    crosses_filled: int = 0
    crosses_skipped: int = 0  # no room inside the spread
    refused: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0


class _Lane:
    """A bounded queue of operations, done one after the other."""

    def __init__(self, work: Callable[[Operation], Awaitable[None]]) -> None:
        self._work = work
        self._queue: asyncio.Queue[Operation | None] = asyncio.Queue(LANE_QUEUE)

    async def put(self, operation: Operation) -> None:
        await self._queue.put(operation)

    async def end(self) -> None:
        await self._queue.put(None)

    async def drained(self) -> None:
        await self._queue.join()

    async def run(self) -> None:
        while (operation := await self._queue.get()) is not None:
            await self._work(operation)
            self._queue.task_done()


class Trading:
    """One run of a plan's operations. `users_a` and `users_b` in the order of the plan's deposits."""

    def __init__(self, net: Network, plan: Plan, users_a: Sequence[Signer], users_b: Sequence[Signer]) -> None:
        assert len(users_a) == TAKERS + RESTERS
        assert len(users_b) == MAKERS + CROSS_TAKERS
        self.stats = TradeStats()
        self._net = net
        self._plan = plan
        self._users_a = users_a
        self._users_b = users_b
        self._orders: dict[int, Hash] = {}  # by the flow's reference; gone when consumed or removed
        self._clients_a: list[BrokerClient] = []
        self._clients_b: list[BrokerClient] = []

    async def run(self, progress: Callable[[int], None], half: Callable[[], Awaitable[None]]) -> None:
        """Everything in the plan. `progress` is told how many operations are handed out, `half` runs beside the second
        half. Raises what a broker answers that is no refusal of an order."""
        started_s = time.monotonic()
        async with AsyncExitStack() as stack:
            for users, clients, broker in (
                (self._users_a, self._clients_a, self._net.a),
                (self._users_b, self._clients_b, self._net.b),
            ):
                for user in users:
                    clients.append(await stack.enter_async_context(self._net.client(broker, user)))
            makers = [_Lane(self._make) for _ in range(MAKERS)]
            takers = [_Lane(self._take) for _ in range(TAKER_LANES)]
            crossing = _Crossing(self)
            async with asyncio.TaskGroup() as group:
                for lane in (*makers, *takers):
                    group.create_task(lane.run())
                group.create_task(crossing.run())
                for number, operation in enumerate(self._plan.operations):
                    if number == STARTING_ROWS:
                        await asyncio.gather(*(lane.drained() for lane in makers))
                        await self._book_is_seen()
                    if number == len(self._plan.operations) // 2:
                        group.create_task(_run(half))
                    progress(number)
                    if isinstance(operation, TakerOp):
                        await takers[operation.number % TAKER_LANES].put(operation)
                        if operation.number % CROSS_EVERY == 0:
                            crossing.due.release()
                    else:
                        await makers[maker_of(operation.order_ref)].put(operation)
                for lane in (*makers, *takers):
                    await lane.end()
                crossing.is_over = True
                crossing.due.release()
        progress(len(self._plan.operations))
        self.stats.seconds = time.monotonic() - started_s

    async def _book_is_seen(self) -> None:
        """Waits until A shows both sides of B's book. Raises LocalRefusal TIMEOUT."""
        try:
            async with asyncio.timeout(BOOK_DEADLINE_S):
                while True:
                    book = await self._clients_a[0].book(MARKET, 1)
                    if book.bids and book.asks:
                        return
                    await asyncio.sleep(PAUSE_S)
        except TimeoutError:
            raise LocalRefusal(Code.TIMEOUT, f"A does not see B's book after {BOOK_DEADLINE_S:.0f} s") from None

    # -- makers

    async def _make(self, op: Operation) -> None:
        assert isinstance(op, FlowOp)
        client = self._clients_b[maker_of(op.order_ref)]
        try:
            match op.kind:
                case FlowKind.ADD:
                    view = await client.create_order(MARKET, SIDES[op.side], _amount(op.lots), _price(op.price_ticks))
                    self.stats.added += 1
                    self._remember(op, view)
                case FlowKind.AMEND:
                    await self._amend(client, op)
                case FlowKind.REMOVE:
                    order_id = self._orders.pop(op.order_ref, None)
                    if order_id is None:
                        self.stats.skipped_consumed += 1
                        return
                    await client.cancel(order_id)
                    self.stats.removed += 1
        except PeerFault as fault:
            if fault.code in _GONE:
                self._orders.pop(op.order_ref, None)
                self.stats.skipped_consumed += 1
            else:
                self._refused(fault)

    async def _amend(self, client: BrokerClient, op: FlowOp) -> None:
        order_id = self._orders.get(op.order_ref)
        if order_id is None:
            self.stats.skipped_consumed += 1
            return
        for attempt in range(AMEND_ATTEMPTS):
            try:
                view = await client.amend(order_id, price=_price(op.price_ticks), amount=_amount(op.lots))
            except PeerFault as fault:
                # It crossed into A's book and waits for the answer.
                if fault.code is not Code.ORDER_TYPE or attempt == AMEND_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(PAUSE_S)
                continue
            self.stats.amended += 1
            self._remember(op, view)
            return

    def _remember(self, op: FlowOp, view: OrderView) -> None:
        if view.status == "open":
            self._orders[op.order_ref] = view.order_id
        else:
            self._orders.pop(op.order_ref, None)

    def _refused(self, fault: PeerFault) -> None:
        if fault.code not in _REFUSALS:
            raise fault
        self.stats.refused[fault.code.label] += 1

    # -- takers

    async def _take(self, op: Operation) -> None:
        """A user of A takes at once, at the best price there is, up to the slippage."""
        assert isinstance(op, TakerOp)
        client = self._clients_a[taker_of(op.number)]
        book = await client.book(MARKET, 1)
        levels = book.asks if op.side is Side.BUY else book.bids
        self.stats.taken += 1
        if not levels:
            self.stats.taken_nothing += 1
            return
        at_peer = levels[0].local_lots == 0
        price = _price(with_slippage(op.side, levels[0].ticks))
        started_s = time.perf_counter()
        try:
            view = await client.create_order(MARKET, SIDES[op.side], _amount(op.lots), price, "IOC")
        except PeerFault as fault:
            self._refused(fault)
            return
        if at_peer:
            self.stats.latencies_ms.append((time.perf_counter() - started_s) * 1000)
        if view.filled_lots:
            self.stats.taken_filled += 1
        else:
            self.stats.taken_nothing += 1


class _Crossing:
    """Now and then a user of A rests an order inside B's spread, and a user of B takes it: routed from B to A."""

    def __init__(self, trading: Trading) -> None:
        self.due = asyncio.Semaphore(0)
        self.is_over = False
        self._trading = trading
        self._rng = Random(trading._plan.seed + 2)

    async def run(self) -> None:
        for number, (side, lots) in enumerate(cross_rounds(self._trading._plan.seed, self._trading._plan.takers)):
            await self.due.acquire()
            if self.is_over:
                return
            await self._round(number, side, lots)

    async def _round(self, number: int, side: Side, lots: int) -> None:
        stats = self._trading.stats
        rester = self._trading._clients_a[TAKERS + number % RESTERS]
        taker = self._trading._clients_b[MAKERS + number % CROSS_TAKERS]
        book = await rester.book(MARKET, 1)
        if not book.bids or not book.asks or book.asks[0].ticks - book.bids[0].ticks < 2:
            stats.crosses_skipped += 1
            return
        resting_side = Side(1 - side)
        ticks = book.bids[0].ticks + 1 if resting_side is Side.BUY else book.asks[0].ticks - 1
        stats.crosses += 1
        try:
            rested = await rester.create_order(MARKET, SIDES[resting_side], _amount(lots), _price(ticks))
            if rested.open_lots:
                await self._is_seen(taker, side, ticks)
                part = self._rng.randint(max(1, lots // 2), lots)
                view = await taker.create_order(MARKET, SIDES[side], _amount(part), _price(ticks), "IOC")
                stats.crosses_filled += bool(view.filled_lots)
            if rested.status == "open":
                await rester.cancel(rested.order_id)
        except PeerFault as fault:
            if fault.code not in _GONE:  # filled by somebody else by the time it is cancelled
                self._trading._refused(fault)

    async def _is_seen(self, taker: BrokerClient, side: Side, ticks: int) -> None:
        """Waits a little for B to see A's order; B's taker tries anyhow."""
        deadline_s = time.monotonic() + SEEN_DEADLINE_S
        while time.monotonic() < deadline_s:
            book = await taker.book(MARKET, 1)
            levels = book.asks if side is Side.BUY else book.bids
            best = levels[0].ticks if levels else None
            if best is not None and (best <= ticks if side is Side.BUY else best >= ticks):
                return
            await asyncio.sleep(PAUSE_S)


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _price(ticks: int) -> str:
    return format_amount(ticks, 2)  # the demo's tick is 0.01


def _amount(lots: int) -> str:
    return format_amount(lots * DEMO_LOT_BASE_UNITS, 8)
