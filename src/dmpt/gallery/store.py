"""A gallery on disk: opened, made, read, and written to so that every write is one version."""

import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias, TypeVar

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmpt.base.errors import UserError, one_line
from dmpt.base.files import expanded
from dmpt.base.lock import Lock, Taken
from dmpt.gallery.deadline import Conflict, within
from dmpt.gallery.rows import to_embeddings
from dmpt.gallery.schema import Model, Spoiled, schema_of
from dmpt.retrieval.embeddings import Embeddings

_T = TypeVar("_T")

DEADLINE = 120.0
"""Seconds for one call into the store."""
PATIENCE = 30
"""Deadlines for what may touch every row's vectors, or every version."""
_ROWS = 10_000
"""Rows for which a write may take one more deadline."""
_TRIES = 50
_BATCH = 4096
"""Rows that a scan gives at a time."""
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
Where: TypeAlias = str | Sequence[str] | None
"""A condition in SQL, or several that all hold."""


class Gallery:
    """A table of embedded samples, as one of its versions has it; threads may share it.

    Whoever opens it sees one version until ``refresh``, whatever others write. Functions that change it and search in
    it (``gallery.changes``, ...) take a Gallery.

    Args:
        path: the folder, ``g.lance``.
        version: None = the newest.
        deadline: seconds that one call into the store may take.
        spoiled: also open versions that another program changed; such a one has no ``model``.

    Attributes:
        path: as it was given.
        model: whose vectors these are.

    Raises:
        UserError: there is none, it is damaged, of another format or another program's.
    """

    def __init__(
        self, path: str | Path, version: int | None = None, deadline: float = DEADLINE, *, spoiled: bool = False
    ):
        self.path, self.deadline, self._spoiled = expanded(path), deadline, spoiled
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist; dmpt embed or dmpt gallery add makes a gallery")
        if not (self.path / "_versions").is_dir():
            raise UserError(f"{self.path} is no gallery; give the folder that dmpt embed or dmpt gallery add wrote")
        try:
            self.take(self.call("opening", lambda: lance.dataset(str(self.path), version=version)))
        except UserError as error:
            if version is None:
                raise
            raise UserError(f"{error}; dmpt gallery history lists the versions that there are") from error

    def take(self, dataset: lance.LanceDataset) -> None:
        """Go on with another version of it."""
        try:
            self.model = Model.read(dataset.schema, str(self.path))
        except Spoiled:
            if not self._spoiled:
                raise
        self.dataset = dataset

    def call(self, what: str, call: Callable[[], _T], patience: float = 1) -> _T:
        """What a call into the store returns, ``patience`` deadlines at most.

        Raises:
            UserError: it took longer, or the store says that something is wrong.
            Conflict: somebody else wrote meanwhile.
        """
        return within(self.deadline * patience, self.path, what, call)

    @property
    def version(self) -> int:
        """Counted from 1."""
        return int(self.dataset.version)

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        return self.dataset.schema

    @property
    def source(self) -> str | None:
        """The folder that keys are relative to; what is said relatively lies beside the gallery, or else here."""
        said = (self.schema.metadata or {}).get(b"dmpt.source")
        if said is None:
            return None
        beside = self.path.absolute().parent / expanded(said.decode())
        return str(beside) if beside.exists() else said.decode()

    def __len__(self) -> int:
        return int(self.call("counting", self.dataset.count_rows))

    def refresh(self) -> "Gallery":
        """The same gallery at its newest version."""
        dataset = self.call("opening", lambda: lance.dataset(str(self.path)))
        if dataset.version != self.version:
            self.take(dataset)
        return self

    def read(self, columns: Sequence[str] | None = None, where: Where = None) -> pa.Table:
        """Rows, all at once.

        Args:
            columns: None = all.
            where: a condition in SQL, which Lance reads: ``camera = '3' AND time > timestamp '2026-03-01 00:00:00'``;
                of several all must hold.

        Raises:
            UserError: there is no such column, the condition cannot be read, or the table is damaged.
        """
        self._known(columns)
        wanted = None if columns is None else list(columns)
        patience = PATIENCE if columns is None else 1
        return self._asked(where, lambda condition: self.dataset.to_table(columns=wanted, filter=condition), patience)

    def scan(
        self, columns: Sequence[str] | None = None, where: Where = None, batch_size: int = _BATCH
    ) -> Iterator[pa.RecordBatch]:
        """Rows, some at a time, in the table's order; else as ``read``."""
        self._known(columns)
        wanted = None if columns is None else list(columns)

        def opened(condition: str | None) -> Iterator[pa.RecordBatch]:
            return iter(self.dataset.to_batches(columns=wanted, filter=condition, batch_size=batch_size))

        batches = self._asked(where, opened)
        while (batch := self._asked(where, lambda _: next(batches, None))) is not None:
            yield batch

    def count(self, where: Where = None) -> int:
        """How many rows meet a condition; else as ``read``."""
        return int(self._asked(where, self.dataset.count_rows))

    def addresses(self, where: Where = None) -> NDArray[np.uint64]:
        """Where the rows lie that meet a condition, ascending, which is the table's order; else as ``read``.

        A row's fragment is in the upper 32 bits, its place in it in the lower ones.
        """

        def asked(condition: str | None) -> pa.Table:
            return self.dataset.scanner(columns=[], filter=condition, with_row_address=True).to_table()

        found: NDArray[np.uint64] = np.sort(self._asked(where, asked).column("_rowaddr").to_numpy())
        return found

    def embeddings(self, where: Where = None) -> Embeddings:
        """Vectors of all rows, or of some, in the table's order; errors as of ``read`` and ``to_embeddings``."""
        return to_embeddings(self.read(where=where), str(self.path))

    def write(self, what: str, change: Callable[[lance.LanceDataset], _T], rows: int = 1, alone: bool = False) -> _T:
        """Change the newest version, and see what came of it.

        Args:
            what: is done, for messages.
            change: calls into the store with the newest version; on a conflict again, with the one that won.
            rows: that are written or removed; many may take several deadlines.
            alone: nobody else writes meanwhile.

        Raises:
            UserError: it cannot be written to, the disk is full, or others write all the time.
        """
        patience = min(1 + rows // _ROWS, PATIENCE)
        with self.writing(what, alone):
            for attempt in range(_TRIES):
                self.refresh()
                dataset = self.dataset
                try:
                    done = self.call(what, lambda dataset=dataset: change(dataset), patience)  # type: ignore[misc]
                except Conflict:
                    time.sleep(random.uniform(0, min(0.02 * 2**attempt, 2)))
                    continue
                self.refresh()
                return done
        raise UserError(f"{self.path}: {what} met other writers {_TRIES} times; do it again when fewer write")

    @contextmanager
    def writing(self, what: str, alone: bool = False) -> Iterator[None]:
        """Inside, files that belong to no version yet are safe from ``--purge``; ``alone``: nobody else writes.

        Raises:
            UserError: others write, or purge, for longer than the deadline.
        """
        lock = self._locked(what, alone)
        try:
            yield
        finally:
            lock.release()

    def _locked(self, what: str, alone: bool) -> Lock:
        end = time.monotonic() + self.deadline
        while True:
            try:
                return Lock(self.path / "_dmpt.lock", shared=not alone)
            except OSError as error:
                raise UserError(
                    f"{self.path}: {what} is not allowed here ({error.strerror}); check its rights"
                ) from error
            except Taken:
                if time.monotonic() > end:
                    raise UserError(f"{self.path}: {what} waited {self.deadline:g} s for others; do it again") from None
                time.sleep(0.05)

    def _known(self, columns: Sequence[str] | None) -> None:
        for name in columns or ():
            if name not in self.schema.names:
                raise UserError(
                    f"{self.path} has no column {one_line(name)[:100]}; it has {', '.join(self.schema.names)}"
                )

    def _asked(self, where: Where, call: Callable[[str | None], _T], patience: float = 1) -> _T:
        """As ``call``, of the condition as the store reads it; what fails because of one is the condition's fault."""
        condition = _condition(where)
        try:
            return self.call("reading", lambda: call(condition), patience)
        except UserError as error:
            if condition is None:
                raise
            raise UserError(f"{error}; the condition was: {one_line(condition)[:200]}") from error


def _condition(where: Where) -> str | None:
    """What Lance reads to its end: it passes over whatever follows a whole condition, unless that is in parentheses."""
    whole = [where] if isinstance(where, str) else list(where or ())
    for one in whole:
        if not one.strip():
            raise UserError("the condition is empty; give one, as in \"site = 'north'\"")
        depth = 0
        for sign in re.findall(r"[()]|--|/\*", _QUOTED.sub("", one)):
            depth += 1 if sign == "(" else -1
            if depth < 0 or sign not in "()":
                what = "a parenthesis too many" if sign == ")" else "a comment"
                raise UserError(f"the condition has {what}; take it out: {one_line(one)[:200]}")
    return " AND ".join(f"({one})" for one in whole) or None


def open_gallery(path: str | Path, version: int | None = None) -> Gallery:
    """A gallery that ``dmpt embed`` or ``dmpt gallery add`` wrote.

    Args:
        path: the folder, ``g.lance``.
        version: None = the newest.

    Raises:
        UserError: there is none, it is damaged, of another format or another program's.
    """
    return Gallery(path, version)


def create_gallery(
    path: str | Path, model: Model, extra: Iterable[pa.Field] = (), source: str | None = None
) -> Gallery:
    """An empty gallery, its version 1.

    Args:
        path: the folder to make.
        model: whose vectors it will hold.
        extra: columns of the user's own.
        source: the folder that keys are relative to; best absolute, so that it is found from anywhere.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    place, schema = expanded(path), schema_of(model, extra, source)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} is there already; give another name, or add to it")
    empty = schema.empty_table()
    within(DEADLINE, place, "making it", lambda: lance.write_dataset(empty, str(place), commit_message="created"))
    return Gallery(place)


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # others may delete meanwhile
            found += path.stat().st_size if path.is_file() else 0
    return found
