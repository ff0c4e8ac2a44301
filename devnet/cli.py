"""`xln-demo`: the whole network on this machine, in one command."""

import asyncio
import contextlib
import fcntl
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import click

from channel.errors import Code, LocalRefusal
from node import logs, supervise
from node.cli import XlnGroup, examples, json_option, note, print_json, version_option
from node.files import write_private

if TYPE_CHECKING:
    from devnet.report import Report
    from devnet.scenario import Demo

MARKER: Final = ".xln-demo"
KEEP_FOLDER: Final = Path("demo-network")
DEFAULT_EVENTS: Final = 5_000  # about 1,200 remote trades
STOP_DEADLINE_S: Final = 25.0


class _Events(click.ParamType[int]):
    """A number of rows, or "all" as 0."""

    name = "N|all"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "all" or value == 0:
            return 0
        if isinstance(value, int):
            return value
        if not str(value).isascii() or not str(value).isdigit() or not 0 < int(value) <= 10_000_000:
            self.fail(f"{value} is neither all nor a number of rows", param, ctx)
        return int(value)


@click.group(
    cls=XlnGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        """
        xln-demo run
        xln-demo run --flow btcusd.csv.gz --events all
        xln-demo run --keep
        """
    ),
)
@version_option()
def main() -> None:
    """Two brokers, the XLN service and a chain on this machine: from users' deposits to their last withdrawal.

    `run` starts everything as processes of their own, trades recorded or generated order flow between the brokers over
    one state channel, closes it, pays out on chain, and checks at every stage that chain and ledgers agree to the unit.
    """


@main.command(
    "run",
    epilog=examples(
        """
        xln-demo run
        xln-demo run --flow btcusd.csv.gz
        xln-demo run --flow btcusd.csv.gz --events all
        xln-demo run --events 10000 --seed 7 --json > report.json
        xln-demo run --keep
        """
    ),
)
@click.option("--flow", type=click.Path(path_type=Path, dir_okay=False, exists=True), envvar="XLN_FLOW",
              help="Recorded order flow: CSV op,order_id,side,price,size, plain or gzip; default: a seeded generator."
              " Also $XLN_FLOW.")  # fmt: skip
@click.option("--events", type=_Events(), default=str(DEFAULT_EVENTS), show_default=True,
              help="Rows of the flow to trade; all needs --flow.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**32), default=1, show_default=True,
              help="Of the generator, the takers and the users' keys.")  # fmt: skip
@click.option("--keep", is_flag=True,
              help="Stop after trading, leave all running, say how to trade by hand, wait for Ctrl-C.")  # fmt: skip
@click.option("--dir", "folder", type=click.Path(path_type=Path, file_okay=False),
              help=f"Folder for keys, databases, logs; default: temporary, with --keep ./{KEEP_FOLDER}.")  # fmt: skip
@json_option
def run(flow: Path | None, events: int, seed: int, keep: bool, folder: Path | None, as_json: bool) -> None:
    """Run the demo. Status 0 only if everything reconciles; 130 after Ctrl-C, which ends every process cleanly.

    A folder of an earlier demo is replaced; a folder with anything else in it is left alone.
    """
    status = supervise.run(
        lambda stop: _run(stop, flow, events or None, seed, keep, folder, as_json), stop_deadline_s=STOP_DEADLINE_S
    )
    sys.exit(status)


async def _run(
    stop: supervise.Stop,
    flow: Path | None,
    events: int | None,
    seed: int,
    keep: bool,
    folder: Path | None,
    as_json: bool,
) -> int:
    """Returns the exit status. Ctrl-C cancels what runs, which ends the processes in order."""
    from devnet import report as reports  # here, because what it takes along is slow to import for --help
    from devnet import scenario

    started_s = time.monotonic()
    held = False

    def say(text: str) -> None:
        # Not through click, which goes round the stream that a progress bar has put in place to keep lines whole.
        sys.stderr.write(f"{time.monotonic() - started_s:5.1f} s  {text}\n")
        sys.stderr.flush()

    async def hold(demo: "Demo") -> None:
        nonlocal held
        held = True
        show(demo.report)
        if not stop.requested:
            await by_hand(demo)
            await stop.wait()
        note("stopping")

    def show(report: reports.Report) -> None:
        if as_json:
            print_json(reports.to_json(report))
            return
        reports.print_tables(report)

    options = scenario.Options(flow=flow, events=events, seed=seed, keep=keep)
    with _Folder(folder or (KEEP_FOLDER if keep else None)) as place:
        logs.configure("info", path=place.path / "demo.log")
        running = asyncio.ensure_future(scenario.run(options, place.path, say, hold))
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not running.done() and not held:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            note("stopped; every process has ended")
            place.is_worth_keeping = False
            return 128 + signal.Signals[stop.reason].value
        report = await running
        if not held:
            show(report)
        place.is_worth_keeping = not report.is_good
    return _verdict(report, say)


def _verdict(report: "Report", say: Callable[[str], None]) -> int:
    if report.is_good:
        say("everything reconciles, to the unit")
        return 0
    note("")
    for problem in report.problems:
        note(f"does not add up: {problem}")
    return supervise.EXIT_REFUSED


class _Folder:
    """Where a run keeps its files: a temporary folder, removed unless something went wrong, or a named one that stays.

    Raises LocalRefusal CONFIG for a folder that holds other things, or in which another demo runs.
    """

    def __init__(self, wanted: Path | None) -> None:
        self.is_worth_keeping = True
        self._is_temporary = wanted is None
        self._lock: BinaryIO | None = None
        self.path = Path(tempfile.mkdtemp(prefix="xln-demo-")) if wanted is None else wanted.absolute()

    def __enter__(self) -> Self:
        marker = self.path / MARKER
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not marker.exists() and any(self.path.iterdir()):
                raise LocalRefusal(Code.CONFIG, f"{self.path} has other things in it; name a new folder with --dir")
            self._lock = marker.open("ab")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise LocalRefusal(Code.CONFIG, f"another demo runs in {self.path}; name another --dir") from None
            for item in self.path.iterdir():
                if item.is_dir() and not item.is_symlink():
                    shutil.rmtree(item)
                elif item != marker:
                    item.unlink()
        except OSError as error:
            raise LocalRefusal(Code.CONFIG, f"cannot use the folder {self.path}: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
        if self._is_temporary and not self.is_worth_keeping:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            note(f"keys, databases and logs are in {self.path}")


async def by_hand(demo: "Demo") -> None:
    """Writes the users' keys, and prints URLs and commands that work as they are."""
    from devnet.network import MARKET
    from devnet.scenario import user_secret

    net, seed = demo.net, demo.report.plan.seed
    keys = net.folder / "users"
    for broker, users in (("a", demo.users_a), ("b", demo.users_b)):
        for number, user in enumerate(users):
            secret = user_secret(seed, broker, number)
            write_private(keys / f"{user.name.lower()}.key", b"0x" + secret.hex().encode() + b"\n", replace=True)
    async with net.client(net.a) as client:
        book = await client.book(MARKET, 1)
    ask = book.asks[0].price if book.asks else demo.mid_price
    bid = book.bids[0].price if book.bids else demo.mid_price
    broker, xln, dispute = _tool("xln-broker"), _tool("xln-service"), _tool("xln-dispute")
    a0, b0 = _shown(keys / "a0.key"), _shown(keys / "b0.key")
    a_dir = _shown(net.a.folder)
    lines = [
        "",
        f"The network runs until Ctrl-C. Chain {net.chain_url}, broker A {net.a.api_url}, broker B {net.b.api_url}.",
        f"Users' keys, which everybody can know, are in {_shown(keys)}: a0.key to a9.key, b0.key to b9.key.",
        "Try it by hand, in another shell in this folder, as user A0 of broker A:",
        "",
        f"  export XLN_BROKER_URL={net.a.api_url} XLN_TRADER_KEY={a0}",
        f"  {broker} trade book {MARKET} --depth 5",
        f"  {broker} trade buy {MARKET} 0.01 --price {ask} --tif IOC",
        f"  {broker} trade trades {MARKET} --limit 5",
        f"  {broker} trade balances",
        "",
        "What rests at B is filled there, over the channel. An order that rests at A, taken by a user of B:",
        "",
        f"  {broker} trade buy {MARKET} 0.01 --price {bid}",
        f"  {broker} trade orders",
        f"  {broker} trade sell {MARKET} 0.01 --key {b0} --url {net.b.api_url}",
        "",
        "As the operator of A: the channel, whose the custody's funds are, the last state that both have signed:",
        "",
        f"  {broker} channel list --dir {a_dir}",
        f"  {broker} audit --dir {a_dir}",
        f"  {broker} state export --dir {a_dir} | {dispute} inspect -",
        "",
        "Close the channel: final state, XLN attests, the custodies pay each other, the locks are released. Withdraw:",
        "",
        f"  {broker} channel close --dir {a_dir} --wait",
        f"  {xln} status --dir {_shown(net.xln.folder)}",
        f"  {broker} trade withdraw USD 100 --wait",
        "",
    ]
    for line in lines:
        note(line)


def _tool(name: str) -> str:
    """How to call a console script from here."""
    if shutil.which(name) is not None:
        return name
    script = Path(sys.executable).parent / name  # not resolved: the environment's own
    return _shown(script) if script.exists() else name


def _shown(path: Path) -> str:
    """Relative to the current folder, where that is shorter; quoted where a shell needs it."""
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return shlex.quote(str(path))


if __name__ == "__main__":
    main()
