"""The least that one remote order costs on this machine, and the share of that limit which two processes reach.

The least is what the protocol cannot do without, at the speeds that `bench.limits` measured: its signatures, its JSON,
its frames, its rows in both databases, and its part of a state of `GROUP` orders. Not in it: HTTP, the event loop,
matching, the ledger, the channel's fold and checks, and the copies that a node in Python makes. DESIGN section 4.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bench import limits
from bench.machine import cores
from bench.measure import Beside, Section
from bench.network import Run

GROUP: Final = limits.GROUP
US_PER_S: Final = 1e6
COMMITS_IN_TURN: Final = 3  # A's order, B's entry, A's notice: each waits for the disk before the next step


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One kind of work for one remote order: how often at each broker, and microseconds each time."""

    name: str
    at_a: float
    at_b: float
    us_each: float

    @property
    def us_a(self) -> float:
        return self.at_a * self.us_each

    @property
    def us_b(self) -> float:
        return self.at_b * self.us_each


def least_work(measured: Section) -> tuple[Work, ...]:
    """`measured`: the section of `bench.limits`. A signs and B recovers the entry, B signs and A recovers the notice;
    both recover the user's signature; a state is signed, recovered and encoded once at each for `GROUP` orders."""

    def each(name: str) -> float:
        return US_PER_S / measured.value(name)

    state = 1 / GROUP
    kinds: Iterable[tuple[str, float, float, str]] = (
        ("recover the user's signature", 1, 1, limits.RECOVER),
        ("sign the entry (A), the notice (B)", 1, 1, limits.SIGN),
        ("recover the notice (A), the entry (B)", 1, 1, limits.RECOVER),
        ("hash order, entry and notice (EIP-712)", 3, 3, limits.TYPED_HASH),
        ("JSON: order and notice in (A), entry in (B)", 2, 1, limits.LOADS),
        ("JSON: what is sent", 2, 1, limits.DUMPS),
        ("seal a frame", 1, 1, limits.SEAL),
        ("open a frame", 1, 1, limits.OPEN),
        (f"sign a state, 1/{GROUP} of it", state, state, limits.SIGN),
        (f"recover a state's signature, 1/{GROUP} of it", state, state, limits.RECOVER),
        (f"encode a state, 1/{GROUP} of it", state, state, limits.ENCODE),
    )
    return tuple(Work(name=name, at_a=at_a, at_b=at_b, us_each=each(figure)) for name, at_a, at_b, figure in kinds)


def measure_share(measured: Section, core: Section | None, loaded: Run, unloaded_p50_ms: float) -> Section:
    """Sets what two processes reach beside the limit. `core`: the section of `bench.core`, if it was measured."""
    work = least_work(measured)
    us_a, us_b = sum(w.us_a for w in work), sum(w.us_b for w in work)
    section = Section(key="share", title="The share of the limit that a remote order between two processes reaches")
    for item in work:
        often = f"{item.at_a:g} x at A, {item.at_b:g} x at B" if item.at_a >= 1 else "at both"
        section.add(item.name, item.us_a + item.us_b, "us", note=often)
    section.add("least processor time per order, both brokers", us_a + us_b, "us", note=f"A {us_a:.1f}, B {us_b:.1f}")
    one_core = US_PER_S / (us_a + us_b)
    on_cores = min(cores() * one_core, US_PER_S / max(us_a, us_b))  # a broker's core is one thread
    disk = measured.value(limits.GROUPED) / 3
    reached = loaded.orders_per_s
    section.add_beside("remote orders, of the limit on one core", reached, "/s", "least work", one_core, Beside.LIMIT)
    section.add_beside(
        "remote orders, of the limit on this machine's cores", reached, "/s", "least work", on_cores, Beside.LIMIT,
        note="at most one core for each broker",
    )  # fmt: skip
    section.add_beside(
        "remote orders, of the limit of the disk", reached, "/s", f"3 rows each, grouped by {GROUP}", disk,
        Beside.LIMIT, note="an order and a notice at A, an entry at B; one file system",
    )  # fmt: skip
    floor_ms = (
        measured.value(limits.HTTP)
        + measured.value(limits.WEBSOCKET)
        + COMMITS_IN_TURN * 1000 / measured.value(limits.COMMIT)
    )
    section.add_beside(
        "latency unloaded, p50", unloaded_p50_ms, "ms", "HTTP + WebSocket + 3 commits", floor_ms, Beside.LIMIT,
        note="each commit must be on the disk before the next message",
    )  # fmt: skip
    _add_remainder(section, us_a + us_b, core, loaded)
    return section


def _add_remainder(section: Section, least_us: float, core: Section | None, loaded: Run) -> None:
    """Where the processor time of an order goes beyond the least: from the processes' own clocks."""
    names = ("cpu_a_s", "cpu_b_s", "loop_a_s", "loop_b_s")
    at = [us for name in names if (us := loaded.cpu_us_per_order(name)) is not None]
    if len(at) < len(names):
        return
    spent, loops = at[0] + at[1], at[2] + at[3]
    section.add_beside(
        "processor time per order, both brokers", spent, "us", "least work", least_us, Beside.LIMIT,
        note="all threads: HTTP, loop, channel, SQLite",
    )  # fmt: skip
    section.add("  of it other threads than the loops': SQLite", spent - loops, "us")
    if core is None:
        return
    alone, wire, rows = (US_PER_S / figure.value for figure in core.figures[:3])
    section.add("  of it the cores: exchange, channel, entries", alone, "us", note="from the core section")
    section.add("  of it messages as bytes, verified", max(0.0, wire - alone), "us")
    section.add("  of it database rows, made", max(0.0, rows - wire), "us")
    section.add("  the rest: HTTP, loop, frames, books, waits for the other thread", max(0.0, loops - rows), "us")
