"""Command lines: exit statuses, one-line errors, examples as written, tables and progress without a terminal."""

import json

import click
import pytest
from click.testing import CliRunner

from channel.errors import Code, PeerFault
from node import cli


@click.group(cls=cli.XlnGroup)
@cli.version_option()
def main() -> None:
    """A command line."""


@main.command(
    epilog=cli.examples(
        """
        xln-broker  run ./a
        xln-broker status ./a

        A second block, with a very long line that must not be folded although it is longer than eighty characters
        """
    )
)
@click.argument("how")
@cli.json_option
def do(how: str, as_json: bool) -> None:
    """Does it."""
    if how == "refuse":
        raise PeerFault(Code.CHANNEL_UNKNOWN, "no such channel")
    if how == "group":
        raise ExceptionGroup("several", [PeerFault(Code.BUSY, "busy"), PeerFault(Code.AUTH, "who?")])
    if how == "bug":
        raise RuntimeError("oops 0x" + "ab" * 65)
    if as_json:
        cli.print_json({"a": 1})
    else:
        cli.table("Balances", ["party", "amount"], [["[bold]A[/bold]", "1.5"], ["B", None]])


@pytest.mark.parametrize(
    ("arguments", "status", "stderr"),
    [
        (["do", "refuse"], 1, "error: channel.unknown: no such channel\n"),
        (["do", "group"], 1, "error: node.busy: busy\nerror: auth.invalid: who?\n"),
        (["do", "bug"], 70, "error: internal: RuntimeError: oops"),
        (["do"], 2, "Usage:"),
        (["undo"], 2, "No such command"),
    ],
)
def test_exit_statuses(arguments: list[str], status: int, stderr: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == status
    assert stderr in result.stderr
    assert "Traceback" not in result.stderr
    assert "ab" * 65 not in result.stderr
    assert result.stdout == ""


def test_json() -> None:
    result = CliRunner().invoke(main, ["do", "x", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"a": 1}


def test_a_table_shows_cells_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    cli.table("Balances", ["party", "amount"], [["[bold]A[/bold]", "1.5"], ["B", None], ["C", "1,000"]], note="why")
    out = capsys.readouterr().out
    assert "Balances" in out
    assert "[bold]A[/bold]" in out
    assert " 1.5 │" in out
    assert "   – │" in out
    assert "why" in out


def test_a_wide_table_is_not_folded_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    cli.table("", ["a", "b"], [["x" * 66, "y" * 66]])
    assert "x" * 66 in capsys.readouterr().out


def test_examples_stay_as_written() -> None:
    text = CliRunner().invoke(main, ["do", "--help"]).stdout
    assert "    xln-broker  run ./a\n    xln-broker status ./a\n" in text
    assert "Examples:" in text
    assert "must not be folded although it is longer than eighty characters" in text


def test_version() -> None:
    assert "xln-node" in CliRunner().invoke(main, ["--version"]).stdout


def test_progress_without_a_terminal_is_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("node.cli.time.monotonic", lambda: now[0])
    with cli.progress("trading", 30) as progress:
        for _ in range(30):
            now[0] += 0.5
            progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "trading 4/30 (2 s)"
    assert lines[-1] == "trading 30/30 (15 s)"
    assert 4 <= len(lines) <= 7


def test_short_jobs_show_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with cli.progress("quick", 3) as progress:
        progress.advance(3)
    assert capsys.readouterr().err == ""
