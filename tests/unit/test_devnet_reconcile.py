"""Reconciliation: one unit too much or too little, anywhere, is told."""

from dataclasses import replace

import pytest

from devnet.reconcile import Line, Stage, Total

LINE = Line(
    stage="now", broker="A", token="BTC", decimals=8,
    custody=100, deposited=1, free=40, locked=20, withdrawing=9, house=5, owed_to_peers=25,
)  # fmt: skip
TOTAL = Total(stage="now", token="BTC", decimals=8, on_chain=300, ledgers=300, minted=300)


def stage(line: Line = LINE, total: Total = TOTAL) -> Stage:
    return Stage(name="now", lines=(line,), totals=(total,))


def test_what_adds_up() -> None:
    assert (LINE.ledger, LINE.difference) == (100, 0)
    assert stage().is_reconciled
    assert replace(LINE, custody=60, owed_to_peers=-15).difference == 0


@pytest.mark.parametrize("name", ["custody", "deposited", "free", "locked", "withdrawing", "house", "owed_to_peers"])
def test_one_unit_anywhere_is_told(name: str) -> None:
    broken = stage(replace(LINE, **{name: getattr(LINE, name) + 1}))
    assert not broken.is_reconciled
    (problem,) = broken.problems()
    assert ("+1" if name == "custody" else "-1") in problem
    assert "custody of A" in problem


@pytest.mark.parametrize("name", ["on_chain", "ledgers", "minted"])
def test_one_unit_in_the_totals_is_told(name: str) -> None:
    broken = stage(total=replace(TOTAL, **{name: 299}))
    assert not broken.is_reconciled
    assert "299" in broken.problems()[0]


def test_json_has_amounts_as_text() -> None:
    shown = stage().to_json()
    assert shown["reconciled"] is True
    assert shown["lines"][0]["custody"] == "100"
    assert shown["lines"][0]["decimals"] == 8
    assert shown["lines"][0]["difference"] == "0"
    assert shown["totals"][0] == {
        "stage": "now", "token": "BTC", "decimals": 8,
        "on_chain": "300", "ledgers": "300", "minted": "300", "equal": True,
    }  # fmt: skip
