"""What a demo will do, worked out before anything is started: the operations, who does them, and what they must have.

A dry run of the whole flow in one book says what takers will get and what the two brokers will owe each other at the
worst moment. Collateral, the limit U and every user's deposit follow from that:

    lock            2 x the highest that one owed the other in the dry run  (the real interleaving differs)
                    + all orders that can be on their way at once, each counted in full for both brokers (no netting)
                    + everything that B's takers could do on A's book;  all of it times the cover ratio
    user's deposit  enough that no order of the plan is ever refused for balance, whatever is filled and whatever is not

Pure but for the flow, which is read. Amounts in base units, prices in ticks, sizes in lots. DESIGN section 4 (cover).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from broker.clob.book import OrderBook, OrderId, Side
from channel.errors import Code, LocalRefusal
from channel.units import ceil_div
from devnet.flow import (
    DEMO_LOT_BASE_UNITS,
    DEMO_TICK_QUOTE_UNITS,
    STARTING_ROWS,
    FlowKind,
    FlowOp,
    FlowStats,
    TakerOp,
    generate_flow,
    normalise,
    read_flow,
    takers,
)

MAKERS, CROSS_TAKERS = 8, 2  # users of B: who rest the flow, who take on A
TAKERS, RESTERS = 8, 2  # users of A: who take on B, who rest inside B's spread
USERS_PER_BROKER: Final = 10
TAKER_LANES: Final = 4  # takers of A that may be at work at once
SLIPPAGE_BPS: Final = 10  # how far beyond the best price a taker goes
TAKER_LOTS: Final = (10, 400)  # 0.001 to 0.04 BTC
CROSS_EVERY: Final = 5  # takers of A for one taker of B on A's book
CROSS_LOTS: Final = (10, 200)
BTC_UNITS: Final = 10**8
USD_UNITS: Final = 10**6
BPS: Final = 10_000
MINIMUM_EVENTS: Final = STARTING_ROWS + 10

Operation = FlowOp | TakerOp


@dataclass(frozen=True, slots=True, kw_only=True)
class Deposit:
    """What a user brings, in base units."""

    btc: int
    usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How collateral was sized; base units of USD, the value token."""

    peak_owed: int
    in_flight: int
    crosses: int
    cover_ratio_bps: int
    lock: int
    unsettled_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """See the module docstring. `expected_fills`: of A's takers in the dry run."""

    source: str
    seed: int
    operations: tuple[Operation, ...]
    stats: FlowStats
    takers: int
    mid_ticks: int
    expected_fills: int
    deposits_a: tuple[Deposit, ...]
    deposits_b: tuple[Deposit, ...]
    sizing: Sizing


def maker_of(order_ref: int) -> int:
    """The user of B who owns an order of the flow, for ever."""
    return order_ref % MAKERS


def taker_of(number: int) -> int:
    """The user of A who is the flow's taker of that number."""
    return number // 2 % TAKERS  # not by parity: each takes on both sides


def notional(price_ticks: int, lots: int) -> int:
    """USD base units."""
    return price_ticks * lots * DEMO_TICK_QUOTE_UNITS


def with_slippage(side: Side, price_ticks: int) -> int:
    """The worst price a taker accepts, when the best is `price_ticks`."""
    if side is Side.BUY:
        return price_ticks + price_ticks * SLIPPAGE_BPS // BPS
    return max(1, price_ticks - price_ticks * SLIPPAGE_BPS // BPS)


def make_plan(flow: Path | None, events: int | None, *, every: int, seed: int, cover_ratio_bps: int) -> Plan:
    """`events`: how many rows of the flow, None for all (only of a file). A taker comes after each `every` of them.

    Raises what `read_flow` and `normalise` raise, LocalRefusal CONFIG for flow that is too short.
    """
    if flow is None and events is None:
        raise LocalRefusal(Code.CONFIG, "a generator has no end: --events all needs a file of flow, with --flow")
    rows = generate_flow(seed, events or 0) if flow is None else read_flow(flow)
    stats = FlowStats()
    made = takers(
        normalise(_first(rows, events), stats=stats),
        every=every,
        seed=seed,
        min_lots=TAKER_LOTS[0],
        max_lots=TAKER_LOTS[1],
    )
    operations = tuple(made)
    run = _DryRun()
    for operation in operations:
        run.step(operation)
    count = sum(isinstance(operation, TakerOp) for operation in operations)
    if stats.rows < MINIMUM_EVENTS or count == 0 or run.mid_ticks is None:
        raise LocalRefusal(Code.CONFIG, f"the flow is too short: it takes at least {MINIMUM_EVENTS + every} rows")
    return Plan(
        source="generator" if flow is None else flow.name,
        seed=seed,
        operations=operations,
        stats=stats,
        takers=count,
        mid_ticks=run.mid_ticks,
        expected_fills=run.fills,
        deposits_a=_deposits_a(operations, run),
        deposits_b=_deposits_b(run, count),
        sizing=_sizing(run, count, cover_ratio_bps),
    )


def _first(rows: Iterator, count: int | None) -> Iterator:  # type: ignore[type-arg]
    for number, row in enumerate(rows):
        if count is not None and number == count:
            return
        yield row


def cross_rounds(plan_seed: int, count: int) -> Iterator[tuple[Side, int]]:
    """(side of B's taker, lots) of the rounds on A's book, for `count` takers of A."""
    rng = Random(plan_seed + 1)
    for number in range(count // CROSS_EVERY):
        yield Side(number % 2), rng.randint(*CROSS_LOTS)


@dataclass(slots=True)
class _DryRun:
    """The flow in one book, one operation after the other. What takers pay is seen from A."""

    book: OrderBook = field(default_factory=OrderBook)
    alive: dict[int, FlowOp] = field(default_factory=dict)
    sells: list[int] = field(default_factory=lambda: [0] * MAKERS)  # lots of each maker that the flow has alive
    buys: list[int] = field(default_factory=lambda: [0] * MAKERS)  # USD base units
    most_sells: list[int] = field(default_factory=lambda: [0] * MAKERS)
    most_buys: list[int] = field(default_factory=lambda: [0] * MAKERS)
    high_ticks: int = 0
    mid_ticks: int | None = None
    net_lots: int = 0  # B owes A
    net_usd: int = 0  # A owes B
    peak_owed: int = 0
    taker_buys: int = 0  # lots asked for
    taker_sells: int = 0
    fills: int = 0

    def step(self, operation: Operation) -> None:
        if isinstance(operation, TakerOp):
            self._take(operation)
        else:
            self._make(operation)

    def _make(self, op: FlowOp) -> None:
        maker, order_id = maker_of(op.order_ref), OrderId(op.order_ref.to_bytes(32, "big"))
        old = self.alive.pop(op.order_ref, None)
        consumed = old is not None and order_id not in self.book
        if old is not None:
            self._count(maker, old, -1)
            if not consumed:
                self.book.cancel(order_id)
        if op.kind is FlowKind.REMOVE:
            return
        self.alive[op.order_ref] = op
        self._count(maker, op, 1)
        self.high_ticks = max(self.high_ticks, op.price_ticks)
        if not consumed:  # what a taker has consumed does not come back by an amend
            self.book.place(
                order_id=order_id,
                owner=bytes([maker]),
                side=op.side,
                price_ticks=op.price_ticks,
                lots=op.lots,
                rest=True,
            )
        bid, ask = self.book.best(Side.BUY), self.book.best(Side.SELL)
        if self.mid_ticks is None and len(self.alive) >= STARTING_ROWS // 2 and bid is not None and ask is not None:
            self.mid_ticks = (bid + ask) // 2

    def _count(self, maker: int, op: FlowOp, sign: int) -> None:
        """What the maker has behind orders if nothing is ever filled: never less than what it really has."""
        if op.side is Side.SELL:
            self.sells[maker] += sign * op.lots
            self.most_sells[maker] = max(self.most_sells[maker], self.sells[maker])
        else:
            self.buys[maker] += sign * notional(op.price_ticks, op.lots)
            self.most_buys[maker] = max(self.most_buys[maker], self.buys[maker])

    def _take(self, op: TakerOp) -> None:
        sign = 1 if op.side is Side.BUY else -1
        if op.side is Side.BUY:
            self.taker_buys += op.lots
        else:
            self.taker_sells += op.lots
        best = self.book.best(Side(1 - op.side))
        if best is None:
            return
        taken = self.book.place(
            order_id=OrderId(b"\xff" + op.number.to_bytes(31, "big")),
            owner=b"taker",
            side=op.side,
            price_ticks=with_slippage(op.side, best),
            lots=op.lots,
            rest=False,
        )
        for fill in taken.fills:
            self.fills += 1
            self.net_lots += sign * fill.lots
            self.net_usd += sign * notional(fill.price_ticks, fill.lots)
            lots_value = notional(self.mid_ticks or fill.price_ticks, self.net_lots)
            by_b = max(0, lots_value) + max(0, -self.net_usd)
            by_a = max(0, -lots_value) + max(0, self.net_usd)
            self.peak_owed = max(self.peak_owed, by_a, by_b)


def _sizing(run: _DryRun, count: int, cover_ratio_bps: int) -> Sizing:
    assert run.mid_ticks is not None
    high = max(run.high_ticks, run.mid_ticks)
    largest = notional(with_slippage(Side.BUY, high), TAKER_LOTS[1])
    in_flight = (TAKER_LANES + 1) * largest
    crosses = (count // CROSS_EVERY) * notional(high, CROSS_LOTS[1])
    needed = 2 * run.peak_owed + in_flight + crosses
    lock = ceil_div(needed * cover_ratio_bps, BPS)
    return Sizing(
        peak_owed=run.peak_owed,
        in_flight=in_flight,
        crosses=crosses,
        cover_ratio_bps=cover_ratio_bps,
        lock=_up(lock, 1_000 * USD_UNITS),
        unsettled_limit=_up(32 * largest, 1_000 * USD_UNITS),
    )


def _deposits_a(operations: tuple[Operation, ...], run: _DryRun) -> tuple[Deposit, ...]:
    """Takers: all they may sell and buy. Resters: all rounds, on either side."""
    high = with_slippage(Side.BUY, run.high_ticks)
    sells, buys = [0] * TAKERS, [0] * TAKERS
    count = 0
    for operation in operations:
        if isinstance(operation, TakerOp):
            count += 1
            book = buys if operation.side is Side.BUY else sells
            book[taker_of(operation.number)] += operation.lots
    taking = [_deposit(sold, notional(high, bought)) for sold, bought in zip(sells, buys, strict=True)]
    return (*taking, *[_cross_deposit(run, count)] * RESTERS)


def _deposits_b(run: _DryRun, count: int) -> tuple[Deposit, ...]:
    """Makers: what the flow has alive at most, and whatever takers could take from one of them alone."""
    making = [
        _deposit(most_sells + run.taker_buys, most_buys + notional(run.high_ticks, run.taker_sells))
        for most_sells, most_buys in zip(run.most_sells, run.most_buys, strict=True)
    ]
    return (*making, *[_cross_deposit(run, count)] * CROSS_TAKERS)


def _cross_deposit(run: _DryRun, count: int) -> Deposit:
    lots = (count // CROSS_EVERY + 1) * CROSS_LOTS[1]
    return _deposit(lots, notional(with_slippage(Side.BUY, run.high_ticks), lots))


def _deposit(lots: int, usd: int) -> Deposit:
    return Deposit(btc=_up(lots * DEMO_LOT_BASE_UNITS + 1, BTC_UNITS), usd=_up(usd + 1, 1_000 * USD_UNITS))


def _up(amount: int, step: int) -> int:
    return ceil_div(amount, step) * step
