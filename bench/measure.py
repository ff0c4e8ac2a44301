"""Timing: rates as medians of repetitions, quantiles, and the rows that the report prints.

A rate is the median over equally long loops, per second of processor time, so that other programs on the machine
disturb it little. The loop itself is part of it (about 40 ns a call), and so is Python's garbage collector, as in the
node. What waits for a disk or a process (commits, round trips, latencies) is measured by the clock on the wall.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

REPETITIONS: Final = 5
RUNS: Final = 3  # of what takes many seconds
_QUANTILES: Final = (50.0, 99.0, 99.9)


class Beside(Enum):
    """What a figure is compared with: a peer does the same work, a limit cannot be passed."""

    PEER = "peer"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row. `beside_value` is in the same unit; a `unit` that names a time is better when it is lower."""

    name: str
    value: float
    unit: str
    beside: str = ""
    beside_value: float | None = None
    kind: Beside = Beside.PEER
    note: str = ""

    @property
    def is_time(self) -> bool:
        return self.unit in ("s", "ms", "us")

    @property
    def ratio(self) -> float | None:
        """How many times as good as what it is beside: above 1 is better. None when it stands alone."""
        if not self.beside_value or not self.value:
            return None
        return self.beside_value / self.value if self.is_time else self.value / self.beside_value


@dataclass(slots=True, kw_only=True)
class Section:
    """One part of the report. `notes` are sentences under its table."""

    key: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def value(self, name: str) -> float:
        """Of the figure with that name. Raises KeyError."""
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(name)

    def add(self, name: str, value: float, unit: str, *, note: str = "") -> None:
        self.figures.append(Figure(name=name, value=value, unit=unit, note=note))

    def add_beside(
        self, name: str, value: float, unit: str, beside: str, beside_value: float, kind: Beside, *, note: str = ""
    ) -> None:
        self.figures.append(
            Figure(name=name, value=value, unit=unit, beside=beside, beside_value=beside_value, kind=kind, note=note)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long and how large. `seconds` is for one rate, all repetitions together."""

    seconds: float
    commits: int  # single ones
    grouped_rows: int
    round_trips: int
    flow_rows: int
    core_orders: int
    remote_orders: int  # in each of RUNS
    unloaded_orders: int
    repetitions: int = REPETITIONS


FULL: Final = Effort(
    seconds=0.6,
    commits=1_500,
    grouped_rows=16_384,
    round_trips=3_000,
    flow_rows=100_000,
    core_orders=1_536,
    remote_orders=2_500,
    unloaded_orders=500,
)
QUICK: Final = Effort(
    seconds=0.05,
    commits=100,
    grouped_rows=2_048,
    round_trips=200,
    flow_rows=5_000,
    core_orders=512,
    remote_orders=200,
    unloaded_orders=50,
    repetitions=3,
)


def rate(work: Callable[[], object], effort: Effort) -> float:
    """Calls per second of processor time: the median of repetitions that take `effort.seconds` together."""
    work()
    part_s = effort.seconds / effort.repetitions
    count = 1
    while (took_s := _time(work, count)) < part_s / 4 and count < 10_000_000:
        count *= 2
    count = max(1, round(count * part_s / max(took_s, 1e-9)))
    return statistics.median(count / _time(work, count) for _ in range(effort.repetitions))


def _time(work: Callable[[], object], count: int) -> float:
    started_s = time.process_time()
    for _ in range(count):
        work()
    return max(time.process_time() - started_s, 1e-9)


def median_of(repetitions: int, run: Callable[[], float]) -> float:
    return statistics.median(run() for _ in range(repetitions))


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and p99.9, each a value that occurred: the smallest that is not below that share of all."""
    assert values
    ordered = sorted(values)
    p50, p99, p999 = (ordered[max(0, -int(-len(ordered) * q // 100) - 1)] for q in _QUANTILES)
    return p50, p99, p999
