"""A manifest whose labels are text, and whose columns of one's own travel along."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dmpt.base.errors import UserError, one_line
from dmpt.data.layouts.folders import Notes
from dmpt.data.layouts.table import Row, read_rows
from dmpt.gallery.rows import LABEL_LENGTH
from dmpt.gallery.times import MOMENT, TIME, moment
from dmpt.settings.modalities import MODALITIES

_WHOLE = re.compile(r"(\d+)\.0+", re.ASCII)  # 12.0 is how pandas writes whole numbers beside empty cells
_PADDED = re.compile(r"[+-]?0\d", re.ASCII)  # 007 is a name
_DATE = re.compile(r"\d{4}-\d\d-\d\d\b", re.ASCII)
_KINDS = (
    *(pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating),
    *(pa.types.is_timestamp, pa.types.is_date),
)


@dataclass(frozen=True, eq=False)
class Listed:
    """Rows of a manifest.

    Attributes:
        rows: with their pictures.
        labels: pid and camera of each, None where not known.
        own: the other columns, a value for each row.
    """

    rows: list[Row[None]]
    labels: list[tuple[str | None, str | None]]
    own: dict[str, pa.Array]


def read_own(path: Path, notes: Notes, split: str | None = None) -> Listed:
    """A manifest with any labels and columns.

    Those of Parquet keep their types. Those of a CSV are whole numbers, numbers, true and false, dates and moments of
    ISO 8601, or else text; what begins with a zero that counts nothing (007) is text. ``time`` is a moment
    (``gallery.times``).

    Args:
        path: the table.
        notes: get a problem for each row that cannot be used.
        split: whose rows; None = all.

    Raises:
        UserError: it cannot be read, has no such splits, or a column that the store cannot hold.
    """
    header, rows = read_rows(path, notes)
    if split and "split" not in header:
        raise UserError(f"{path} has no column split; leave --split out, or add it")
    if split:
        wanted = {"query", "gallery"} if split == "test" else {split}
        rows = [row for row in rows if wanted & {*row.splits}]
    rows, labels = _labelled(path, rows, notes)
    names = [name for name in header if name not in (*MODALITIES, "pid", "camera")]
    if path.suffix.lower() == ".parquet":
        table = pq.read_table(path, columns=names).take(pa.array([row.number - 1 for row in rows], pa.int64()))
        own = {name: _plain(path, name, table.column(name).combine_chunks()) for name in names}
    else:
        cells = {name: [row.cells.get(name) or None for row in rows] for name in names}
        own = {name: pa.array(texts, pa.string()) if name == TIME else _typed(texts) for name, texts in cells.items()}
    if TIME in own:
        rows, labels, own = _with_moments(path, Listed(rows, labels, own), notes)
    return Listed(rows, labels, own)


def _labelled(
    path: Path, rows: Sequence[Row[None]], notes: Notes
) -> tuple[list[Row[None]], list[tuple[str | None, str | None]]]:
    """The rows whose labels can be kept, and these."""
    kept, labels = [], []
    for row in rows:
        pid, camera = (row.cells.get(name) or None for name in ("pid", "camera"))
        long = [name for name, cell in (("pid", pid), ("camera", camera)) if cell and len(cell) > LABEL_LENGTH]
        if long:
            notes.problems.append(
                f"{path}, row {row.number}, column {long[0]}: longer than {LABEL_LENGTH} characters; shorten it"
            )
            continue
        kept.append(row)
        labels.append((_label(pid), _label(camera)))
    return kept, labels


def _label(cell: str | None) -> str | None:
    whole = cell and _WHOLE.fullmatch(cell)
    return whole[1] if whole else cell


def _typed(cells: Sequence[str | None]) -> pa.Array:
    """Text as what all of it reads as."""
    texts = pa.array(cells, pa.string())
    there = [cell for cell in cells if cell]
    if not there or any(_PADDED.match(cell) for cell in there):
        return texts
    for kind in (pa.int64(), pa.float64(), pa.bool_()):
        try:
            return texts.cast(kind)
        except pa.ArrowInvalid:
            continue
    if all(_DATE.match(cell) for cell in there):
        try:
            return pa.array([cell and moment(cell, "") for cell in cells], MOMENT)
        except UserError:
            pass
    return texts


def _plain(path: Path, name: str, column: pa.Array) -> pa.Array:
    """A column of Parquet as the store holds it: categories and long text as text."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = column.cast(pa.string())
    if pa.types.is_timestamp(kind):  # of nanoseconds Python knows nothing
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    if not any(is_kind(column.type) for is_kind in _KINDS):
        raise UserError(
            f"{path}: the column {one_line(name)!r} holds {column.type}; a gallery keeps text, numbers, true and "
            "false, dates and times; leave it out"
        )
    return column


def _with_moments(
    path: Path, listed: Listed, notes: Notes
) -> tuple[list[Row[None]], list[tuple[str | None, str | None]], dict[str, pa.Array]]:
    """The rows whose time can be read, if they have one."""
    kept, found = [], []
    for at, (row, value) in enumerate(zip(listed.rows, listed.own[TIME].to_pylist(), strict=True)):
        try:
            found.append(None if value is None else moment(value, f"{path}, row {row.number}, column {TIME}"))
            kept.append(at)
        except UserError as error:
            notes.problems.append(str(error))
    rows = pa.array(kept, pa.int64())
    own = {name: column.take(rows) for name, column in listed.own.items() if name != TIME}
    return [listed.rows[at] for at in kept], [listed.labels[at] for at in kept], {**own, TIME: pa.array(found, MOMENT)}
