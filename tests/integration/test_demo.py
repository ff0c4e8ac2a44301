"""The demo itself: it reconciles, it notices when it does not, and it ends cleanly whenever it is asked to."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from channel.errors import Code, LocalRefusal
from channel.signing import Signer
from channel.units import format_address, format_amount
from contracts.network import Token
from devnet import scenario
from devnet.flow import FLOW_DECIMALS, generate_flow
from devnet.network import Network, Settings
from devnet.reconcile import Reconciler
from devnet.report import to_json
from devnet.scenario import Demo, Options, user_key

ROOT = Path(__file__).parents[2]
FAST_S = 0.25
EVENTS = 1200  # enough rounds of B's takers on A: the takers of A are often faster
STAGES = [
    "deposits", "channel open", "in the middle of trading", "after trading", "final state", "payouts", "withdrawals",
]  # fmt: skip


def write_flow(path: Path, rows: int) -> Path:
    """Flow as a file: other rows than the generator gives the demo for its own seed."""

    def text(value: int | None) -> str:
        return "" if value is None else format_amount(value, FLOW_DECIMALS)

    lines = [
        f"{row.kind},{row.order_id},{row.side.name.lower()},{text(row.price_e18)},{text(row.size_e18)}\n"
        for row in generate_flow(99, rows)
    ]
    path.write_text("op,order_id,side,price,size\n" + "".join(lines))
    return path


async def never(_: Demo) -> None:
    raise AssertionError("it was not asked to keep anything")


async def test_the_whole_road_with_flow_from_a_file(tmp_path: Path) -> None:
    options = Options(flow=write_flow(tmp_path / "flow.csv", EVENTS), events=None, seed=5, block_time_s=FAST_S)
    said: list[str] = []
    report = await scenario.run(options, tmp_path / "net", said.append, never)
    assert report.problems == []
    assert [stage.name for stage in report.stages] == STAGES
    assert all(len(stage.lines) == 4 and len(stage.totals) == 2 for stage in report.stages)
    shown: dict[str, Any] = json.loads(json.dumps(to_json(report)))
    assert shown["ok"] is True
    assert shown["trades"]["A to B"] >= 50
    assert shown["trades"]["B to A"] >= 1
    assert shown["channel"]["states"] == shown["channel"]["cosigned"] == shown["channel"]["turns"] + 1
    assert {seen["state_hash"] for seen in shown["inspect"]} == {shown["inspect"][0]["state_hash"]}
    assert all(seen["is_final"] and seen["fully_signed"] for seen in shown["inspect"])
    assert shown["flow"]["rows"] == EVENTS
    made = shown["operations"]
    done = made["added"] + made["amended"] + made["removed"] + made["skipped_consumed"] + sum(made["refused"].values())
    assert done == shown["flow"]["emitted"]
    assert made["refused"] == {}
    assert {gas["operation"] for gas in shown["gas"]} == set(scenario._GAS_OF.values())
    assert len({party["party"] for party in shown["balances"] if party["party"][0] in "AB"}) == 20
    assert any(party["change"] not in ("0", 0) for party in shown["balances"])


async def test_money_that_comes_from_nowhere_is_noticed(tmp_path: Path) -> None:
    """One unit sent to a custody without a deposit: in no ledger, and so the identity does not hold."""
    user = user_key(1, "a", 0)
    async with Network.start(tmp_path / "net", Settings(block_time_s=FAST_S), fund=[user.address]) as net:
        reconciler = Reconciler(net, [user.address])
        assert (await reconciler.check("before")).problems() == []
        await Token(net.chain, net.usd.address).mint(net.deployer, net.a.custody, 1)
        (broken, total) = (await reconciler.check("after")).problems()
        assert "custody of A has 1 base units of USD on chain, its ledger says 0: +1" in broken
        assert "the ledgers say 0" in total
        stranger = Signer(bytes(31) + b"\x07").address
        await net.mint(net.btc, stranger, 5)
        assert any("5 base units of BTC were minted" in problem for problem in (await reconciler.check("x")).problems())


async def test_a_node_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    async def kill(demo: Demo) -> None:
        os.kill(demo.net.b.pid, signal.SIGKILL)
        await asyncio.sleep(20)

    options = Options(events=120, keep=True, block_time_s=FAST_S)
    with pytest.raises(LocalRefusal, match=r"broker B has ended with status -9; the end of .*b\.out") as refusal:
        await scenario.run(options, tmp_path / "net", lambda _: None, kill)
    assert refusal.value.code is Code.PEER_UNAVAILABLE


def processes_of(folder: Path) -> list[int]:
    """Those that were started with a path in `folder` on their command line."""
    found = []
    for item in Path("/proc").iterdir():
        if item.name.isdigit():
            try:
                words = (item / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(os.fsencode(folder)) for word in words) and int(item.name) != os.getpid():
                found.append(int(item.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("word", "arguments", "number", "status"),
    [
        ("deploying the contracts", [], signal.SIGINT, 130),
        ("reconciliation, channel open", [], signal.SIGTERM, 143),
        ("Try it by hand", ["--keep"], signal.SIGINT, 0),
    ],
)
async def test_it_ends_cleanly_when_asked(
    tmp_path: Path, word: str, arguments: list[str], number: signal.Signals, status: int
) -> None:
    folder = tmp_path / "demo"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "devnet.cli", "run", "--events", "2000", "--dir", str(folder), *arguments,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "XLN_FLOW": ""},
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    seen: list[str] = []
    try:
        async with asyncio.timeout(90):
            while word not in "".join(seen):
                line = await process.stderr.readline()
                assert line, "".join(seen)
                seen.append(line.decode())
        assert processes_of(folder)
        process.send_signal(number)
        rest = (await asyncio.wait_for(process.stderr.read(), 25)).decode()
        assert await asyncio.wait_for(process.wait(), 5) == status, rest
    finally:
        if process.returncode is None:
            process.kill()
    assert processes_of(folder) == []
    assert "Traceback" not in rest + "".join(seen)
    if arguments:
        key = (folder / "users" / "a0.key").read_text().strip()
        owner = format_address(Signer(bytes.fromhex(key[2:])).address)
        assert owner == format_address(user_key(1, "a", 0).address)
