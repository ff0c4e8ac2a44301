"""The bench runs, in the smallest sizes, and prints every row. No figure is asserted on: they are the machine's."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import __main__ as cli
from bench import book, core, limits, measure, report, share
from bench.load import LoadStats
from bench.machine import Busy, machine
from bench.measure import Beside, Effort, Figure, Section, quantiles
from bench.network import Moment, Run, _section
from bench.pair import Level, Pair
from broker.actions import CancelUserOrder, PlaceOrder
from channel.errors import LocalRefusal

TINY = Effort(
    seconds=0.002,
    commits=6,
    grouped_rows=130,
    round_trips=5,
    flow_rows=400,
    core_orders=8,
    remote_orders=20,
    unloaded_orders=3,
    repetitions=2,
)
LIMITS = [
    limits.SIGN,
    limits.RECOVER,
    "keccak of 300 bytes",
    limits.TYPED_HASH,
    limits.ENCODE,
    "appData decode, canonical only",
    limits.LOADS,
    limits.DUMPS,
    limits.ORDER_JSON,
    limits.SEAL,
    limits.OPEN,
    "write of 4 KiB + fdatasync, in place",
    limits.COMMIT,
    limits.GROUPED,
    limits.WEBSOCKET,
    "WebSocket round trip, p99",
    limits.HTTP,
    "HTTP round trip, p99",
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "FULL", TINY)
    monkeypatch.setattr(cli, "QUIET_S", 0.01)
    monkeypatch.delenv("XLN_FLOW", raising=False)


def _figures(text: str) -> dict[str, list[str]]:
    sections = json.loads(text)["sections"]
    return {key: [figure["name"] for figure in figures] for key, figures in sections.items()}


def test_every_row_of_the_parts_without_a_network_is_printed(tmp_path: Path) -> None:
    arguments = ["--json", "--dir", str(tmp_path), "--only", "core", "--only", "limits", "--only", "book"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    rows = _figures(result.stdout)
    assert list(rows) == ["limits", "book", "core"]
    assert rows["limits"] == LIMITS
    assert [name for name in rows["book"] if name.endswith("operations")] == [
        "book, operations",
        "book and ledger (exchange), operations",
    ]
    for what in ("book", "exchange"):
        for quantile in ("p50", "p99", "p99.9"):
            assert f"{what}, one operation, {quantile}" in rows["book"]
    assert len(rows["core"]) == 5
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    document = json.loads(result.stdout)
    for figures in document["sections"].values():
        for figure in figures:
            assert figure["value"] > 0, figure
            assert figure.get("ratio", 1) > 0, figure
    assert {"cores", "cpu", "python", "kernel", "filesystem"} == set(document["machine"])


def test_the_network_part_prints_rates_latencies_and_the_share_of_the_limit(tmp_path: Path) -> None:
    """Two real broker processes, XLN and a chain."""
    arguments = ["--dir", str(tmp_path), "--only", "limits", "--only", "network"]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 0, result.output
    for row in (
        "remote orders, loaded",
        "co-signed states",
        "entries a turn",
        "latency of a remote order, loaded, p50",
        "latency of a remote order, loaded, p99",
        "latency of a remote order, unloaded, p50",
        "latency of a remote order, unloaded, p99",
        "remote orders, of the limit on one core",
        "remote orders, of the limit on this machine's cores",
        "remote orders, of the limit of the disk",
        "all were filled",
    ):
        assert row in result.stdout, row
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example_and_a_wrong_part_is_refused() -> None:
    shown = CliRunner().invoke(cli.main, ["--help"])
    assert shown.exit_code == 0
    assert "make bench ARGS=--quick" in shown.output
    assert CliRunner().invoke(cli.main, ["--only", "nothing"]).exit_code == 2


# -- measuring


def test_quantiles_are_values_that_occurred() -> None:
    assert quantiles([5.0]) == (5.0, 5.0, 5.0)
    assert quantiles([float(n) for n in range(1, 1001)]) == (500.0, 990.0, 999.0)
    assert quantiles([3.0, 1.0, 2.0]) == (2.0, 3.0, 3.0)


def test_a_ratio_above_one_is_better_for_rates_and_for_times() -> None:
    faster = Figure(name="n", value=200.0, unit="/s", beside="b", beside_value=100.0)
    sooner = Figure(name="n", value=1.0, unit="ms", beside="b", beside_value=2.0)
    assert faster.ratio == sooner.ratio == 2.0
    assert Figure(name="n", value=1.0, unit="ms").ratio is None
    assert report.ratio_text(faster) == "2 x"
    limited = Figure(name="n", value=25.0, unit="/s", beside="b", beside_value=100.0, kind=Beside.LIMIT)
    assert report.ratio_text(limited) == "25 %"


@pytest.mark.parametrize(
    ("value", "text"), [(34_123.4, "34,100"), (128.0, "128"), (0.1534, "0.153"), (7.0, "7"), (0.00001, "0.000010")]
)
def test_numbers_are_shown_with_three_digits_that_count(value: float, text: str) -> None:
    assert report.number(value) == text


def test_the_machine_line_names_its_parts(tmp_path: Path) -> None:
    about = machine(tmp_path)
    assert about.cores >= 1
    assert about.python in about.line()
    assert about.filesystem in about.line()


def test_busy_cores_are_the_share_of_the_time_between() -> None:
    assert Busy(busy_s=15.0, all_s=40.0, at_s=10.0).cores_since(Busy(busy_s=10.0, all_s=20.0, at_s=0.0)) == 0.5


def test_a_comparison_of_two_that_differ_is_refused() -> None:
    with pytest.raises(limits.LimitsError, match="keccak"):
        limits._same("keccak", b"1", b"2")


# -- the parts


def test_users_actions_from_the_flow_are_all_taken_by_the_exchange() -> None:
    operations = book.load_flow(None, 2_000)
    actions = book.exchange_actions(operations)
    assert {type(action) for action in actions} == {PlaceOrder, CancelUserOrder}
    assert any(any(a.order.order.replaces) for a in actions if isinstance(a, PlaceOrder)), "amendments are in it"
    for step in book._exchange_steps(actions):
        step()  # raises for an order that is not open, or not covered by the balance


def test_flow_without_operations_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "flow.csv"
    empty.write_text("op,order_id,side,price,size\n")
    with pytest.raises(LocalRefusal, match="no operations"):
        book.load_flow(empty, 10)


@pytest.mark.parametrize("level", list(Level))
def test_two_cores_settle_every_order_into_co_signed_states(level: Level) -> None:
    pair = Pair(level)
    states = pair.states
    pair.trade(pair.taker_orders(10), 4)
    assert pair.states == states + 3  # windows of 4, 4 and 2
    for side in pair:
        channel = side.core.desk(pair.fixed.channel_id).channel
        assert not channel.pending
        assert not channel.view.orders
        assert channel.view.matched_value > 0
    a, b = (side.core.desk(pair.fixed.channel_id).channel.cosigned for side in pair)
    assert a is not None
    assert b is not None
    assert a.state.state_hash == b.state.state_hash


async def test_the_core_part_measures_each_level() -> None:
    section = await core.measure_core(TINY, lambda _: None)
    assert [figure.kind for figure in section.figures if figure.beside] == [Beside.LIMIT] * 3


def _run(filled: int) -> Run:
    def moment(at_s: float, turn: int, cpu_s: float) -> Moment:
        busy = Busy(busy_s=cpu_s, all_s=2 * at_s, at_s=at_s)
        return Moment(
            at_s=at_s,
            turn=turn,
            entries=4 * turn,
            cpu_a_s=cpu_s,
            cpu_b_s=cpu_s / 2,
            loop_a_s=cpu_s / 2,
            loop_b_s=cpu_s / 4,
            cpu_client_s=0.0,
            machine=busy,
        )

    stats = LoadStats(latencies_ms=[2.0] * filled, seconds=1.0)
    return Run(
        stats=stats,
        node_latency_ms={"p50": 1.0, "p99": 1.5},
        before=moment(0.0, 10, 1.0),
        answered=moment(1.0, 19, 1.9),
        settled=moment(1.25, 20, 2.0),
    )


def test_a_share_is_what_was_reached_of_the_least_work() -> None:
    measured = Section(key="limits", title="")
    for name in LIMITS:
        measured.add(name, 10_000.0, "/s")  # everything takes 100 us, or 10,000 ms
    section = share.measure_share(measured, None, _run(100), 9.0)
    work = share.least_work(measured)
    at_a, at_b = sum(w.us_a for w in work), sum(w.us_b for w in work)
    assert at_a > at_b > 0
    named = {figure.name: figure for figure in section.figures}
    one_core = named["remote orders, of the limit on one core"]
    assert one_core.value == 100.0
    assert one_core.beside_value == pytest.approx(1e6 / (at_a + at_b))
    spent = named["processor time per order, both brokers"]
    assert spent.value == pytest.approx(15_000.0)  # 1.5 s of processor time for 100 orders
    assert spent.beside_value == pytest.approx(at_a + at_b)
    assert section.value("  of it other threads than the loops': SQLite") == pytest.approx(7_500.0)


def test_the_network_section_counts_from_before_the_first_order_to_the_last_state() -> None:
    section = _section(_run(3), _run(100))
    assert section.value("remote orders, loaded") == 100.0
    assert section.value("co-signed states") == 8.0
    assert section.value("entries a turn") == 4.0
    assert section.value("cores busy while loaded") == pytest.approx(0.9)


def test_repetitions_are_said() -> None:
    assert measure.FULL.repetitions >= 3
