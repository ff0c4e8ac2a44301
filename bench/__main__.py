"""`make bench`: measures, then prints. See the package's docstring."""

import asyncio
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from bench import report
from bench.machine import busy, machine
from bench.measure import FULL, QUICK, Effort, Section, quantiles
from node import supervise
from node.cli import examples, json_option, progress

PARTS: Final = ("limits", "book", "core", "network")
STOP_DEADLINE_S: Final = 15.0
QUIET_S: Final = 0.5
BUSY_CORES: Final = 0.3  # of others, above which the figures are worth a warning


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        """
        make bench
        make bench ARGS=--quick
        make bench ARGS="--only limits --only book --flow btcusd.csv.gz"
        make bench ARGS=--json > bench.json
        """
    ),
)
@click.option("--quick", is_flag=True, help="Small sizes: some 20 seconds in all, rough figures.")
@click.option("--only", "parts", multiple=True, type=click.Choice(PARTS), help="Some parts only; may be repeated.")
@click.option("--flow", type=click.Path(path_type=Path, dir_okay=False, exists=True), envvar="XLN_FLOW",
              help="Recorded order flow for the book: CSV op,order_id,side,price,size, plain or gzip; default: a seeded"
              " generator. Also $XLN_FLOW.")  # fmt: skip
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=Path("build"),
              show_default=True, help="Databases go into a temporary folder there: its disk is measured.")  # fmt: skip
@json_option
def main(quick: bool, parts: tuple[str, ...], flow: Path | None, folder: Path, as_json: bool) -> None:
    """What this machine can do, and what share of it the node reaches.

    \b
    limits   signatures, hashes, codecs, JSON, commits, round trips, beside other libraries and the disk
    book     the order book and the exchange on order flow
    core     remote orders between two broker cores in one process, without I/O
    network  remote orders between two real processes on one channel, and their share of the limit

    Takes about a minute and a half. Best on a machine that does nothing else.
    """
    effort = QUICK if quick else FULL
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in PARTS if part in (parts or PARTS)]
    status = supervise.run(
        lambda stop: _run(stop, effort, wanted, flow, folder, as_json), stop_deadline_s=STOP_DEADLINE_S
    )
    sys.exit(status)


async def _run(
    stop: supervise.Stop, effort: Effort, parts: Sequence[str], flow: Path | None, folder: Path, as_json: bool
) -> int:
    """Returns the exit status. Ctrl-C cancels what waits, and ends the processes in order."""
    working = asyncio.ensure_future(_measure_and_print(effort, parts, flow, folder, as_json))
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return 130
        working.result()
        return 0
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _measure_and_print(
    effort: Effort, parts: Sequence[str], flow: Path | None, folder: Path, as_json: bool
) -> None:
    about, warnings = machine(folder), _others()
    with _scratch(folder) as scratch:
        sections = await measure(effort, parts, flow, scratch)
    show = report.print_as_json if as_json else report.print_tables
    show(about, sections, warnings)


async def measure(effort: Effort, parts: Sequence[str], flow: Path | None, scratch: Path) -> list[Section]:
    """The sections of `parts`, in order; the share comes with `network` where `limits` are measured too."""
    from bench import book, core, limits, network, share  # here: slow to import for --help

    sections: dict[str, Section] = {}
    with progress("bench") as shown:

        def say(text: str) -> None:
            shown.update(what=f"{part}: {text}")

        for part in parts:
            if part == "limits":
                sections[part] = await limits.measure_limits(effort, scratch / part, say)
            elif part == "book":
                sections[part] = await book.measure_book(effort, flow, say)
            elif part == "core":
                sections[part] = await core.measure_core(effort, say)
            else:
                outcome = await network.measure_network(effort, scratch / part, say, shown.advance)
                sections[part] = outcome.section
                if "limits" in sections:
                    p50_ms, _, _ = quantiles(outcome.unloaded.stats.latencies_ms)
                    sections["share"] = share.measure_share(
                        sections["limits"], sections.get("core"), outcome.loaded, p50_ms
                    )
    return list(sections.values())


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder on the disk of `folder`, gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=folder.resolve()))
    (scratch / "limits").mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _others() -> list[str]:
    """Warns when the machine is busy before anything is measured."""
    before = busy()
    time.sleep(QUIET_S)
    after = busy()
    if before is None or after is None or (cores := after.cores_since(before)) < BUSY_CORES:
        return []
    return [f"Warning: {cores:.1f} cores were busy with something else beforehand; the figures are too low."]


if __name__ == "__main__":
    main()
