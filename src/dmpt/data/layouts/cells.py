"""A CSV or Parquet file as rows of text."""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.data.layouts.folders import Notes

Cells = tuple[int, dict[str, str]]
"""A row's number, as a spreadsheet counts (of Parquet the first is 1), and its cells by column."""


def csv_rows(path: Path, notes: Notes, known: Sequence[str]) -> tuple[list[str], Iterator[Cells]]:
    """The names of a CSV's columns, and its rows.

    Args:
        path: of the file.
        notes: get a problem for each row with more cells than there are columns, and what it names.
        known: the columns that a message may ask for.

    Raises:
        UserError: it cannot be read, is empty, no CSV, or no UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel begins its UTF-8 with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check data.root and its rights") from error
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty; its first row must name the columns: {', '.join(known)}")
    if "," not in first and (";" in first or "\t" in first):
        raise UserError(f"{path} has no commas between its columns; save it with commas, not semicolons or tabs")
    lines: list[list[str]] = []  # the rows of a spreadsheet: empty ones count, line breaks within a cell do not
    try:
        for line in csv.reader(io.StringIO(text, newline=""), strict=True):
            lines.append([cell.strip() for cell in line])
    except csv.Error as error:
        raise UserError(f"{path}, row {len(lines) + 1}: no CSV ({error}); correct the quotes of this row") from error
    at, header = next(((row, line) for row, line in enumerate(lines, 1) if any(line)), (0, []))

    def rows() -> Iterator[Cells]:
        for number, line in enumerate(lines[at:], at + 1):
            if not any(line):
                continue
            if len(line) > len(header):
                notes.seen.update(Path(os.path.normpath(path.parent / cell)) for cell in line if cell)
                notes.problems.append(
                    f"{path}, row {number}: {len(line)} cells under {len(header)} columns; quote cells that hold commas"
                )
            else:
                yield number, dict(zip(header, line, strict=False))

    return header, rows()


def parquet_rows(path: Path, known: Sequence[str]) -> tuple[list[str], Iterator[Cells]]:
    """The names of a Parquet file's columns, and its rows.

    Args:
        path: of the file.
        known: the columns whose cells are wanted.

    Raises:
        UserError: it cannot be read, or pyarrow is not there.
    """
    arrow, parquet = pyarrow()
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is no readable Parquet file ({reason}); write it again") from error

    def rows() -> Iterator[Cells]:
        try:
            found = table.select([name for name in table.column_names if name in known]).to_pylist()
        except (ValueError, arrow.ArrowException) as error:  # text that is none, times that Python has no type for
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path}: a cell cannot be read ({reason}); write the table again") from error
        for number, row in enumerate(found, 1):
            yield number, {name: _text(value) for name, value in row.items()}

    return table.column_names, rows()


def _text(value: object) -> str:
    """A cell of any type as CSV would hold it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def pyarrow() -> tuple[Any, Any]:
    """It, and its part that reads Parquet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'dmpt[parquet]', or use a CSV manifest") from error
    return pyarrow, pyarrow.parquet
