"""Order flow for the demo, the bench and the tests: recorded in a file, or generated from a seed.

    read_flow(path)  ─┐                                  ┌─▶ FlowOp ─┐
                      ├─▶ FlowRow ── normalise(stats) ──▶┤           ├── takers(every, seed) ──▶ FlowOp | TakerOp
    generate_flow(s) ─┘      (as written)                └ (market's ticks and lots)

Invariants: decimals are read exactly into ints of 10^-18, never through a float; the same seed gives the same flow on
any machine (only integer draws are used); rounding happens once, in `normalise`, away from the spread (a bid down, an
ask up, so that rounding never makes a trade) and sizes up to a whole lot, and both are counted; an order reference is
used for one order only, even where the source shows the same order id again after it was removed.

File format: CSV, plain or gzip, header `op,order_id,side,price,size`; op is add, amend or remove, side is buy or sell,
price and size are plain decimals, which a remove may leave empty. Source: DESIGN section 8 (ticks and lots).
"""

import gzip
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import BinaryIO

from broker.clob.book import MAX_LOTS, MAX_TICKS, Side
from channel.errors import Code, LocalRefusal, PeerFault, XlnError
from channel.units import ceil_div, parse_amount

FLOW_DECIMALS = 18
_ONE: int = 10**FLOW_DECIMALS

# The market of the demo: BTC with 8 decimals against USD with 6.
DEMO_LOT = "0.0001"  # BTC
DEMO_TICK = "0.01"  # USD for one BTC
DEMO_LOT_BASE_UNITS = 10_000  # BTC base units in one lot
DEMO_TICK_QUOTE_UNITS = 1  # USD base units for one tick of one lot: 0.01 × 0.0001 USD

STARTING_ROWS = 50
_HEADER = "op,order_id,side,price,size"
_MAX_LINE_BYTES = 512
_MAX_ID_LENGTH = 64


class FlowKind(StrEnum):
    ADD = "add"
    AMEND = "amend"
    REMOVE = "remove"


_KINDS = {kind.value: kind for kind in FlowKind}
_SIDES = {"buy": Side.BUY, "sell": Side.SELL}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRow:
    """One row as written. Price and size in 10^-18 (of quote for one base; of base); None where a remove has none."""

    kind: FlowKind
    order_id: str
    side: Side
    price_e18: int | None
    size_e18: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowOp:
    """One operation of a maker on the market. An amend gives the new price and size; a remove repeats the last ones."""

    kind: FlowKind
    order_ref: int  # unique per order, dense from 1
    side: Side
    price_ticks: int
    lots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakerOp:
    """Take up to `lots` at once from the other side, whatever is left is cancelled."""

    number: int  # dense from 1
    side: Side
    lots: int


@dataclass(slots=True, kw_only=True)
class FlowStats:
    """What `normalise` did to the rows it has seen so far: rows = emitted + skipped."""

    rows: int = 0
    emitted: int = 0
    prices_rounded: int = 0  # of emitted and unchanged rows, to the tick
    sizes_rounded: int = 0  # up to a lot
    skipped_unknown: int = 0  # amend or remove of an order that is not there
    skipped_duplicate: int = 0  # add of an order that is there already
    skipped_zero: int = 0  # size zero, or a price below one tick
    skipped_side: int = 0  # amend that would change sides
    skipped_unchanged: int = 0  # amend of less than a tick and a lot

    @property
    def skipped(self) -> int:
        return (
            self.skipped_unknown
            + self.skipped_duplicate
            + self.skipped_zero
            + self.skipped_side
            + self.skipped_unchanged
        )


# -- reading


def read_flow(path: Path) -> Iterator[FlowRow]:
    """The rows of a CSV file, lazily; gzip is told by its first bytes.

    Raises PeerFault ENCODING with the line number for the first malformed row, LocalRefusal CONFIG if the file cannot
    be read.
    """
    number = 1
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if not packed:
                for number, line in _lines(file):
                    yield _parse_row(number, line)
                return
            with gzip.GzipFile(fileobj=file) as unpacked:
                for number, line in _lines(unpacked):
                    yield _parse_row(number, line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise PeerFault(
            Code.ENCODING, f"order flow, after line {number}: the gzip data is damaged ({error})"
        ) from error
    except OSError as error:
        raise LocalRefusal(Code.CONFIG, f"cannot read order flow from {path}: {error.strerror}") from error


def _lines(file: BinaryIO | gzip.GzipFile) -> Iterator[tuple[int, str]]:
    """(line number, text) after the header, none longer than _MAX_LINE_BYTES."""
    number = 0
    while raw := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > _MAX_LINE_BYTES:
            raise _malformed(number, f"is longer than {_MAX_LINE_BYTES} bytes")
        try:
            text = raw.decode("ascii").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise _malformed(number, "is not ASCII") from error
        if number > 1:
            yield number, text
        elif text != _HEADER:
            raise _malformed(number, f"must be the header {_HEADER}")
    if number == 0:
        raise _malformed(1, f"must be the header {_HEADER}; the file is empty")


def _parse_row(number: int, text: str) -> FlowRow:
    fields = text.split(",")
    if len(fields) != 5:
        raise _malformed(number, f"has {len(fields)} fields, not the 5 of {_HEADER}")
    kind, side = _KINDS.get(fields[0]), _SIDES.get(fields[2])
    if kind is None:
        raise _malformed(number, f"op must be add, amend or remove, not {fields[0]!r}")
    if not 0 < len(fields[1]) <= _MAX_ID_LENGTH:
        raise _malformed(number, f"order_id must have 1 to {_MAX_ID_LENGTH} characters")
    if side is None:
        raise _malformed(number, f"side must be buy or sell, not {fields[2]!r}")
    may_be_empty = kind is FlowKind.REMOVE
    return FlowRow(
        kind=kind,
        order_id=fields[1],
        side=side,
        price_e18=_parse_decimal(number, fields[3], "price", may_be_empty),
        size_e18=_parse_decimal(number, fields[4], "size", may_be_empty),
    )


def _parse_decimal(number: int, text: str, name: str, may_be_empty: bool) -> int | None:
    if may_be_empty and not text:
        return None
    try:
        return parse_amount(text, FLOW_DECIMALS, name)
    except XlnError as error:
        raise _malformed(number, error.message) from error


def _malformed(number: int, what: str) -> PeerFault:
    return PeerFault(Code.ENCODING, f"order flow, line {number}: {what}", line=number)


# -- onto the market


def round_price(side: Side, price_e18: int, tick_e18: int) -> int:
    """Whole ticks, away from the spread: a bid down, an ask up. The order's owner never loses by it."""
    return price_e18 // tick_e18 if side is Side.BUY else ceil_div(price_e18, tick_e18)


def round_size(size_e18: int, lot_e18: int) -> int:
    """Whole lots, up: an order never vanishes by rounding."""
    return ceil_div(size_e18, lot_e18)


@dataclass(slots=True)
class _Alive:
    order_ref: int
    side: Side
    price_ticks: int
    lots: int


def normalise(
    rows: Iterable[FlowRow],
    *,
    stats: FlowStats,
    tick: str = DEMO_TICK,
    lot: str = DEMO_LOT,
    max_alive: int = 100_000,
) -> Iterator[FlowOp]:
    """The rows in ticks and lots of a market, lazily. `tick`: quote for one base, `lot`: base, as decimal strings.

    Rows that make no sense are skipped, and counted in `stats` with the roundings. Raises PeerFault AMOUNT for a price
    or size beyond the bounds of a book, or more than `max_alive` orders alive at once.
    """
    tick_e18, lot_e18 = parse_amount(tick, FLOW_DECIMALS, "tick"), parse_amount(lot, FLOW_DECIMALS, "lot")
    if tick_e18 == 0 or lot_e18 == 0:
        raise LocalRefusal(Code.CONFIG, "tick and lot must be above zero")
    alive: dict[str, _Alive] = {}
    last_ref = 0
    for row in rows:
        stats.rows += 1
        known = alive.get(row.order_id)
        if row.kind is FlowKind.REMOVE:
            if known is None:
                stats.skipped_unknown += 1
                continue
            del alive[row.order_id]
            stats.emitted += 1
            yield _operation(FlowKind.REMOVE, known)
            continue
        assert row.price_e18 is not None
        assert row.size_e18 is not None
        if row.kind is FlowKind.ADD and known is not None:
            stats.skipped_duplicate += 1
            continue
        if row.kind is FlowKind.AMEND and known is None:
            stats.skipped_unknown += 1
            continue
        if known is not None and known.side is not row.side:
            stats.skipped_side += 1
            continue
        price_ticks, lots = round_price(row.side, row.price_e18, tick_e18), round_size(row.size_e18, lot_e18)
        if price_ticks == 0 or lots == 0:
            stats.skipped_zero += 1
            continue
        if price_ticks > MAX_TICKS or lots > MAX_LOTS:
            raise PeerFault(Code.AMOUNT, f"order {row.order_id}: price or size is beyond the bounds of a book")
        stats.prices_rounded += price_ticks * tick_e18 != row.price_e18
        stats.sizes_rounded += lots * lot_e18 != row.size_e18
        if known is None:
            if len(alive) >= max_alive:
                raise PeerFault(Code.AMOUNT, f"order {row.order_id}: more than {max_alive} orders alive at once")
            last_ref += 1
            known = alive[row.order_id] = _Alive(last_ref, row.side, price_ticks, lots)
        elif (known.price_ticks, known.lots) == (price_ticks, lots):
            stats.skipped_unchanged += 1
            continue
        else:
            known.price_ticks, known.lots = price_ticks, lots
        stats.emitted += 1
        yield _operation(row.kind, known)


def _operation(kind: FlowKind, order: _Alive) -> FlowOp:
    return FlowOp(kind=kind, order_ref=order.order_ref, side=order.side, price_ticks=order.price_ticks, lots=order.lots)


def takers(
    ops: Iterable[FlowOp],
    *,
    every: int,
    seed: int,
    min_lots: int = 10,
    max_lots: int = 2_000,
    after: int = STARTING_ROWS,
) -> Iterator[FlowOp | TakerOp]:
    """The maker's operations, and after each `every` of them a taker, on alternating sides, of a seeded random size.

    The first `after` operations build the starting book and do not count. The default sizes, 0.001 to 0.2 BTC in the
    demo's lots, go through one to a few orders of the recorded sizes.
    """
    if every < 1 or not 0 < min_lots <= max_lots:
        raise LocalRefusal(Code.CONFIG, "takers come every 1 or more operations, with 0 < min_lots <= max_lots")
    rng = Random(seed)
    number = 0
    for count, op in enumerate(ops, start=1 - after):
        yield op
        if count > 0 and count % every == 0:
            number += 1
            side = Side.BUY if number % 2 else Side.SELL
            yield TakerOp(number=number, side=side, lots=rng.randint(min_lots, max_lots))


# -- generating

# Measured on 100,000 updates of the 25 best levels a side of BTC/USD on a public exchange's raw feed: 37 % adds, 37 %
# removes, 26 % amends, of which 96 % move the price; 45 orders alive, half of them gone after 31 updates; a quarter of
# the orders come back under their old id; spread 2 USD in the median, half of the adds within 15 USD of the best price;
# a fifth of the prices have more than two decimals; mid moves 12 USD (standard deviation) in 500 updates.
_FAIR_CENTS = 60_000_00
_FAIR_RANGE_CENTS = 10_000_00
_CENT = _ONE // 100
_E8 = _ONE // 10**8
_SIDE_MIN, _SIDE_MAX = 20, 25
_MILLION = 1_000_000
# (weight, from, to) in 10^-8 BTC; and in cents behind one's own best price, negative is inside the spread
_SIZES_E8 = (
    (5, 1_000, 20_000),
    (10, 20_000, 40_000),
    (10, 40_000, 3_000_000),
    (35, 3_000_000, 15_000_000),
    (25, 15_000_000, 40_000_000),
    (12, 40_000_000, 150_000_000),
    (3, 150_000_000, 400_000_000),
)
_DISTANCES_CENTS = (
    (6, -100, 0),
    (8, 0, 100),
    (16, 100, 500),
    (24, 500, 1_500),
    (24, 1_500, 2_500),
    (16, 2_500, 3_500),
    (6, 3_500, 6_000),
)
# how an amend moves the price, in cents, positive is away from the spread
_SHIFTS_CENTS = ((55, -250, 200), (30, -800, 700), (15, -1_500, 1_400))


@dataclass(slots=True)
class _Made:
    order_id: str
    side: Side
    price_e18: int
    size_e18: int


class _Generator:
    """The state of `generate_flow`: what is alive, where the price is, and the one source of chance."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.fair_cents = _FAIR_CENTS
        self.alive: tuple[list[_Made], list[_Made]] = ([], [])  # by side
        self.gone: tuple[deque[str], deque[str]] = (deque(maxlen=50), deque(maxlen=50))
        self.last_id = 60_000_000_000

    def step(self) -> FlowRow:
        rng = self.rng
        if rng.randrange(100) < 2:
            moved = self.fair_cents + rng.randint(-650, 650)
            if abs(moved - _FAIR_CENTS) <= _FAIR_RANGE_CENTS:
                self.fair_cents = moved
        draw = rng.randrange(100)
        if draw < 26:
            side = Side.BUY if rng.randrange(10) < 7 else Side.SELL
            return self.amend(side)
        side = Side(rng.randrange(2))
        alive = len(self.alive[side])
        if alive <= _SIDE_MIN or (alive < _SIDE_MAX and draw < 63):
            return self.add(side)
        return self.remove(side)

    def add(self, side: Side) -> FlowRow:
        gone = self.gone[side]
        if gone and self.rng.randrange(4) == 0:
            order_id = gone.popleft()
        else:
            self.last_id += self.rng.randint(1, 500)
            order_id = str(self.last_id)
        size_e8 = self.draw(_SIZES_E8)
        if self.rng.randrange(100) < 45:
            size_e8 = ceil_div(size_e8, 10_000) * 10_000  # as people write them
        order = _Made(order_id, side, self.price(side, 100 + self.draw(_DISTANCES_CENTS)), size_e8 * _E8)
        self.alive[side].append(order)
        return _row(FlowKind.ADD, order)

    def amend(self, side: Side) -> FlowRow:
        rng = self.rng
        order = rng.choice(self.alive[side])
        draw = rng.randrange(100)
        if draw < 96:
            cents = order.price_e18 // _CENT
            behind = self.fair_cents - cents if side is Side.BUY else cents - self.fair_cents
            order.price_e18 = self.price(side, max(100, behind + self.draw(_SHIFTS_CENTS)))
        if draw < 25:
            order.size_e18 = ceil_div(order.size_e18 * rng.randint(1_001, 1_300), 1_000 * _E8) * _E8
        elif draw < 46 or draw >= 96:
            order.size_e18 = ceil_div(order.size_e18 * rng.randint(300, 999), 1_000 * _E8) * _E8
        return _row(FlowKind.AMEND, order)

    def remove(self, side: Side) -> FlowRow:
        """First whom the price has run over, as if filled; else the farthest (out of the window) or a young one."""
        rng = self.rng
        sign = 1 if side is Side.BUY else -1
        orders = self.alive[side]
        best = max(orders, key=lambda order: sign * order.price_e18)
        if sign * best.price_e18 >= sign * self.fair_cents * _CENT:
            order = best
        elif rng.randrange(6) == 0:
            order = min(orders, key=lambda order: sign * order.price_e18)
        else:
            order = orders[max(rng.randrange(len(orders)), rng.randrange(len(orders)))]
        orders.remove(order)
        self.gone[side].append(order.order_id)
        return FlowRow(kind=FlowKind.REMOVE, order_id=order.order_id, side=side, price_e18=None, size_e18=None)

    def price(self, side: Side, behind: int) -> int:
        """`behind` cents worse than the fair price, mostly a whole dollar, and never at or through the other side."""
        rng = self.rng
        cents = self.fair_cents - behind if side is Side.BUY else self.fair_cents + behind
        if rng.randrange(100) < 80:
            price = cents // 100 * 100 * _CENT
        else:
            price = cents * _CENT + rng.randrange(_MILLION) * (_CENT // _MILLION)
        others = self.alive[1 - side]
        if side is Side.BUY:
            return min(price, min((order.price_e18 for order in others), default=price + _CENT) - _CENT)
        return max(price, max((order.price_e18 for order in others), default=price - _CENT) + _CENT)

    def draw(self, table: tuple[tuple[int, int, int], ...]) -> int:
        """An integer from a table of (weight in per cent, from, to)."""
        left = self.rng.randrange(100)
        for weight, low, high in table:
            if left < weight:
                return self.rng.randint(low, high)
            left -= weight
        raise AssertionError("weights add up to 100")


def generate_flow(seed: int, events: int) -> Iterator[FlowRow]:
    """`events` rows of flow like the recorded one: a starting book of 50 rows, then adds, amends and removes."""
    generator = _Generator(seed)
    for count in range(events):
        if count < STARTING_ROWS:
            yield generator.add(Side.BUY if count < STARTING_ROWS // 2 else Side.SELL)
        else:
            yield generator.step()


def _row(kind: FlowKind, order: _Made) -> FlowRow:
    return FlowRow(
        kind=kind, order_id=order.order_id, side=order.side, price_e18=order.price_e18, size_e18=order.size_e18
    )
