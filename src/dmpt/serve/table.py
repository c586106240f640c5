"""The gallery behind the service: its newest version, what is written to it, and taken back."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from dmpt.base.errors import UserError
from dmpt.gallery.changes import Change, Newer, add, label, remove, rollback
from dmpt.gallery.deadline import Full
from dmpt.gallery.rows import to_embeddings
from dmpt.gallery.schema import Model
from dmpt.gallery.search import Search
from dmpt.gallery.store import Gallery
from dmpt.gallery.times import TIME, moment
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.serve.refused import Refused

_T = TypeVar("_T")
_LOOK = 1.0
"""Seconds for which nobody looks whether others wrote."""


_Stamp = tuple[int, int]
"""A version, and when it was written, in nanoseconds."""


@dataclass(frozen=True)
class _Own:
    """A write of ours."""

    before: int  # the version that it was made on
    what: str  # was done


class Table:
    """A gallery of one model; threads may share it.

    Args:
        path: of the gallery.
        model: whose vectors it must hold.

    Attributes:
        name: what clients call it.
        model: as given.

    Raises:
        UserError: there is none, or it is of another model.
    """

    def __init__(self, path: Path, model: Model):
        self.name, self.model, self._path, self._places = path.name, model, path, _places(path)
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._gallery: Gallery | None = None
        self._search: Search | None = None
        self._looked = float("-inf")
        self._own: list[_Own] = []
        self._at: _Stamp | None = None  # what the last of them left
        self._read: _Stamp | None = None
        self._newest: _Stamp = (0, 0)
        self._writes = 0  # that became known, by which a look knows that it is out of date
        self._look()

    def current(self, anew: bool = False) -> tuple[Gallery, Search | None]:
        """The newest version, which does not move on, and search in it; None where it is empty.

        Args:
            anew: look even if somebody just did.

        Raises:
            Refused: it cannot be read, as where it was deleted.
        """
        with self._lock:
            if anew or self._gallery is None or time.monotonic() - self._looked > _LOOK:
                try:
                    self._look()
                except UserError as error:
                    self._gallery = self._search = None
                    raise self.refused(error) from None
            assert self._gallery is not None  # it was looked at
            return self._gallery, self._search

    def _look(self) -> None:
        writes, found = self._writes, Gallery(self._path)
        stamp = self._stamp(found.version)
        if self._gallery is None or stamp != self._read:
            found.model.refuse(self.model, self.name)
            self._search = Search(found) if len(found) else None
            self._gallery, self._read = found, stamp
        if writes == self._writes:  # else whoever looks next looks again
            self._newest, self._looked = stamp, time.monotonic()

    def _stamp(self, version: int) -> "_Stamp":
        """A version, and when it was written: a gallery that is made anew has the same numbers."""
        for name in (
            f"{2**64 - 1 - version:020}.manifest",
            f"{version}.manifest",
        ):  # as Lance names them today, and did
            with suppress(OSError):
                return version, (self._path / "_versions" / name).stat().st_mtime_ns
        return version, 0

    def refused(self, error: UserError) -> Refused:
        """What a client is told of an error of the store's, without paths of this machine."""
        said = str(error)
        for place in self._places:
            said = said.replace(place, self.name)
        return Refused(507 if isinstance(error, Full) else 503, said)

    def asked(self, call: Callable[[], _T]) -> _T:
        """What a call into the gallery returns.

        Raises:
            Refused: the store says that something is wrong.
        """
        try:
            return call()
        except UserError as error:
            raise self.refused(error) from None

    def rows(self, gallery: Gallery, keys: Sequence[str]) -> list[dict[str, Any]]:
        """What the table says of rows, but for their vectors; in the order of the keys.

        Raises:
            Refused: it has no such row.
        """
        names = [name for name in gallery.schema.names if name not in _VECTORS]
        if not keys:
            return []
        found = self.asked(lambda: gallery.read(names, among(keys))).to_pylist()
        return self._in_order({row["key"]: row for row in found}, keys)

    def vectors(self, gallery: Gallery, keys: Sequence[str]) -> Embeddings:
        """Vectors of rows, in the order of the keys.

        Raises:
            Refused: it has no such row.
        """

        def read() -> dict[str, Embeddings]:
            table = gallery.read(where=among(keys))
            items = to_embeddings(table, self.name)
            return {key: items[row : row + 1] for row, key in enumerate(table.column("key").to_pylist())}

        return join(*self._in_order(self.asked(read), keys))

    def add(
        self, vectors: Embeddings, keys: Sequence[str], labels: Mapping[str, Sequence[str | None]], content: str | None
    ) -> Change:
        """Write rows.

        Args:
            vectors: of N rows.
            keys: N names.
            labels: pid, camera and time, N of each.
            content: sha256 of the pictures of a single row.

        Raises:
            Refused: they are not written.
        """
        if len(set(keys)) < len(keys):
            raise Refused(422, "a key is given twice; give each row one of its own")
        times = labels["time"]
        own: dict[str, Any] = {}
        if any(each is not None for each in times):
            self.time_column(self.current()[0])
            own[TIME] = [None if each is None else moment_of(each, TIME) for each in times]
        contents = [content] * len(keys)

        def write(gallery: Gallery) -> Change:
            return add(
                gallery,
                self.model,
                vectors,
                keys,
                pid=labels["pid"],
                camera=labels["camera"],
                content=contents,
                extra=own,
            )

        return self._write("added", write, keys)

    def label(self, labels: Mapping[str, str | None]) -> Change:
        """Say who is on rows.

        Raises:
            Refused: there is no such row, or they are not written.
        """
        self._known(list(labels))
        return self._write("labelled", lambda gallery: label(gallery, labels), labels)

    def remove(self, keys: Sequence[str]) -> Change:
        """Take rows out.

        Raises:
            Refused: there is no such row, or they are not taken out.
        """
        self._known(keys)
        return self._write("removed", lambda gallery: remove(gallery, keys), keys)

    def undo(self, version: int) -> Change:
        """Take back the last write of this service.

        Args:
            version: that it left.

        Raises:
            Refused: it is another one, or somebody else wrote since.
        """
        with self._writing:
            gallery = self.asked(lambda: Gallery(self._path))
            if not self._own or self._at is None or version != self._at[0]:
                raise Refused(409, f"version {version} is no write of this service that can be taken back; look again")
            if self._stamp(gallery.version) != self._at:
                raise Refused(409, f"somebody else wrote after version {version}; nothing was taken back")
            try:
                change = rollback(gallery, self._own[-1].before, newest=version)
            except Newer:
                raise Refused(409, f"somebody else wrote after version {version}; nothing was taken back") from None
            except UserError as error:
                raise self.refused(error) from None
            self._own.pop()
            self._wrote(change)
        return change

    @property
    def undoable(self) -> dict[str, Any] | None:
        """The last write of this service that nobody wrote after."""
        own = list(self._own)
        return {"version": self._newest[0], "what": own[-1].what} if own and self._at == self._newest else None

    def time_column(self, gallery: Gallery) -> None:
        """Refuse where it has no moments.

        Raises:
            Refused: it has none.
        """
        if TIME not in gallery.schema.names or not pa.types.is_timestamp(gallery.schema.field(TIME).type):
            raise Refused(422, f"{self.name} has no column {TIME} of moments")

    def _known(self, keys: Sequence[str]) -> None:
        gallery = self.current(anew=True)[0]
        there = self.asked(lambda: gallery.read(["key"])).column("key")
        wanted = pa.array(keys, pa.string())
        if lacking := wanted.filter(pc.invert(pc.is_in(wanted, there))).to_pylist():
            raise self._lacking(lacking[0])

    def _lacking(self, key: str) -> Refused:
        return Refused(404, f"{self.name} has no row {key[:200]}")

    def _in_order(self, found: Mapping[str, _T], keys: Sequence[str]) -> list[_T]:
        if lacking := next((key for key in keys if key not in found), None):
            raise self._lacking(lacking)
        return [found[key] for key in keys]

    def _write(self, what: str, write: Callable[[Gallery], Change], rows: Sequence[str] | Mapping[str, Any]) -> Change:
        """One version, which is remembered so that it can be taken back."""
        with self._writing:
            gallery = self.asked(lambda: Gallery(self._path))
            before = self._stamp(gallery.version)
            change = self.asked(lambda: write(gallery))
            if change.version == before[0] + 1:  # and so nobody else wrote at the same time
                if before != self._at:
                    self._own.clear()
                self._own.append(_Own(before[0], f"{what} {len(rows)}"))
                self._wrote(change)
            elif change.version != before[0]:
                self._own.clear()
                self._anew()
        return change

    def _wrote(self, change: Change) -> None:
        self._at = self._newest = self._stamp(change.version)
        self._anew()

    def _anew(self) -> None:
        """Whoever looks next sees what was written."""
        self._writes += 1
        self._looked = float("-inf")


def _places(path: Path) -> list[str]:
    """What an error may call a folder, longest first: Lance leaves the slash out, and writes signs as URLs do."""
    absolute = [str(own) for own in (path, path.absolute(), path.resolve())]
    found = {*absolute, *(own.lstrip("/") for own in absolute)}
    return sorted({*found, *map(quote, found)}, key=len, reverse=True)


_VECTORS = ("rgb", "nir", "tir", "lengths", "shared", "adapter", "content")
"""Columns that are not told."""


def moment_of(given: str, name: str) -> datetime:
    """A moment, in UTC.

    Raises:
        Refused: it is none.
    """
    try:
        return moment(given, name)
    except UserError as error:
        raise Refused(422, str(error)) from None


def among(keys: Sequence[str]) -> str:
    """A condition in SQL: rows of these keys."""
    return "key IN ({})".format(", ".join("'" + key.replace("'", "''") + "'" for key in keys))
