"""What looks at pictures told, kept in the user's cache: a file that has not changed is not decoded again.

The files of a data set have one file there. It is replaced as a whole, so a kill leaves the old or the new one, and of
two processes that write at once the later one wins: the other one's pictures are looked at again some day. What is
damaged, or was written by other code, counts for nothing. Where there is no cache to write in, nothing is remembered.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import PIL

from dmpt.base.errors import UserError
from dmpt.base.files import cache_folder, write_text
from dmpt.data import images, metadata
from dmpt.data.check import pictures
from dmpt.data.check.pictures import Deep, Picture
from dmpt.data.records import Dataset

# A file that changed less than so many nanoseconds ago may change again without looking younger.
_YOUNG = 2 * 10**9
# All that is remembered of all data sets takes at most so many bytes and files; what was not used for longest goes.
_MAX_BYTES, _MAX_FILES = 2**28, 256
_Columns = tuple[tuple[str, tuple[int, int]], ...]


class File(NamedTuple):
    """What is decoded at once."""

    path: Path
    columns: _Columns = ()  # as a record's, where it holds several modalities


Stamp = tuple[int, int, int]
"""By which a file is known to be the same: its size, and when its content and its entry changed, in nanoseconds."""
_Pictures = Mapping[str, Picture]
_Key = tuple[str, _Columns]  # a File by its whole path, as text: quicker by far than paths
_Known = dict[_Key, tuple[Stamp, _Pictures]]


def stamp_of(path: Path) -> Stamp | None:
    """None = there is no such file, or it is so young that it may change without a trace."""
    try:
        found = path.stat()
    except OSError:
        return None
    old = time.time_ns() - found.st_mtime_ns > _YOUNG
    return (found.st_size, found.st_mtime_ns, found.st_ctime_ns) if old else None


class Remembered:
    """The pictures of a data set as they were seen before."""

    def __init__(self, dataset: Dataset) -> None:
        self._place = _place(dataset)
        self._known = _read(self._place)
        self._new: _Known = {}

    def get(self, file: File) -> _Pictures | None:
        """What was seen in a file that is the same today."""
        known = self._known.get(_key(file))
        return known[1] if known and known[0] == stamp_of(file.path) else None

    def put(self, file: File, stamp: Stamp, seen: _Pictures) -> None:
        """Remember what was seen in a file that had this stamp before it was read."""
        self._new[_key(file)] = stamp, seen

    def save(self) -> None:
        """Write what is new beside what others have written meanwhile; files that are gone are forgotten.

        Where nothing can be written nothing is.
        """
        if self._place is None or not self._new:
            return
        whole = {key: known for key, known in _read(self._place).items() if Path(key[0]).exists()} | self._new
        text = json.dumps([[*key, *known] for key, known in whole.items()], separators=(",", ":"))
        with suppress(UserError, OSError):
            write_text(self._place, f"{_hash(text)}\n{text}")
            _sweep(self._place.parent)
        self._new = {}


def _key(file: File) -> _Key:
    return str(file.path.absolute()), file.columns


def _place(dataset: Dataset) -> Path | None:
    """Where the pictures of a data set are remembered; None = nowhere.

    The name depends on the folder that all its files lie in, and on whatever may see something else in the same file.
    """
    records = chain(*dataset.splits.values())
    folders = {str(path.parent.absolute()) for record in records for path in record.paths.values()}
    try:
        whole = os.path.commonpath(folders)
        return cache_folder() / "looks" / f"{_hash(whole + _code())[:32]}.json"
    except (UserError, OSError, ValueError):  # no home; no source; no files, or on two drives
        return None


@cache
def _code() -> str:
    files = (str(module.__file__) for module in (images, metadata, pictures, sys.modules[__name__]))
    return PIL.__version__ + "".join(Path(file).read_text(encoding="utf-8") for file in files)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _read(place: Path | None) -> _Known:
    """What is remembered there; nothing where it is damaged."""
    if place is None:
        return {}
    try:
        digest, _, text = place.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return {}
    if digest != _hash(text):
        return {}
    with suppress(OSError):
        os.utime(place)  # it is in use
    return dict(map(_of_row, json.loads(text)))


def _of_row(row: list[Any]) -> tuple[_Key, tuple[Stamp, _Pictures]]:
    """What JSON has made lists of."""
    path, columns, (size, changed, entry), pictures = row
    seen = {modality: _picture(*told) for modality, told in pictures.items()}
    return (path, tuple((name, (left, right)) for name, (left, right) in columns)), ((size, changed, entry), seen)


def _picture(*told: Any) -> Picture:
    *plain, deep = told
    return Picture._make([*plain, deep and Deep(tuple(deep[0]), deep[1])])


def _sweep(folder: Path) -> None:
    """Keep within the bounds."""
    found = sorted(((path.stat(), path) for path in folder.iterdir()), key=lambda one: -one[0].st_mtime)
    size = 0
    for number, (stat, path) in enumerate(found):
        size += stat.st_size
        if number and (number >= _MAX_FILES or size > _MAX_BYTES):
            path.unlink(missing_ok=True)
