"""The order book and the exchange on order flow: operations a second, and how long single operations take.

The flow is `devnet.flow`'s: recorded or generated, with a taker after every fifth operation. `book` is the CLOB alone,
with the changes of its levels drained after each operation, as the node does. `exchange` is the broker's core around
it: the same operations as users' orders, with ledger, amendments, evidence of what changed, and the check of the whole
ledger after every action. Signatures are not verified here (they are in `limits`). DESIGN section 8.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from bench.measure import RUNS, Beside, Effort, Section, median_of, quantiles
from bench.pair import BTC, CHAIN_ID, FUNDS, START_MS, USD, custody_of, market_of
from broker.actions import Action, CancelUserOrder, DepositConfirmed, DepositSeen, PlaceOrder
from broker.clob.book import OrderBook, OrderId, Side
from broker.core import Core
from channel.errors import Code, LocalRefusal
from channel.orders import Order, OrderType, SignedOrder, TimeInForce
from channel.signing import Signer
from channel.typed import custody_domain
from channel.units import ZERO_HASH, Address, Hash
from devnet.flow import FlowKind, FlowOp, FlowStats, TakerOp, generate_flow, normalise, read_flow, takers

TAKER_EVERY: Final = 5
SEED: Final = 1
MAKER, TAKER = Address(b"\x51" * 20), Address(b"\x52" * 20)
SLIPPAGE: Final = 1_000  # one part in so many
US_PER_NS: Final = 1e-3

Operation = FlowOp | TakerOp
Step = Callable[[], object]


def load_flow(flow: Path | None, rows: int) -> tuple[Operation, ...]:
    """The first `rows` rows of a file, or as many generated ones. Raises what `read_flow` and `normalise` raise."""
    source = generate_flow(SEED, rows) if flow is None else islice(read_flow(flow), rows)
    operations = tuple(takers(normalise(source, stats=FlowStats()), every=TAKER_EVERY, seed=SEED))
    if not operations:
        raise LocalRefusal(Code.CONFIG, "the flow has no operations")
    return operations


async def measure_book(effort: Effort, flow: Path | None, say: Callable[[str], None]) -> Section:
    name = "generated flow" if flow is None else flow.name
    say(f"reading {name}")
    operations = load_flow(flow, effort.flow_rows)
    section = Section(key="book", title=f"The book on {name}, one core")
    say("the book alone")
    book = median_of(effort.repetitions, lambda: _rate(_book_steps(operations)))
    floor = median_of(effort.repetitions, lambda: _rate(_floor_steps(operations)))
    section.add_beside("book, operations", book, "/s", "a dict and a call for each", floor, Beside.LIMIT,
                       note="place, reduce, cancel, match; changes of levels drained")  # fmt: skip
    _add_quantiles(section, "book", _times(_book_steps(operations)))
    await asyncio.sleep(0)  # Ctrl-C is heard here
    say("the exchange: book, ledger, checks")
    actions = exchange_actions(operations)
    exchange = median_of(RUNS, lambda: _rate(_exchange_steps(actions)))
    section.add_beside("book and ledger (exchange), operations", exchange, "/s", "the book alone", book, Beside.LIMIT)
    _add_quantiles(section, "exchange", _times(_exchange_steps(actions)))
    section.notes.append(
        f"{len(operations)} operations of the flow, a taker after every {TAKER_EVERY} of makers; rates are medians of"
        f" {effort.repetitions} runs of the book and {RUNS} of the exchange; quantiles are of one run and"
        " include the clock (0.1 us)."
    )
    return section


def _add_quantiles(section: Section, name: str, took_us: Sequence[float]) -> None:
    for label, value in zip(("p50", "p99", "p99.9"), quantiles(took_us), strict=True):
        section.add(f"{name}, one operation, {label}", value, "us")


def _rate(steps: Iterator[Step]) -> float:
    """Operations a second of processor time. The steps are all there before the clock starts."""
    ready = list(steps)
    gc.collect()
    started_s = time.process_time()
    for step in ready:
        step()
    return len(ready) / (time.process_time() - started_s)


def _times(steps: Iterator[Step]) -> list[float]:
    """Microseconds of each operation."""
    took_us = []
    clock_ns = time.perf_counter_ns
    ready = list(steps)
    gc.collect()
    for step in ready:
        started_ns = clock_ns()
        step()
        took_us.append((clock_ns() - started_ns) * US_PER_NS)
    return took_us


# -- the book alone


@dataclass(slots=True)
class _BookRun:
    """One pass of the flow over a fresh book; every method is one operation."""

    book: OrderBook

    def add(self, order_id: OrderId, side: Side, price_ticks: int, lots: int) -> None:
        self.book.place(order_id=order_id, owner=MAKER, side=side, price_ticks=price_ticks, lots=lots, rest=True)
        self.book.drain_changes()

    def amend(self, order_id: OrderId, side: Side, price_ticks: int, lots: int) -> None:
        resting = self.book.get(order_id)
        if resting is None:
            return  # consumed by then: skipped, as in the demo
        if resting.price_ticks == price_ticks and lots <= resting.lots:
            self.book.reduce(order_id, lots)
        else:
            self.book.cancel(order_id)
            self.book.place(order_id=order_id, owner=MAKER, side=side, price_ticks=price_ticks, lots=lots, rest=True)
        self.book.drain_changes()

    def remove(self, order_id: OrderId) -> None:
        if order_id in self.book:
            self.book.cancel(order_id)
            self.book.drain_changes()

    def take(self, order_id: OrderId, side: Side, lots: int) -> None:
        best = self.book.best(Side(1 - side))
        if best is None:
            return
        self.book.place(
            order_id=order_id, owner=TAKER, side=side, price_ticks=_worst(side, best), lots=lots, rest=False
        )
        self.book.drain_changes()


def _worst(side: Side, best_ticks: int) -> int:
    shift = best_ticks // SLIPPAGE
    return best_ticks + shift if side is Side.BUY else max(1, best_ticks - shift)


def _order_id(kind: int, number: int) -> OrderId:
    return OrderId(bytes([kind]) + number.to_bytes(31, "big"))


def _book_steps(operations: Sequence[Operation]) -> Iterator[Step]:
    run = _BookRun(OrderBook())
    for op in operations:
        if isinstance(op, TakerOp):
            yield _bind(run.take, _order_id(1, op.number), op.side, op.lots)
        elif op.kind is FlowKind.ADD:
            yield _bind(run.add, _order_id(0, op.order_ref), op.side, op.price_ticks, op.lots)
        elif op.kind is FlowKind.AMEND:
            yield _bind(run.amend, _order_id(0, op.order_ref), op.side, op.price_ticks, op.lots)
        else:
            yield _bind(run.remove, _order_id(0, op.order_ref))


def _bind(method: Callable[..., object], *arguments: object) -> Step:
    return lambda: method(*arguments)


@dataclass(slots=True)
class _Floor:
    """The least that a book in this interpreter could do: one call, one entry of a dict set or removed."""

    orders: dict[OrderId, tuple[int, int]]

    def put(self, order_id: OrderId, price_ticks: int, lots: int) -> None:
        self.orders[order_id] = (price_ticks, lots)

    def remove(self, order_id: OrderId) -> None:
        self.orders.pop(order_id, None)


def _floor_steps(operations: Sequence[Operation]) -> Iterator[Step]:
    floor = _Floor({})
    for op in operations:
        if isinstance(op, TakerOp):
            yield _bind(floor.remove, _order_id(1, op.number))
        elif op.kind is FlowKind.REMOVE:
            yield _bind(floor.remove, _order_id(0, op.order_ref))
        else:
            yield _bind(floor.put, _order_id(0, op.order_ref), op.price_ticks, op.lots)


# -- the exchange


@dataclass(frozen=True, slots=True)
class _Placed:
    """A maker's order: as signed last, and under which id it rests (an amendment in place keeps the first)."""

    signed: SignedOrder
    book_id: OrderId


class _Traders:
    """Turns the flow into users' actions. A book of its own says what is still open when an operation comes."""

    def __init__(self) -> None:
        address = _broker().address
        self._domain = custody_domain(CHAIN_ID, custody_of(address))
        self._market_id = market_of(address).market_id
        self._book = OrderBook()
        self._placed: dict[int, _Placed] = {}
        self._nonce = 0

    def action(self, op: Operation) -> Action | None:
        """None for an operation that comes too late, or finds nothing."""
        if isinstance(op, TakerOp):
            return self._take(op)
        old = self._placed.pop(op.order_ref, None)
        resting = None if old is None else self._book.get(old.book_id)
        if op.kind is FlowKind.ADD:
            return self._make(op, ZERO_HASH)
        if old is None or resting is None:
            return None
        if op.kind is FlowKind.REMOVE:
            self._book.cancel(old.book_id)
            return CancelUserOrder(old.signed.order_id, MAKER)
        if resting.price_ticks == op.price_ticks and op.lots <= resting.lots:
            signed = self._sign(MAKER, op, op.price_ticks, TimeInForce.GTC, old.signed.order_id)
            self._book.reduce(old.book_id, op.lots)
            self._placed[op.order_ref] = _Placed(signed, old.book_id)
            return PlaceOrder(signed, (), op.price_ticks)
        self._book.cancel(old.book_id)
        return self._make(op, old.signed.order_id)

    def _make(self, op: FlowOp, replaces: Hash) -> Action:
        signed = self._sign(MAKER, op, op.price_ticks, TimeInForce.GTC, replaces)
        self._placed[op.order_ref] = _Placed(signed, OrderId(signed.order_id))
        self._match(signed, MAKER, op, op.price_ticks, rest=True)
        return PlaceOrder(signed, (), op.price_ticks)

    def _take(self, op: TakerOp) -> Action | None:
        best = self._book.best(Side(1 - op.side))
        if best is None:
            return None
        signed = self._sign(TAKER, op, _worst(op.side, best), TimeInForce.IOC, ZERO_HASH)
        self._match(signed, TAKER, op, signed.order.price_ticks, rest=False)
        return PlaceOrder(signed, (), signed.order.price_ticks)

    def _match(self, signed: SignedOrder, owner: Address, op: Operation, price_ticks: int, *, rest: bool) -> None:
        self._book.place(
            order_id=OrderId(signed.order_id),
            owner=owner,
            side=op.side,
            price_ticks=price_ticks,
            lots=op.lots,
            rest=rest,
        )

    def _sign(
        self, owner: Address, op: Operation, price_ticks: int, in_force: TimeInForce, replaces: Hash
    ) -> SignedOrder:
        """With an empty signature: the core takes orders whose signature was verified before."""
        self._nonce += 1
        order = Order(
            owner=owner,
            market_id=self._market_id,
            side=int(op.side),
            order_type=OrderType.LIMIT,
            time_in_force=in_force,
            price_ticks=price_ticks,
            amount_lots=op.lots,
            valid_until_ms=START_MS + 3_600_000,
            nonce=self._nonce,
            replaces=replaces,
        )
        return SignedOrder(order=order, signature=bytes(65), order_id=order.digest(self._domain))


def exchange_actions(operations: Iterable[Operation]) -> list[Action]:
    traders = _Traders()
    return [action for op in operations if (action := traders.action(op)) is not None]


def _broker() -> Signer:
    return Signer(b"\x31" * 32)


def _exchange_steps(actions: Sequence[Action]) -> Iterator[Step]:
    signer = _broker()
    core = Core(signer, [market_of(signer.address)])
    for user in (MAKER, TAKER):
        for token in (BTC, USD):
            core.execute(DepositSeen(user, token, FUNDS), START_MS)
            core.execute(DepositConfirmed(user, token, FUNDS), START_MS)
    for action in actions:
        yield _bind(core.execute, action, START_MS)
