"""Remote orders between two broker cores in one process, without I/O: what the protocol itself costs.

Each order is placed at A, goes to B as an entry, is filled there, comes back as a notice, and is in a co-signed state
at the end. `bench.pair` says what the three levels have around the cores.
"""

import asyncio
import gc
import statistics
from collections.abc import Callable
from typing import Final

from bench.measure import RUNS, Beside, Effort, Section
from bench.pair import Level, Pair

WINDOW: Final = 64
_WORDS: Final = {
    Level.CORE: "core alone",
    Level.WIRE: "core, and messages as bytes, verified",
    Level.ROWS: "core, messages, and database rows",
}


async def measure_core(effort: Effort, say: Callable[[str], None]) -> Section:
    section = Section(key="core", title="Two cores without I/O, both on one core of the machine")
    rates = {}
    for level in Level:
        say(_WORDS[level])
        rates[level] = _rate(level, WINDOW, effort)
        await asyncio.sleep(0)  # Ctrl-C is heard here
    alone = rates[Level.CORE]
    section.add(f"{_WORDS[Level.CORE]}, {WINDOW} orders a turn", alone, "/s", note="remote orders, co-signed")
    for level in (Level.WIRE, Level.ROWS):
        section.add_beside(
            f"{_WORDS[level]}, {WINDOW} orders a turn", rates[level], "/s", _WORDS[Level.CORE], alone, Beside.LIMIT
        )
    say("one order a turn")
    section.add_beside(
        f"{_WORDS[Level.ROWS]}, 1 order a turn", _rate(Level.ROWS, 1, effort), "/s",
        f"{WINDOW} orders a turn", rates[Level.ROWS], Beside.LIMIT, note="every order has a state of its own",
    )  # fmt: skip
    section.add("entries a turn at most", 2 * WINDOW, "", note="an order is two entries: order.create, order.notify")
    section.notes.append(
        f"Remote orders a second, settled into co-signed states; medians of {RUNS} runs of {effort.core_orders} orders."
        " Users' signatures are recovered at B in every level, at A from messages on."
    )
    return section


def _rate(level: Level, window: int, effort: Effort) -> float:
    rates = []
    for _ in range(RUNS):
        pair = Pair(level)
        orders = pair.taker_orders(effort.core_orders if window > 1 else effort.core_orders // 4)
        gc.collect()
        rates.append(len(orders) / pair.trade(orders, window))
    return statistics.median(rates)
