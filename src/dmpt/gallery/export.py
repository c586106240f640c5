"""A gallery for other programs: NumPy, Parquet, FiftyOne."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dmpt.base.errors import UserError
from dmpt.base.files import expanded, write_atomically, write_text
from dmpt.gallery.rows import to_embeddings
from dmpt.gallery.schema import OWN
from dmpt.gallery.store import Gallery
from dmpt.settings.modalities import MODALITIES

Format = Literal["npz", "parquet", "fiftyone"]
_VECTORS = {*MODALITIES, "lengths", "present", "shared"}


def export(
    gallery: Gallery,
    out: str | Path,
    kind: Format | None = None,
    where: str | None = None,
    source: str | Path | None = None,
) -> int:
    """Write rows to a file or folder of another program's.

    - ``npz`` (``x.npz``): ``features`` float32 (N, 3, D), ``present`` bool (N, 3), ``shared``, and a vector of each
      other column: text ``""`` and numbers NaN where there is nothing. All rows are in memory at once.
    - ``parquet`` (``x.parquet``): the table as it is, its metadata too.
    - ``fiftyone`` (a folder): what ``fiftyone.Dataset.from_dir`` reads as a ``fiftyone.types.FiftyOneDataset``. A
      sample shows the picture that its key names; ``embedding`` is its flat vector.

    Args:
        gallery: to read, at its version.
        out: a file or folder that is not there yet, except for files, which are replaced.
        kind: None = by the name of ``out``.
        where: a condition in SQL; None = all rows.
        source: where the pictures are, for ``fiftyone``; None = where they were when they were embedded.

    Returns:
        How many rows were written.

    Raises:
        UserError: the name says no format, the condition cannot be read, or it cannot be written.
    """
    path = expanded(out)
    kinds: dict[str, Format] = {".npz": "npz", ".parquet": "parquet", "": "fiftyone"}
    chosen = kind or kinds.get(path.suffix.lower())
    if chosen is None:
        raise UserError(f"{path} says no format; name it .npz or .parquet, or give --format")
    if path.is_dir() and (chosen != "fiftyone" or any(path.iterdir())):
        raise UserError(f"{path} is there already; give another name")
    if chosen == "npz":
        return _npz(gallery, path, where)
    if chosen == "parquet":
        return _parquet(gallery, path, where)
    return _fiftyone(gallery, path, where, source or gallery.source)


def _npz(gallery: Gallery, path: Path, where: str | None) -> int:
    table = gallery.read(where=where)
    items = to_embeddings(table, str(gallery.path))
    arrays: dict[str, Any] = {"features": items.features, "present": items.present}
    if items.shared is not None:
        arrays["shared"] = items.shared
    if items.standardisation is not None:
        arrays["standardisation"] = items.standardisation
    arrays["metadata"] = np.array(json.dumps(gallery.model.metadata(gallery.source)))
    arrays |= {name: _plain(table.column(name)) for name in table.column_names if name not in _VECTORS}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)

    write_atomically(path, write)
    return len(table)


def _plain(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """What ``numpy.load`` reads without pickle."""
    if pa.types.is_timestamp(column.type):
        return np.asarray(column.cast(pa.timestamp("us")).to_numpy(), "datetime64[us]")
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        found = column.to_numpy()
        return np.array([np.nan if v is None else v for v in found], np.float64) if found.dtype == object else found
    return np.array(["" if value is None else str(value) for value in column.to_pylist()], np.str_)


def _parquet(gallery: Gallery, path: Path, where: str | None) -> int:
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(temporary, gallery.schema) as writer:
            for batch in gallery.scan(where=where):
                writer.write_batch(batch)
                count += batch.num_rows

    write_atomically(path, write)
    return count


def _fiftyone(gallery: Gallery, path: Path, where: str | None, source: str | Path | None) -> int:
    """FiftyOne's plain form, without a version: ``filepath``, ``tags`` and fields, of which labels say their class."""
    if source is None:
        raise UserError(f"{gallery.path} does not say where its pictures are; give --source")
    root = expanded(source).resolve()
    own = [name for name in gallery.schema.names if name not in OWN]
    count = 0

    def samples() -> Iterator[str]:
        nonlocal count
        for batch in gallery.scan(where=where):
            flat = to_embeddings(batch, str(gallery.path)).flat
            columns = ["key", "pid", "camera", *own]
            rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            for row, vector in zip(rows, flat, strict=True):
                yield json.dumps(_sample(root, dict(zip(columns, row, strict=True)), vector.tolist()))
                count += 1

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            file.write('{"samples": [')
            for number, sample in enumerate(samples()):
                file.write((",\n" if number else "\n") + sample)
            file.write("\n]}\n")

    there = path.exists()
    try:
        write_atomically(path / "samples.json", write)
        write_text(path / "metadata.json", json.dumps({"info": gallery.model.metadata(gallery.source)}) + "\n")
    except BaseException:
        if not there:
            with suppress(OSError):
                shutil.rmtree(path)
        raise
    return count


def _sample(root: Path, row: dict[str, Any], vector: list[float]) -> dict[str, Any]:
    """As FiftyOne reads it."""
    found: dict[str, Any] = {"filepath": str(root / row["key"]), "tags": [], "metadata": None, "embedding": vector}
    for name, value in row.items():
        if value is None:
            continue
        if name in ("pid", "camera"):
            found[name] = {"_cls": "Classification", "label": value}
        else:
            plain = value if isinstance(value, bool | int | float) else str(value)
            found[f"{name}_" if name in found else name] = plain
    return found
