"""The figures as tables for people, and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from bench.machine import Machine
from bench.measure import Beside, Figure, Section
from node.cli import console, print_json, table

COLUMNS = ("figure", "value", "unit", "beside it", "value there", "ratio", "")


def print_tables(machine: Machine, sections: Sequence[Section], warnings: Sequence[str]) -> None:
    out = console()
    out.print(f"Machine: {machine.line()}", soft_wrap=True)
    for warning in warnings:
        out.print(warning, soft_wrap=True)
    for section in sections:
        out.print()
        table(section.title, COLUMNS, [_row(figure) for figure in section.figures])
        for note in section.notes:
            out.print(note, soft_wrap=True)
    out.print()
    out.print(
        "Ratio: how many times as good as what is beside it; of a limit, the share of it that is reached.",
        soft_wrap=True,
    )


def print_as_json(machine: Machine, sections: Sequence[Section], warnings: Sequence[str]) -> None:
    print_json(
        {
            "machine": machine.to_json(),
            "warnings": list(warnings),
            "sections": {section.key: [_object(figure) for figure in section.figures] for section in sections},
        }
    )


def _row(figure: Figure) -> tuple[str, ...]:
    return (
        figure.name,
        number(figure.value),
        figure.unit,
        figure.beside,
        "" if figure.beside_value is None else number(figure.beside_value),
        ratio_text(figure),
        figure.note,
    )


def number(value: float) -> str:
    """Three digits that count, without exponents: 34,100 and 0.153."""
    if value >= 100:
        digits = max(0, len(str(int(value))) - 3)
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}" if value >= 0.001 else f"{value:.6f}"


def ratio_text(figure: Figure) -> str:
    ratio = figure.ratio
    if ratio is None:
        return ""
    return f"{number(ratio)} x" if figure.kind is Beside.PEER else f"{100 * ratio:.3g} %"


def _object(figure: Figure) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": figure.name, "value": figure.value, "unit": figure.unit}
    if figure.beside_value is not None:
        shown |= {
            "beside": figure.beside,
            "besideValue": figure.beside_value,
            "kind": figure.kind.value,
            "ratio": figure.ratio,
        }
    if figure.note:
        shown["note"] = figure.note
    return shown
