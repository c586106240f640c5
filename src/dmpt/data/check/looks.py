"""Every picture looked at once, by `check`, `train` and `evaluate`, and not again while it is the same."""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.base.terminal import track
from dmpt.data.check.pictures import Picture, measure, measure_deep
from dmpt.data.check.remembered import File, Remembered, Stamp, stamp_of
from dmpt.data.images import cut, decode, eight_bits, is_deep
from dmpt.data.records import Dataset, Record

# Files that a thread looks at before it says so, and seconds after which what was seen is saved.
_CHUNK, _SAVE_EVERY = 8, 60.0
# A file's pictures by their modalities, under an empty name where all of it is one; or what is wrong with it, a line.
_Seen = Mapping[str, Picture] | str
_Found = tuple[File, Stamp | None, _Seen]


@dataclass(frozen=True)
class Looks:
    """What was seen in each file."""

    seen: Mapping[File, _Seen]

    def pictures(self, record: Record) -> dict[str, Picture]:
        """Of the modalities that could be read."""
        found = {}
        for modality, file in zip(record.paths, files_of(record), strict=True):
            seen = self.seen[file]
            if not isinstance(seen, str):
                found[modality] = seen[modality if file.columns else ""]
        return found

    def broken(self, record: Record) -> list[str]:
        """What is wrong with each of its files that cannot be read: once with a file that modalities share."""
        files = files_of(record)
        seen = [self.seen[file] for file in (dict.fromkeys(files) if record.columns else files)]
        return [problem for problem in seen if isinstance(problem, str)]

    def unreadable(self) -> Iterator[tuple[Path, str]]:
        """Every file that cannot be read, and what is wrong with it."""
        for file, seen in self.seen.items():
            if isinstance(seen, str):
                yield file.path, seen


def look_at(dataset: Dataset, records: Iterable[Record], workers: int | None = None) -> Looks:
    """Look at every file once, or not at all where it was looked at before and has not changed.

    At no time more than a few pictures per worker are in memory. Only what could be read is remembered.

    Args:
        dataset: all of it; what was seen in it before is remembered together.
        records: what to look at.
        workers: threads; None takes one for each core.
    """
    files = list(dict.fromkeys(chain.from_iterable(map(files_of, records))))
    remembered = Remembered(dataset)
    seen: dict[File, _Seen] = {f: known for f in files if (known := remembered.get(f))}
    new = [file for file in files if file not in seen]
    saved = time.monotonic()
    try:
        with closing(_look(new, workers or os.cpu_count() or 1)) as looking:
            for file, stamp, found in track(looking, "checking images", len(new)):
                seen[file] = found
                if not isinstance(found, str) and stamp is not None:
                    remembered.put(file, stamp, found)
                if time.monotonic() - saved > _SAVE_EVERY:
                    remembered.save()
                    saved = time.monotonic()
    finally:
        remembered.save()
    return Looks({file: seen[file] for file in files})


def files_of(record: Record) -> tuple[File, ...]:
    """The file of each modality; the same one where they share it."""
    columns = tuple(record.columns.items())
    return tuple(File(path, columns) for path in record.paths.values())


def _look(files: Sequence[File], workers: int) -> Generator[_Found, None, None]:
    """In threads, since decoding lets others work; and a process of its own would run a user's whole script again."""
    chunks = [files[i : i + _CHUNK] for i in range(0, len(files), _CHUNK)]
    pool = ThreadPoolExecutor(workers)
    try:
        yield from chain.from_iterable(pool.map(lambda chunk: [_look_at(file) for file in chunk], chunks))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C what has not begun is left


def _look_at(file: File) -> _Found:
    stamp = stamp_of(file.path)  # before it is read: a file that changes meanwhile is not the one that was seen
    try:
        deep, values = decode(file.path, _values)
        parts = cut(file.path, values, dict(file.columns)) if file.columns else {"": values}
    except UserError as error:
        return file, None, str(error)
    return file, stamp, {name: (measure_deep if deep else measure)(part) for name, part in parts.items()}


def _values(image: Image.Image) -> tuple[bool, npt.NDArray[Any]]:
    """Whether it has more than 8 bits, and then its own values ``(H, W)``; else ``(3, H, W)``."""
    return (True, np.asarray(image, dtype=np.float64)) if is_deep(image) else (False, eight_bits(image))
