"""What a person sees of work in a terminal: bars with the time that is left, notes, tables."""

import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dmpt.base.errors import one_line

_T = TypeVar("_T")


class _Stderr(io.TextIOBase):
    """Standard error, whichever it is just then. Where nobody reads it any more, as in a closed terminal, work goes on.

    Left to itself, rich would end the process when a pipe breaks.
    """

    @property
    def _now(self) -> TextIO:
        return cast(TextIO, getattr(sys.stderr, "rich_proxied_file", sys.stderr))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._now, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return bool(self._now) and self._now.isatty()

    def fileno(self) -> int:
        return self._now.fileno()

    def write(self, text: str, /) -> int:
        with suppress(OSError, ValueError, AttributeError):  # gone, closed, never there
            self._now.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            self._now.flush()


stderr = _Stderr()

# Names and paths may have brackets; a log has no edge to wrap at.
console = Console(
    file=cast(TextIO, stderr),
    highlight=False,
    markup=False,
    emoji=False,
    width=None if stderr.isatty() else 1_000_000,
)


@cache
def warn(text: str) -> None:
    """A line on standard error, once a process."""
    console.print(f"note: {one_line(text)}")


def bar() -> Progress:
    """A progress display whose tasks may carry a ``note``; silent when standard error is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def track(items: Iterable[_T], what: str, total: int) -> Iterator[_T]:
    """``items``, with a bar that says ``what``."""
    with bar() as display:
        task = display.add_task(what, total=total, note="")
        for item in items:
            yield item
            display.advance(task)


def plain(value: Any) -> Any:
    """As JSON holds it: moments and other values of columns as text, NaN as null."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None  # JSON has no NaN
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def print_json(content: Any) -> None:
    """Plain values on standard output, for programs."""
    print(json.dumps(content, indent=2))


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output; columns of numbers are set to the right. Commands to a terminal are spelled out."""
    from rich.table import Table

    table = Table()
    for number, column in enumerate(header):
        table.add_column(one_line(column), justify="right" if rows and rows[0][number][:1].isdigit() else "left")
    for row in rows:
        table.add_row(*map(one_line, row))
    # A file or a pipe has no edge to wrap at; names of runs are no markup, whatever brackets they have.
    out = Console(width=None if sys.stdout.isatty() else 1000, markup=False, emoji=False, highlight=False)
    out.print(one_line(title))  # as the table's own it would be as narrow as the table
    out.print(table)
