"""Own data as a table: a CSV or Parquet file with a row per sample."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically, write_text
from dmpt.data.layouts.cells import Cells, csv_rows, parquet_rows, pyarrow
from dmpt.data.layouts.folders import Notes
from dmpt.data.records import Dataset, Record, Splits
from dmpt.settings.modalities import ALSO, MODALITIES, meant

_COLUMNS = (*MODALITIES, "pid", "camera", "scene", "split")
# Values of the column ``split``, and the splits they stand for.
_SPLITS = {"train": ("train",), "query": ("query",), "gallery": ("gallery",), "test": ("query", "gallery")}
NAMES = ("manifest.csv", "manifest.parquet")
"""What a table is called that is meant by its folder."""
# What others call these columns.
_COLUMNS_ALSO = {
    **ALSO,
    **dict.fromkeys(("id", "identity", "person_id", "vehicle_id", "label"), "pid"),
    **dict.fromkeys(("cam", "camid", "camera_id"), "camera"),
}
_NUMBER = re.compile(r"(\d{1,18})(?:\.0+)?", re.ASCII)  # 12.0 is how pandas writes whole numbers beside empty cells
_Labels = TypeVar("_Labels")


@dataclass(frozen=True)
class Row(Generic[_Labels]):
    """A row whose pictures are there."""

    number: int  # as a spreadsheet counts; of Parquet the first is 1
    cells: Mapping[str, str]  # by column, as text
    splits: tuple[str, ...]  # that it belongs to
    labels: _Labels
    paths: dict[str, Path]  # of the modalities that it has


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
    path = table_of(root)
    header, rows = _rows(path, notes)
    _check_header(path, header)
    splits: dict[str, list[Record]] = {"train": [], "query": [], "gallery": [], "unsplit": []}
    for row in _usable(path, header, rows, notes, _numbers):
        for split in row.splits:
            splits[split].append(Record(row.paths, *row.labels))
    if not any(splits.values()) and not notes.problems:
        raise UserError(f"{path} has no rows; write one for each sample")
    notes.folder = Path(os.path.normpath(path.parent))
    # A table may lie in anything, a project or a home: only where its rows lead is counted.
    depth = len(notes.folder.parts)
    below = [file.parts[depth:] for file in notes.seen if file.parts[:depth] == notes.folder.parts]
    notes.entered = frozenset(parts[0] for parts in below if len(parts) > 1)
    train, query, gallery, unsplit = map(tuple, splits.values())
    return Splits(train, query, query if query == gallery else gallery, unsplit)


def read_rows(root: Path, notes: Notes) -> tuple[list[str], list[Row[None]]]:
    """A table as ``read_manifest`` reads it, but labels are any text or not there, and so are columns of one's own.

    Args:
        root: as for ``read_manifest``.
        notes: as for ``read_manifest``.

    Returns:
        The names of the columns, and the rows whose pictures are there.

    Raises:
        UserError: there is no table, it cannot be read, it has no column of a modality, or one by another name.
    """
    path = table_of(root)
    header, rows = _rows(path, notes)
    _check_header(path, header, own=True)
    return header, list(_usable(path, header, rows, notes, lambda cells: None))


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
        arrow, parquet = pyarrow()
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


def _rows(path: Path, notes: Notes) -> tuple[list[str], Iterator[Cells]]:
    """The names of a table's columns, and the cells of each row as text."""
    return parquet_rows(path, _COLUMNS) if path.suffix.lower() == ".parquet" else csv_rows(path, notes, _COLUMNS)


def _usable(
    path: Path,
    header: list[str],
    rows: Iterator[Cells],
    notes: Notes,
    labels: Callable[[Mapping[str, str]], _Labels],
) -> Iterator[Row[_Labels]]:
    """The rows that can be used; a problem for each other."""
    seen: dict[tuple[str, str, Path], int] = {}
    for number, cells in rows:
        notes.seen.update(_file(path.parent, cells[modality]) for modality in MODALITIES if cells.get(modality))
        try:
            splits = _targets(cells) if "split" in header else ("unsplit",)
            row = Row(number, cells, splits, labels(cells), _pictures(path.parent, cells))
            uses = [(split, modality, file) for modality, file in row.paths.items() for split in splits]
            for use in uses:
                if use in seen:
                    raise _BadRowError(f", column {use[1]}: {use[2]} is in row {seen[use]} already; remove one row")
        except _BadRowError as error:
            notes.problems.append(f"{path}, row {number}{error}")
            continue
        seen |= dict.fromkeys(uses, number)
        yield row


def table_of(root: Path) -> Path:
    """The table that is meant by itself or by its folder.

    Raises:
        UserError: there is none, or more than one.
    """
    if root.is_file():
        return root
    if not root.is_dir():
        raise UserError(f"there is no {root}; set data.root to a manifest (.csv, .parquet) or to its folder")
    found = [root / name for name in NAMES if (root / name).is_file()]
    if not found:
        raise UserError(f"{root} holds neither {' nor '.join(NAMES)}; write one (docs/data.md), or give the file")
    if len(found) > 1:
        raise UserError(f"{root} holds both {' and '.join(NAMES)}; set data.root to one of them")
    return found[0]


def _check_header(path: Path, header: list[str], own: bool = False) -> None:
    """Strict, since a misspelled column would be a modality that is silently missing.

    Args:
        path: of the table.
        header: names of its columns.
        own: others may stand beside those that are known, but none that is known by another name; labels need not.
    """
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} is there twice; rename or remove one")
        if name not in _COLUMNS:
            lower = name.lower()
            exact = lower if lower in _COLUMNS else _COLUMNS_ALSO.get(lower)
            near = exact if own else meant(name, _COLUMNS, _COLUMNS_ALSO)
            hint = f"did you mean {near}?" if near else f"rename it to one of {', '.join(_COLUMNS)}, or remove it"
            if near or not own:
                raise UserError(f"{path}: the column {name!r} is unknown; {hint}")
    missing = [name for name in ("pid", "camera") if name not in header and not own]
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


def _numbers(cells: Mapping[str, str]) -> tuple[int, int, int | None]:
    """Identity, camera and scene."""
    pid, camera = (_number(name, cells.get(name, "")) for name in ("pid", "camera"))
    return pid, camera, _number("scene", cells["scene"]) if cells.get("scene") else None


def _pictures(folder: Path, cells: Mapping[str, str]) -> dict[str, Path]:
    paths = {modality: _image(folder, modality, cells[modality]) for modality in MODALITIES if cells.get(modality)}
    if not paths:
        raise _BadRowError(f": no image in any of {', '.join(MODALITIES)}; give one, or remove the row")
    return paths


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
