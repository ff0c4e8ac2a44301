"""The report: numbers as people and programs get them, and nothing good about it when something does not add up."""

import json
from dataclasses import replace

import pytest

from devnet import report as reports
from devnet.plan import make_plan
from devnet.reconcile import Line, Stage, Total
from devnet.report import ChannelFigures, Gas, Inspection, Party, Report, quantiles, signed_amount, sizing_text, to_json
from devnet.trading import TradeStats

LINE = Line(
    stage="now", broker="A", token="BTC", decimals=8,
    custody=100, deposited=0, free=60, locked=20, withdrawing=0, house=0, owed_to_peers=20,
)  # fmt: skip
TOTAL = Total(stage="now", token="BTC", decimals=8, on_chain=300, ledgers=300, minted=300)


def stage(line: Line = LINE) -> Stage:
    return Stage(name="now", lines=(line,), totals=(TOTAL,))


def full_report() -> Report:
    report = Report(plan=make_plan(None, 300, every=5, seed=1, cover_ratio_bps=11_000))
    report.trading = TradeStats(added=7, taken=3, taken_filled=2, latencies_ms=[1.0, 2.0, 3.0], seconds=1.5)
    report.trading.refused["order.balance"] += 2
    report.trades = {"A to B": 11, "B to A": 4, "A": 1, "B": 2}
    report.node_latency_ms = {"A": {"count": 2, "p50": 1.25, "p99": 9.0}, "B": {"count": 0, "p50": None, "p99": None}}
    report.channel = ChannelFigures(
        channel_id="0xaa", turns=9, states=10, cosigned=10, entries_a=4, entries_b=5, journal_bytes=12_345,
        entry_bytes=2_000, journals_agree=True,
    )  # fmt: skip
    report.inspections = [
        Inspection(broker=name, state_hash="0xbb", turn=9, is_final=True, fully_signed=True) for name in "AB"
    ]
    report.parties = [
        Party(party="A0", role="taker", token="BTC", decimals=8, before=10**8, after=2 * 10**8),
        Party(party="A0", role="taker", token="USD", decimals=6, before=10**6, after=5),
        Party(party="broker A", role="custody", token="BTC", decimals=8, before=0, after=0),
    ]
    report.gas = [Gas(operation="withdraw", used=(10, 20, 31))]
    report.add_stage(stage())
    return report


def test_tables_show_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_tables(full_report())
    shown = capsys.readouterr().out
    for text in ("order.balance: 2", "15", "0xbb", "12,345", "10 of 10", "-0.999995", "+1", "withdraw", "yes", "9.0"):
        assert text in shown, text
    assert "NO" not in shown


def test_tables_of_a_run_that_has_just_begun(capsys: pytest.CaptureFixture[str]) -> None:
    reports.print_tables(Report(plan=full_report().plan))
    assert "rows of the flow" in capsys.readouterr().out


def test_what_differs_stands_out(capsys: pytest.CaptureFixture[str]) -> None:
    report = full_report()
    report.inspections[1] = replace(report.inspections[1], state_hash="0xcc", fully_signed=False)
    report.add_stage(stage(replace(LINE, custody=99)))
    reports.print_tables(report)
    shown = capsys.readouterr().out
    assert shown.count("NO") == 2
    assert "-0.00000001" in shown
    assert not report.is_good
    assert to_json(report)["ok"] is False


def test_json_is_json_with_everything() -> None:
    report = full_report()
    shown = json.loads(json.dumps(to_json(report)))
    assert shown["ok"] is True
    assert shown["trades"]["remote"] == report.remote_trades == 15
    assert shown["latencyMs"]["client"] == {"count": 3, "p50": 2.0, "p99": 2.98, "max": 3.0}
    assert shown["latencyMs"]["node"]["A"]["p99"] == 9.0
    assert shown["gas"] == [{"operation": "withdraw", "transactions": 3, "min": 10, "mean": 20, "max": 31}]
    assert shown["balances"][1]["change"] == "-999995"
    assert shown["flow"]["rows"] == 300
    assert shown["operations"]["refused"] == {"order.balance": 2}


def test_quantiles_of_few_values() -> None:
    assert quantiles([]) == {"count": 0, "p50": None, "p99": None, "max": None}
    assert quantiles([4.0]) == {"count": 1, "p50": 4.0, "p99": 4.0, "max": 4.0}
    assert quantiles([float(n) for n in range(101)])["p99"] == 99.0


def test_expectations_collect_problems() -> None:
    report = full_report()
    report.expect(True, "fine")
    assert report.is_good
    report.expect(False, "one unit is gone")
    assert report.problems == ["one unit is gone"]


def test_signs_and_words() -> None:
    assert [signed_amount(value, 2) for value in (150, 0, -5)] == ["+1.5", "0", "-0.05"]
    assert "1.10 x" in sizing_text(full_report().plan)
