"""What our command lines share: errors as one line, `--json`, tables, progress, examples in the help.

A command that raises XlnError ends with `error: <code>: <message>` on stderr and status 1; a wrong usage is status 2;
a bug is one line and status 70, with its traceback when XLN_DEBUG is set. Results go to stdout, everything else to
stderr, so that `--json` can be piped.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any, Final, TypeVar

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from node import supervise

DISTRIBUTION: Final = "xln-node"
PIPE_WIDTH_CHARS: Final = 200  # tables that nobody looks at through a terminal are not folded
PROGRESS_DELAY_S: Final = 2.0
PROGRESS_EVERY_S: Final = 3.0

F = TypeVar("F", bound=Callable[..., Any])


class XlnGroup(click.Group):
    """A click group whose commands end as the module says. `@click.group(cls=XlnGroup)`."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        except (click.ClickException, click.Abort, click.exceptions.Exit):  # only when click does not end the process
            raise
        except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - the outermost frame: nobody above to tell
            if os.environ.get("XLN_DEBUG"):
                traceback.print_exception(error)
            sys.exit(supervise.report(error))


def version_option() -> Callable[[F], F]:
    """`--version`: the version of the distribution."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # a bare checkout on the path
        version = "unknown"
    return click.version_option(version, prog_name=DISTRIBUTION)


def json_option(function: F) -> F:
    """`--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def examples(text: str) -> str:
    """An epilog that click prints line by line, as it is written: `@command(epilog=examples("xln-broker run ./a"))`."""
    lines = [line.rstrip() for line in text.strip("\n").splitlines()]
    indent = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
    blocks = "\n".join(line[indent:] for line in lines).split("\n\n")
    return "\n\n".join(
        "\b\n" + ("Examples:\n" if number == 0 else "") + "\n".join("  " + line for line in block.splitlines())
        for number, block in enumerate(blocks)
    )


def print_json(data: object) -> None:
    """One JSON value on stdout, indented."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_STRICT_INTEGER
    click.echo(orjson.dumps(data, option=option).decode())


def note(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(text, err=True)


def console(*, stderr: bool = False) -> Console:
    """A terminal, or a wide page without colours when the output goes to a file or a pipe."""
    out = Console(stderr=stderr, highlight=False)
    return out if out.is_terminal else Console(stderr=stderr, highlight=False, width=PIPE_WIDTH_CHARS)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, note: str = "") -> None:
    """Prints a table. A column is set to the right when all its cells look like numbers. None prints as a dash."""
    cells = [["–" if value is None else str(value) for value in row] for row in rows]
    out = Table(title=title or None, title_justify="left", title_style="bold", caption=note or None)
    out.caption_justify = "left"
    for index, name in enumerate(columns):
        column = [row[index] for row in cells]
        right = bool(column) and all(_numeric(cell) for cell in column)
        # On a narrow terminal a number or a hash goes on in the next line: it is never cut short.
        out.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in cells:
        out.add_row(*(Text(cell) for cell in row))
    console().print(out)


def _numeric(cell: str) -> bool:
    digits = cell.replace(",", "").replace("_", "")
    return cell == "–" or (
        digits[:1] in "+-−.0123456789" and any(c.isdigit() for c in digits) and " 0x" not in f" {cell}"
    )


class Progress:
    """How far a long job is. Made by `progress`."""

    def __init__(self, what: str, total: int | None, rich: RichProgress | None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._rich = rich
        self._task = rich.add_task(what, total=total) if rich is not None else None
        self._started_s = time.monotonic()
        self._due_s = self._started_s + PROGRESS_DELAY_S

    def advance(self, by: int = 1) -> None:
        self.update(self._done + by)

    def update(self, done: int | None = None, *, what: str | None = None, total: int | None = None) -> None:
        """Sets how much is done, and what is being done."""
        self._done = self._done if done is None else done
        self._what = what or self._what
        self._total = self._total if total is None else total
        if self._rich is not None and self._task is not None:
            self._rich.update(self._task, completed=self._done, description=self._what, total=self._total)
        elif time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + PROGRESS_EVERY_S
            note(self._line())

    def _line(self) -> str:
        of = f" {self._done}/{self._total}" if self._total is not None else f" {self._done}" if self._done else ""
        return f"{self._what}{of} ({time.monotonic() - self._started_s:.0f} s)"

    def finish(self) -> None:
        """The last line, if there has been one."""
        if self._rich is None and time.monotonic() - self._started_s >= PROGRESS_DELAY_S:
            note(self._line())


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """Shows progress on stderr: a bar on a terminal, else a line every few seconds once two have passed."""
    out = console(stderr=True)
    if not out.is_terminal:
        plain = Progress(what, total, None)
        yield plain
        plain.finish()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with RichProgress(*columns, TimeElapsedColumn(), console=out) as rich:
        yield Progress(what, total, rich)
