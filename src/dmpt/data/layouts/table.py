"""Own data as a table: a CSV or Parquet file with a row per sample."""

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically, write_text
from dmpt.data.layouts.folders import Notes
from dmpt.data.records import Dataset, Record, Splits
from dmpt.settings.modalities import ALSO, MODALITIES, meant

_COLUMNS = (*MODALITIES, "pid", "camera", "scene", "split")
# Values of the column ``split``, and the splits they stand for.
_SPLITS = {"train": ("train",), "query": ("query",), "gallery": ("gallery",), "test": ("query", "gallery")}
_NAMES = ("manifest.csv", "manifest.parquet")
# What others call these columns.
_COLUMNS_ALSO = {
    **ALSO,
    **dict.fromkeys(("id", "identity", "person_id", "vehicle_id", "label"), "pid"),
    **dict.fromkeys(("cam", "camid", "camera_id"), "camera"),
}
_NUMBER = re.compile(r"(\d{1,18})(?:\.0+)?", re.ASCII)  # 12.0 is how pandas writes whole numbers beside empty cells
_Row = tuple[int, dict[str, str]]


class _BadRowError(Exception):
    """What is wrong with a row, as it is said behind its number."""


def read_manifest(root: Path, notes: Notes) -> Splits:
    """Read a table with the columns ``rgb,nir,tir,pid,camera[,scene,split]``.

    Any subset of the modality columns will do, and an empty cell is a missing modality. Relative paths start at the
    table's folder and may not leave it; absolute paths are taken as they are. Rows are counted as a spreadsheet does:
    the header of a CSV is row 1; of Parquet, the first row is 1.

    Args:
        root: the table, or the folder that holds ``manifest.csv`` or ``manifest.parquet``.
        notes: get the images, and a problem for each row that is wrong; the row is left out.

    Returns:
        The splits, in the order of the rows; all rows in ``unsplit`` where there is no column ``split``.

    Raises:
        UserError: there is no table, it cannot be read, or its columns are not these.
    """
    path = _table(root)
    header, rows = _parquet_rows(path) if path.suffix.lower() == ".parquet" else _csv_rows(path, notes)
    _check_header(path, header)
    splits: dict[str, list[Record]] = {"train": [], "query": [], "gallery": [], "unsplit": []}
    seen: dict[tuple[str, str, Path], int] = {}
    for number, cells in rows:
        notes.seen.update(_file(path.parent, cells[modality]) for modality in MODALITIES if cells.get(modality))
        try:
            targets = _targets(cells) if "split" in header else ("unsplit",)
            record = _record(path.parent, cells)
            uses = [(split, modality, file) for modality, file in record.paths.items() for split in targets]
            for use in uses:
                if use in seen:
                    raise _BadRowError(f", column {use[1]}: {use[2]} is in row {seen[use]} already; remove one row")
        except _BadRowError as error:
            notes.problems.append(f"{path}, row {number}{error}")
            continue
        seen |= dict.fromkeys(uses, number)
        for split in targets:
            splits[split].append(record)
    if not any(splits.values()) and not notes.problems:
        raise UserError(f"{path} has no rows; write one for each sample")
    notes.folder = Path(os.path.normpath(path.parent))
    # A table may lie in anything, a project or a home: only where its rows lead is counted.
    depth = len(notes.folder.parts)
    below = [file.parts[depth:] for file in notes.seen if file.parts[:depth] == notes.folder.parts]
    notes.entered = frozenset(parts[0] for parts in below if len(parts) > 1)
    train, query, gallery, unsplit = map(tuple, splits.values())
    return Splits(train, query, query if query == gallery else gallery, unsplit)


def write_manifest(path: str | Path, dataset: Dataset) -> None:
    """Write a data set as a table that ``read_manifest`` reads; the suffix ``.parquet`` chooses the format.

    Args:
        path: the table. Files below its folder are written relative to it, others absolute.
        dataset: what to write; where query and gallery are the same records, their split is ``test``.

    Raises:
        UserError: the data set cuts its modalities from shared files, or the table cannot be written.
    """
    path = Path(path)
    same = dataset.query == dataset.gallery
    splits = {"train": dataset.train, "test": dataset.gallery} if same else dataset.splits
    rows = [_cells(path, record) | {"split": split} for split, records in splits.items() for record in records]
    columns = [name for name in _COLUMNS if any(row.get(name) not in (None, "") for row in rows)]
    if path.suffix.lower() == ".parquet":
        arrow, parquet = _pyarrow()
        table = arrow.table({name: [row.get(name) for row in rows] for name in columns})
        write_atomically(path, lambda temporary: parquet.write_table(table, temporary))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _cells(table: Path, record: Record) -> dict[str, Any]:
    if record.columns:
        raise UserError(
            f"{record.name} holds several modalities side by side, which a manifest cannot say; cut the files first"
        )
    folder = _plain(table.parent)
    cells: dict[str, Any] = {"pid": record.pid, "camera": record.camera, "scene": record.scene}
    for modality, path in record.paths.items():
        file = _plain(path)
        cells[modality] = (file.relative_to(folder) if file.is_relative_to(folder) else file).as_posix()
    return cells


def _table(root: Path) -> Path:
    if root.is_file():
        return root
    if not root.is_dir():
        raise UserError(f"there is no {root}; set data.root to a manifest (.csv, .parquet) or to its folder")
    found = [root / name for name in _NAMES if (root / name).is_file()]
    if not found:
        raise UserError(f"{root} holds neither {' nor '.join(_NAMES)}; write one (docs/data.md), or give the file")
    if len(found) > 1:
        raise UserError(f"{root} holds both {' and '.join(_NAMES)}; set data.root to one of them")
    return found[0]


def _csv_rows(path: Path, notes: Notes) -> tuple[list[str], Iterator[_Row]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel begins its UTF-8 with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check data.root and its rights") from error
    first = next((line for line in text.splitlines() if line.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty; its first row must name the columns: {', '.join(_COLUMNS)}")
    if "," not in first and (";" in first or "\t" in first):
        raise UserError(f"{path} has no commas between its columns; save it with commas, not semicolons or tabs")
    lines: list[list[str]] = []  # the rows of a spreadsheet: empty ones count, line breaks within a cell do not
    try:
        for line in csv.reader(io.StringIO(text, newline=""), strict=True):
            lines.append([cell.strip() for cell in line])
    except csv.Error as error:
        raise UserError(f"{path}, row {len(lines) + 1}: no CSV ({error}); correct the quotes of this row") from error
    at, header = next(((row, line) for row, line in enumerate(lines, 1) if any(line)), (0, []))

    def rows() -> Iterator[_Row]:
        for number, line in enumerate(lines[at:], at + 1):
            if not any(line):
                continue
            if len(line) > len(header):
                notes.seen.update(_file(path.parent, cell) for cell in line if cell)
                notes.problems.append(
                    f"{path}, row {number}: {len(line)} cells under {len(header)} columns; quote cells that hold commas"
                )
            else:
                yield number, dict(zip(header, line, strict=False))

    return header, rows()


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[_Row]]:
    arrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is no readable Parquet file ({reason}); write it again") from error

    def rows() -> Iterator[_Row]:
        try:
            found = table.to_pylist()
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


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'dmpt[parquet]', or use a CSV manifest") from error
    return pyarrow, pyarrow.parquet


def _check_header(path: Path, header: list[str]) -> None:
    """Strict, since a misspelled column would be a modality that is silently missing."""
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} is there twice; rename or remove one")
        if name not in _COLUMNS:
            near = meant(name, _COLUMNS, _COLUMNS_ALSO)
            hint = f"did you mean {near}?" if near else f"rename it to one of {', '.join(_COLUMNS)}, or remove it"
            raise UserError(f"{path}: the column {name!r} is unknown; {hint}")
    missing = [name for name in ("pid", "camera") if name not in header]
    if not set(header) & set(MODALITIES):
        missing.append("one of rgb, nir, tir")
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)} (it has {', '.join(header)}); add it")


def _plain(path: Path) -> Path:
    """From the root and without ``..``, but through the links that the user made."""
    return Path(os.path.normpath(path.absolute()))


def _file(folder: Path, cell: str) -> Path:
    return Path(os.path.normpath(folder / cell))


def _targets(cells: Mapping[str, str]) -> tuple[str, ...]:
    """The splits that a row belongs to."""
    given = cells.get("split", "")
    if given not in _SPLITS:
        shown = f"{given!r} is unknown" if given else "is empty"
        raise _BadRowError(f", column split: {shown}; write {', '.join(_SPLITS)}")
    return _SPLITS[given]


def _record(folder: Path, cells: Mapping[str, str]) -> Record:
    pid, camera = (_number(name, cells.get(name, "")) for name in ("pid", "camera"))
    scene = _number("scene", cells["scene"]) if cells.get("scene") else None
    paths = {modality: _image(folder, modality, cells[modality]) for modality in MODALITIES if cells.get(modality)}
    if not paths:
        raise _BadRowError(f": no image in any of {', '.join(MODALITIES)}; give one, or remove the row")
    return Record(paths, pid, camera, scene)


def _number(name: str, cell: str) -> int:
    match = _NUMBER.fullmatch(cell)
    if match is None:
        shown = f"{cell!r} is no whole number of 0 or more, of at most 18 digits" if cell else "is empty"
        raise _BadRowError(f", column {name}: {shown}; write a number, or remove the row")
    return int(match[1])


def _image(folder: Path, modality: str, cell: str) -> Path:
    path = _file(folder, cell)
    if not Path(cell).is_absolute() and not _plain(path).is_relative_to(_plain(folder)):
        raise _BadRowError(
            f", column {modality}: {cell} leaves the manifest's folder; move the file, or give its absolute path"
        )
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero byte
        there = False
    if not there:
        raise _BadRowError(
            f", column {modality}: there is no file {cell}; restore it, correct the cell, or empty it if this modality "
            "is missing"
        )
    return path
