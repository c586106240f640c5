"""The gallery as clients see it: found rows, their pictures, what it holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dmpt.adapter.calibration import Calibration, Uncarried
from dmpt.base.terminal import plain
from dmpt.gallery.changes import Change
from dmpt.gallery.filters import conditions
from dmpt.gallery.search import Hit, Search
from dmpt.gallery.sources import digest
from dmpt.gallery.store import Gallery
from dmpt.gallery.times import TIME
from dmpt.retrieval.embeddings import Embeddings
from dmpt.serve.adding import Rows
from dmpt.serve.answers import Searching
from dmpt.serve.examples import keys_of_examples, summary
from dmpt.serve.models import meant
from dmpt.serve.photos import Photos
from dmpt.serve.refused import Refused
from dmpt.serve.table import Table, among, moment_of
from dmpt.settings.modalities import MODALITIES, names_of

_MORE = 3
"""Examples looked at for each that is wanted: pictures may be missing."""


class Catalogue:
    """A gallery, its pictures, and what scores in it mean.

    Args:
        table: the gallery.
        photos: its pictures.
        calibration: of its model; None = not calibrated.

    Attributes:
        table: as given.
    """

    def __init__(self, table: Table, photos: Photos, calibration: Calibration | None):
        self.table, self._photos, self._calibration = table, photos, calibration
        # Of the gallery that ``Table.current`` gave: another version, or one made anew, is another object.
        self._summary: tuple[Gallery | None, dict[str, Any]] = (None, {})
        self._examples: tuple[Gallery | None, int, list[dict[str, Any]]] = (None, 0, [])

    def vectors(self, keys: Sequence[str]) -> Embeddings:
        """Of rows.

        Raises:
            Refused: there is no such row.
        """
        return self.table.vectors(self.table.current()[0], keys)

    def found(self, query: Embeddings, leave: Sequence[str], asked: Searching) -> dict[str, Any]:
        """The best rows for one.

        Args:
            query: its shots.
            leave: keys of rows that do not count.
            asked: which do, and how many are wanted.

        Raises:
            Refused: there is no such column, or the calibration cannot carry the rate.
        """
        if asked.fpir is not None and self._calibration is None:
            raise Refused(422, "the model is not calibrated, so nothing says who is known; leave fpir out")
        gallery, search = self.table.current()
        where = self._conditions(gallery, asked, leave)
        hits, items = list[dict[str, Any]](), 0
        if search is not None:
            items = self.table.asked(lambda: int(np.count_nonzero(search.counted(where))))
            hits = self._ranked(search, query, where, asked) if items else []
        return {
            "gallery": self.table.name,
            "version": gallery.version,
            "items": items,
            "modalities": [name for m, name in enumerate(MODALITIES) if query.present[:, m].any()],
            "shots": len(query),
            "calibrated": self._calibration is not None,
            "hits": hits,
        }

    def _conditions(self, gallery: Gallery, asked: Searching, leave: Sequence[str]) -> list[str]:
        for name, given in (("after", asked.after), ("before", asked.before)):
            if given is not None:
                self.table.time_column(gallery)
                moment_of(given, name)
        found = self.table.asked(
            lambda: conditions(
                gallery, camera=asked.camera, not_camera=asked.not_camera, after=asked.after, before=asked.before
            )
        )
        return [*found, f"NOT ({among(leave)})"] if leave else found

    def _ranked(
        self, search: Search, query: Embeddings, where: Sequence[str], asked: Searching
    ) -> list[dict[str, Any]]:
        def ranked() -> list[list[Hit]]:
            try:
                return search(
                    [query],
                    asked.k,
                    conditions=where,
                    group=None if asked.group == "none" else asked.group,
                    shots=asked.shots,
                    calibration=self._calibration,
                    fpir=asked.fpir,
                    spectra=True,
                )
            except Uncarried as error:
                raise Refused(422, str(error)) from None

        (found,) = self.table.asked(ranked)
        return [self._hit(hit, rank, len(query)) for rank, hit in enumerate(found, start=1)]

    def _hit(self, hit: Hit, rank: int, shots: int) -> dict[str, Any]:
        return {
            **self.item(hit.key, hit.pid, hit.camera, hit.has, hit.columns),
            "rank": rank,
            "score": hit.score,
            "modalities": list(hit.modalities),
            "fmr": hit.fmr,
            "expected_false_matches": hit.expected_false_matches,
            "spectra": meant(hit.spectra, self._calibration, shots),
        }

    def item(
        self, key: str, pid: str | None, camera: str | None, has: Sequence[str], columns: Mapping[str, Any]
    ) -> dict[str, Any]:
        """A row, as clients are told of it."""
        return {
            "key": key,
            "pid": pid,
            "camera": camera,
            "time": plain(columns.get(TIME)),
            "has": list(has),
            "pictures": self._photos.urls(key, has),
            "columns": plain({name: value for name, value in columns.items() if name != TIME}),
        }

    def examples(self, count: int) -> list[dict[str, Any]]:
        """Rows whose pictures are there, of as many identities; always the same ones of a version."""
        gallery, _ = self.table.current()
        if self._examples[0] is not gallery or self._examples[1] != count:
            keys = self.table.asked(lambda: keys_of_examples(gallery, _MORE * count))
            found = [
                self.item(row.pop("key"), row.pop("pid"), row.pop("camera"), names_of(row.pop("present")), row)
                for row in self.table.rows(gallery, keys)
            ]
            pictured = [item for item in found if item["pictures"]]
            step = max(1, len(pictured) // count)
            self._examples = gallery, count, pictured[::step][:count]
        return self._examples[2]

    def picture(self, key: str, modality: str, size: int) -> bytes:
        """Of a row, as JPEG.

        Raises:
            Refused: there is no such row, or it has none.
        """
        return self._photos.jpeg(key, self._has(key), modality, size)

    def files(self, key: str) -> dict[str, bytes]:
        """What is in a row's pictures, by modality.

        Raises:
            Refused: there is no such row, or it has none.
        """
        return self._photos.files(key, self._has(key))

    def _has(self, key: str) -> tuple[str, ...]:
        (row,) = self.table.rows(self.table.current()[0], [key])
        return names_of(row["present"])

    def add(self, vectors: Embeddings, rows: Rows) -> dict[str, Any]:
        """Write rows, as one version.

        Raises:
            Refused: they are not written.
        """
        given = rows.side.pictures
        pictures = {name: own[0] for name in MODALITIES if (own := given.get(name)) and own[0] is not None}
        return self._written(self.table.add(vectors, rows.keys, rows.labels, digest(pictures) if pictures else None))

    def label(self, labels: Mapping[str, str | None]) -> dict[str, Any]:
        """Say who is on rows, as one version.

        Raises:
            Refused: there is no such row, or they are not written.
        """
        return self._written(self.table.label(labels))

    def remove(self, keys: Sequence[str]) -> dict[str, Any]:
        """Take rows out, as one version.

        Raises:
            Refused: there is no such row, or they are not taken out.
        """
        return self._written(self.table.remove(keys))

    def undo(self, version: int) -> dict[str, Any]:
        """Take back the last write of this service, as one version.

        Args:
            version: that the write left.

        Raises:
            Refused: it is another one, or somebody else wrote since.
        """
        return self._written(self.table.undo(version))

    def _written(self, change: Change) -> dict[str, Any]:
        return {**asdict(change), "undo": self.table.undoable}

    def about(self) -> dict[str, Any]:
        """What it holds."""
        gallery, _ = self.table.current()
        if self._summary[0] is not gallery:
            self._summary = gallery, self.table.asked(lambda: summary(gallery))
        return {
            "name": self.table.name,
            "version": gallery.version,
            **self._summary[1],
            "pictures": self._photos.there,
            "undo": self.table.undoable,
        }
