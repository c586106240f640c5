"""The vectors of a gallery in memory maps, which a search reads as fast as memory allows.

A gallery's fragments never change: what is added or written anew is in new ones. So their vectors are copied once, into
a *segment*: a folder that is written under another name and then renamed. A new version copies what it has that no
segment holds, together with the segments that are no larger, so that there are few. What was deleted since is passed
over. Segments lie inside the gallery, or in the user's cache where that cannot be written to; they can be made again.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.base.files import cache_folder
from dmpt.base.terminal import track
from dmpt.gallery.rows import to_embeddings
from dmpt.gallery.schema import OWN
from dmpt.gallery.store import Gallery
from dmpt.retrieval.embeddings import squared_lengths
from dmpt.retrieval.search import Rows, Vectors

_FOLDER = "_vectors"
_FORMAT = 1
_BATCH = 4096
_LEFT_BEHIND = 86_400
"""Seconds after which nobody still fills a folder."""
_Addresses = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Mapped:
    """One version's vectors.

    Attributes:
        vectors: as ``retrieval.search`` takes them. The position of an item is its row in the table's order; rows that
            this version has no more have the position N.
        addresses: uint64 ``(N,)``, where the rows lie (``Gallery.addresses``).
        counted: bool ``(N + 1,)``: all positions but N.
    """

    vectors: Vectors
    addresses: _Addresses
    counted: NDArray[np.bool_]

    @cached_property
    def codes(self) -> NDArray[np.int64]:
        """Which modalities each position's item has, ``(N + 1,)``, bit m for modality m."""
        codes = np.zeros(len(self.counted), np.int64)
        for part in self.vectors.parts:
            codes[part.positions] = part.code
        codes[-1] = 0
        return codes

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Where in ``vectors`` each position's item is, ``(N + 1,)``; the last says nothing."""
        positions = np.concatenate([part.positions for part in self.vectors.parts])
        rows = np.zeros(len(self.counted), np.int64)
        rows[positions] = np.arange(len(positions))
        return rows

    def positions(self, addresses: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of rows that may be gone, N for those that are."""
        return _positions(self.addresses, addresses)

    def mask(self, addresses: _Addresses) -> NDArray[np.bool_]:
        """Which positions these rows have, ``(N + 1,)``."""
        found = np.zeros_like(self.counted)
        found[np.searchsorted(self.addresses, addresses)] = True
        found[-1] = False
        return found


def mapped(gallery: Gallery) -> Mapped:
    """The vectors of a gallery's version; those that no segment holds yet are copied.

    Raises:
        UserError: a row was not written by dmpt, or there is no room for the copy.
    """
    addresses = gallery.addresses()
    fragments = fragments_of(gallery)
    filled = set(np.unique(addresses >> np.uint64(32)).tolist())
    wanted = {name: number for name, number in fragments.items() if number in filled}
    segments = _segments(gallery, wanted)
    if lacking := set(wanted) - {name for segment in segments for name in segment.fragments}:
        segments = _extended(gallery, addresses, wanted, segments, lacking)
    positions = [segment.positions(addresses, wanted) for segment in segments]
    parts = [part for segment, own in zip(segments, positions, strict=True) for part in segment.parts(own)]
    counted = np.arange(len(addresses) + 1) < len(addresses)
    return Mapped(Vectors(parts, gallery.model.standardisation), addresses, counted)


def forget(gallery: Gallery) -> None:
    """Remove the copies of a gallery's vectors, as where a person must be gone for good; a search makes them anew."""
    for name in (_FOLDER, "_index"):
        for folder in places_of(gallery, name):
            shutil.rmtree(folder, ignore_errors=True)


def fragments_of(gallery: Gallery) -> dict[str, int]:
    """The number of each fragment of a version, by what names the same rows in all versions."""
    return {_name(each): int(each.fragment_id) for each in _fragments(gallery)}


def places_of(gallery: Gallery, name: str = _FOLDER) -> tuple[Path, Path]:
    """Where copies are kept: beside the table's own files, and in the user's cache."""
    known = hashlib.sha256(str(gallery.path.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    return gallery.path / name, cache_folder() / name.strip("_") / known


class _Segment:
    """Rows of some fragments, copied.

    Args:
        folder: where they lie.

    Raises:
        OSError: it is not there any more.
        ValueError: it is damaged.
        KeyError: of another version of dmpt.
    """

    def __init__(self, folder: Path):
        about = json.loads((folder / "about.json").read_text("utf-8"))
        if about["format"] != _FORMAT:
            raise ValueError
        self.folder, self.fragments, self._counts = folder, list[str](about["fragments"]), about["counts"]
        self._flat, self._space = (np.load(folder / name, mmap_mode="r") for name in ("flat.npy", "space.npy"))
        self._squares, self._fragment, self._offset = (
            np.load(folder / f"{name}.npy") for name in ("squares", "fragment", "offset")
        )

    def __len__(self) -> int:
        return len(self._flat)

    def positions(self, addresses: _Addresses, wanted: dict[str, int]) -> NDArray[np.int64]:
        """Of its rows among the addresses; as many as there are for those that are none of them."""
        numbers = np.array([wanted.get(name, -1) for name in self.fragments], np.int64)[self._fragment]
        return _positions(addresses, np.where(numbers >= 0, (numbers << 32) + self._offset, -1))

    def parts(self, positions: NDArray[np.int64]) -> Iterator[Rows]:
        start = 0
        for code, count in self._counts:
            rows = slice(start, start := start + count)
            yield Rows(self._flat[rows], self._space[rows], self._squares[rows], positions[rows], code)


def _positions(addresses: _Addresses, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where they stand among ascending addresses; as many as there are where they do not."""
    own = addresses.astype(np.int64)
    found = np.searchsorted(own, wanted)
    here = np.append(own, -2)[found] == wanted
    return np.where(here, found, len(own))


def _fragments(gallery: Gallery) -> list[Any]:
    return list(gallery.call("reading", gallery.dataset.get_fragments))


def _name(fragment: Any) -> str:
    """What holds for the same rows alone, whatever version they are read by."""
    return "+".join(file.path for file in fragment.data_files())


def _segments(gallery: Gallery, wanted: dict[str, int]) -> list[_Segment]:
    """Those that hold something of the version, largest first; a fragment that two hold counts in the first."""
    found: list[_Segment] = []
    for folder in places_of(gallery):
        for place in folder.glob("[!.]*") if folder.is_dir() else ():
            with suppress(OSError, ValueError, KeyError):  # damaged, or just replaced: copied again
                found.append(_Segment(place))
    chosen, seen = [], set[str]()
    for segment in sorted(found, key=len, reverse=True):
        own = set(segment.fragments)
        if own & wanted.keys() and not own & seen:
            chosen.append(segment)
            seen |= own
    return chosen


def _extended(
    gallery: Gallery, addresses: _Addresses, wanted: dict[str, int], segments: list[_Segment], lacking: set[str]
) -> list[_Segment]:
    """Segments that hold all of the version: a new one, which takes in those that are no larger than it."""
    sizes = dict(zip(*np.unique((addresses >> np.uint64(32)).astype(np.int64), return_counts=True), strict=True))
    alive = [sum(sizes.get(wanted.get(name, -1), 0) for name in segment.fragments) for segment in segments]
    count, kept = sum(sizes[wanted[name]] for name in lacking), []
    for segment, live in sorted(zip(segments, alive, strict=True), key=lambda pair: pair[1]):
        if live <= count or live < len(segment) / 2:
            lacking |= wanted.keys() & set(segment.fragments)
            count += live
        else:
            kept.append(segment)
    inside, elsewhere = places_of(gallery)
    fragments = {wanted[name]: name for name in lacking}
    if os.access(gallery.path, os.W_OK):
        with suppress(_NotHere), gallery.writing("copying vectors"):  # else a purge could miss the copy
            return [*kept, _written(gallery, fragments, inside, kept)]
    try:
        return [*kept, _written(gallery, fragments, elsewhere, kept)]
    except _NotHere as error:
        raise UserError(f"{elsewhere} cannot be written ({error}); set DMPT_CACHE to a folder that can") from error


class _NotHere(Exception):
    """A folder cannot be written to."""


def _written(gallery: Gallery, fragments: dict[int, str], folder: Path, kept: Sequence[_Segment]) -> _Segment:
    """A new segment, in the place of all but those that are kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=".", dir=folder))
    except OSError as error:
        raise _NotHere(error.strerror) from error
    try:
        _copy(gallery, fragments, new)
        new.chmod(folder.stat().st_mode & 0o777)  # who may read the folder may read what is in it
        place = new.rename(folder / new.name[1:])
    except OSError as error:
        raise UserError(
            f"{gallery.path}: no room for a copy of its vectors in {folder} ({error.strerror}); free space, or set "
            "DMPT_CACHE"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    needed = {place, *(segment.folder for segment in kept)}
    for old in folder.iterdir():  # what this version needs no more, or a process left that was killed
        filling = old.name.startswith(".") and time.time() - old.stat().st_mtime < _LEFT_BEHIND
        if old not in needed and not filling:
            shutil.rmtree(old, ignore_errors=True)  # who reads it still has it
    try:
        return _Segment(place)
    except OSError:  # another process did the same, and cleared this one away
        return _written(gallery, fragments, folder, kept)


def _copy(gallery: Gallery, fragments: dict[int, str], folder: Path) -> None:
    """Fill a segment's folder, some rows at a time: those of one set of modalities together."""
    names = list(fragments.values())
    number_of = {number: index for index, number in enumerate(fragments)}
    chosen = [each for each in _fragments(gallery) if int(each.fragment_id) in fragments]
    codes, addresses = _scanned(gallery, chosen)
    count, model = len(codes), gallery.model
    order, place = np.argsort(codes, kind="stable"), np.empty(count, np.int64)
    place[order] = np.arange(count)
    widths = {"flat": 3 * model.width, "space": model.shared or model.width, "squares": 3}
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, width))
        for name, width in widths.items()
    }
    batches = _batches(gallery, chosen, [name for name in OWN if name in gallery.schema.names])
    start = 0
    for batch in track(batches, "vectors for search", -(-count // _BATCH)):
        items = to_embeddings(batch, str(gallery.path))
        rows = place[start : start + len(items)]
        for name, values in (("flat", items.flat), ("space", items.common_space), ("squares", squared_lengths(items))):
            files[name][rows] = values
        start += len(items)
    for file in files.values():
        file.flush()
    of = (addresses[order] >> np.uint64(32)).astype(np.int64)
    numbers, inverse = np.unique(of, return_inverse=True)
    np.save(folder / "fragment.npy", np.array([number_of[int(number)] for number in numbers], np.int64)[inverse])
    np.save(folder / "offset.npy", (addresses[order] & np.uint64(0xFFFFFFFF)).astype(np.int64))
    counts = [[int(code), int(number)] for code, number in zip(*np.unique(codes, return_counts=True), strict=True)]
    about = {"format": _FORMAT, "fragments": names, "counts": counts}
    (folder / "about.json").write_text(json.dumps(about), "utf-8")


def _scanned(gallery: Gallery, fragments: Sequence[Any]) -> tuple[NDArray[np.uint8], _Addresses]:
    """Which modalities their rows have, and where they lie, in the order of ``_batches``."""
    tables = list(_batches(gallery, fragments, ["present"]))
    columns = [(table.column("present").to_numpy(), table.column("_rowaddr").to_numpy()) for table in tables]
    return np.concatenate([codes for codes, _ in columns]), np.concatenate([rows for _, rows in columns])


def _batches(gallery: Gallery, fragments: Sequence[Any], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of some fragments, some at a time, in the table's order."""
    scanner = gallery.dataset.scanner(
        columns=columns, fragments=list(fragments), with_row_address=True, batch_size=_BATCH, scan_in_order=True
    )
    batches = gallery.call("reading", lambda: iter(scanner.to_batches()))
    while (batch := gallery.call("reading", lambda: next(batches, None))) is not None:
        yield batch
