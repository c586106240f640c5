"""Candidates for a search beyond a million rows: lists of neighbours by each modality's feature.

Each feature's vectors are sorted into lists, one for some 64 rows, by the nearest of as many centres (k-means). A query
looks into the lists whose centres are nearest to each feature that it has; items that have no modality in common with
it come from lists of the shared part. All of them are scored exactly, so an index costs neighbours and never a score.
Rows that were added since are all candidates. How many lists are looked into is measured on the table itself. An index
holds for the vectors of one model.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically
from dmpt.base.terminal import track
from dmpt.gallery.schema import Model
from dmpt.gallery.store import Gallery
from dmpt.gallery.vectors import Mapped, fragments_of, mapped, places_of
from dmpt.retrieval.embeddings import Embeddings, Features, unit
from dmpt.retrieval.search import Mask, Rows, search
from dmpt.settings.modalities import MODALITIES

_FILE = "index.npz"
_FORMAT = 2
_LIST = 64
"""Rows of a list, in the mean: a few identities. With longer lists a centre is far from all of its rows."""
_ROUNDS = 4
_ROWS = 8192
_PROBES = (2, 4, 8, 16, 32, 64, 128)
_K = 10
_SHARED = len(MODALITIES)
"""Number of the shared part's lists, after those of the modalities."""


@dataclass(frozen=True, eq=False)
class _Lists:
    """Rows of one feature by their nearest centre: those of list i are ``rows[starts[i] : starts[i + 1]]``."""

    centres: Features
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]

    def near(self, vector: Features, probes: int) -> NDArray[np.int64]:
        """Rows of the nearest lists."""
        alike = self.centres @ vector
        nearest = np.argpartition(-alike, min(probes, len(alike)) - 1)[:probes]
        return np.concatenate([self.rows[self.starts[i] : self.starts[i + 1]] for i in nearest])


@dataclass(frozen=True, eq=False)
class Index:
    """Lists of one version's rows, by position.

    Attributes:
        lists: by number of the modality, 3 for the shared part.
        probes: lists of each feature that a query looks into.
        recall: share of the ten nearest that were found when it was made, in [0, 1]: the lower of complete queries and
            of queries of one modality.
        new: bool ``(N + 1,)``, rows that are in no list.
        codes: int64 ``(N + 1,)``, which modalities the rows have.
    """

    lists: dict[int, _Lists]
    probes: int
    recall: float
    new: Mask
    codes: NDArray[np.int64]

    def candidates(self, query: Embeddings, probes: int | None = None) -> Mask:
        """Positions that one query is to be compared with, bool ``(N + 1,)``."""
        chosen, code = self.new.copy(), int(query.codes[0])
        for m, lists in self.lists.items():
            if m == _SHARED:
                rows = lists.near(query.common_space[0], probes or self.probes)
                chosen[rows[self.codes[rows] & code == 0]] = True
            elif code >> m & 1:
                chosen[lists.near(unit(query.features[0, m][None])[0], probes or self.probes)] = True
        return chosen


def make_index(gallery: Gallery, recall: float = 0.98, queries: int = 100) -> Index:
    """Sort a gallery's rows into lists, measure, and keep them beside its vectors.

    Args:
        gallery: to index, at its version.
        recall: share of the ten nearest that is to be found, in (0, 1).
        queries: rows that are asked for, to measure it.

    Raises:
        UserError: there are too few rows, or no such share is reached.
    """
    found = mapped(gallery)
    count = len(found.addresses)
    if count < 20 * _LIST:
        raise UserError(f"{gallery.path} has {count} rows; an index is for a million, and needs {20 * _LIST}")
    codes = found.codes
    complete = bool((codes[:-1] == (1 << len(MODALITIES)) - 1).all())
    lists = {m: _sorted(found.vectors.parts, m, count) for m in range(_SHARED + (not complete)) if _has(found, m)}
    new = np.zeros(count + 1, np.bool_)
    probes, reached = _measured(gallery, found, Index(lists, 0, 0, new, codes), recall, queries)
    index = Index(lists, probes, reached, new, codes)
    _save(gallery, found, index)
    return index


def load_index(gallery: Gallery, found: Mapped) -> Index:
    """The index of a gallery, for the rows of a version.

    Raises:
        UserError: there is none for vectors of this model, or it cannot be read.
    """
    places = [folder for folder in places_of(gallery, "_index") if (folder / _FILE).exists()]
    if not places:
        raise UserError(f"{gallery.path} has no index; make one with dmpt gallery index, or search without")
    place = max(places, key=lambda folder: (folder / _FILE).stat().st_mtime)  # the other one may be nobody's to write
    try:
        with np.load(place / _FILE) as file:
            kept = {name: file[name] for name in file.files}
        if int(kept["format"]) != _FORMAT:
            raise ValueError("of another version")
        if str(kept["model"]) != _said(gallery.model):
            raise UserError(
                f"{gallery.path} has an index of another model's vectors; make it anew with dmpt gallery index, or "
                "search without"
            )
        numbers = fragments_of(gallery)
        names = np.array([numbers.get(name, -1) for name in kept["fragments"].tolist()], np.int64)
        own = np.where(names[kept["fragment"]] >= 0, (names[kept["fragment"]] << 32) + kept["offset"], -1)
        positions = found.positions(own)
        lists = {
            int(m): _Lists(kept[f"centres{m}"], kept[f"starts{m}"], positions[kept[f"rows{m}"]])
            for m in kept["lists"].tolist()
        }
        probes, recall = int(kept["probes"]), float(kept["recall"])
    except (OSError, ValueError, KeyError, IndexError, BadZipFile) as error:
        raise UserError(f"{place} cannot be read ({error}); make it again with dmpt gallery index") from error
    new = found.counted.copy()
    new[positions] = False
    return Index(lists, probes, recall, new, found.codes)


def _save(gallery: Gallery, found: Mapped, index: Index) -> None:
    names = fragments_of(gallery)
    numbers, fragment = np.unique((found.addresses >> np.uint64(32)).astype(np.int64), return_inverse=True)
    by_number = {number: name for name, number in names.items()}
    kept = {
        "format": np.array(_FORMAT),
        "model": np.array(_said(gallery.model)),
        "fragments": np.array([by_number[int(number)] for number in numbers]),
        "fragment": fragment.astype(np.int32),
        "offset": (found.addresses & np.uint64(0xFFFFFFFF)).astype(np.int64),
        "lists": np.array(list(index.lists)),
        "probes": np.array(index.probes),
        "recall": np.array(index.recall),
    }
    for m, lists in index.lists.items():
        kept |= {f"centres{m}": lists.centres, f"starts{m}": lists.starts, f"rows{m}": lists.rows}

    def fill(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **kept)  # type: ignore[arg-type]

    inside, elsewhere = places_of(gallery, "_index")
    try:
        write_atomically(inside / _FILE, fill)
    except UserError:
        write_atomically(elsewhere / _FILE, fill)


def _said(model: Model) -> str:
    """What tells the vectors of one model from those of another."""
    return json.dumps(model.metadata() | {"width": str(model.width), "shared": str(model.shared)}, sort_keys=True)


def _has(found: Mapped, m: int) -> bool:
    return m == _SHARED or any(part.code >> m & 1 for part in found.vectors.parts)


def _sorted(parts: Sequence[Rows], m: int, count: int) -> _Lists:
    """The lists of a modality's feature, or of the shared part of rows that lack a modality."""
    whole = (1 << len(MODALITIES)) - 1
    parts = [part for part in parts if (part.code != whole if m == _SHARED else part.code >> m & 1)]
    what = "shared part" if m == _SHARED else MODALITIES[m]
    centres = _centres(parts, m, what)
    owners, positions = [], []
    for vectors, here in track(_blocks(parts, m), f"lists of {what}", _steps(parts)):
        owners.append(_nearest(vectors, centres)[here < count])
        positions.append(here[here < count])
    owner, rows = np.concatenate(owners), np.concatenate(positions)
    order = np.argsort(owner, kind="stable")
    return _Lists(centres, np.searchsorted(owner[order], np.arange(len(centres) + 1)), rows[order])


def _centres(parts: Sequence[Rows], m: int, what: str) -> Features:
    """k-means by Lloyd's rounds over every other row: mini-batches find far worse centres, as of the same cost."""
    total = sum(len(part) for part in parts)
    amount = max(1, total // _LIST)
    first = np.sort(np.random.default_rng(m).choice(total, amount, replace=False))
    ends = np.cumsum([0, *map(len, parts)])
    each = zip(parts, ends[:-1], ends[1:], strict=True)
    centres = np.concatenate([_vectors(part, m, first[(first >= a) & (first < b)] - a) for part, a, b in each])
    for turn in range(_ROUNDS):
        sums = np.zeros_like(centres)
        name = f"centres of {what}, round {turn + 1} of {_ROUNDS}"
        for vectors, _ in track(_blocks(parts, m, 2), name, _steps(parts)):
            np.add.at(sums, _nearest(vectors, centres), vectors)
        moved = np.einsum("nd,nd->n", sums, sums) > 0
        centres[moved] = unit(sums[moved])
    return centres


def _blocks(parts: Sequence[Rows], m: int, step: int = 1) -> Iterator[tuple[Features, NDArray[np.int64]]]:
    """Vectors of length 1, some at a time, and their positions."""
    for part in parts:
        for start in range(0, len(part), _ROWS):
            rows = slice(start, start + _ROWS, step)
            yield _vectors(part, m, rows), part.positions[rows]


def _steps(parts: Sequence[Rows]) -> int:
    return sum(-(-len(part) // _ROWS) for part in parts)


def _nearest(vectors: Features, centres: Features, rows: int = 512) -> NDArray[np.int64]:
    """The number of the nearest centre of each."""
    pieces = (vectors[start : start + rows] for start in range(0, len(vectors), rows))
    return np.concatenate([np.argmax(piece @ centres.T, axis=1) for piece in pieces])


def _vectors(part: Rows, m: int, rows: slice | NDArray[np.int64]) -> Features:
    """Of length 1."""
    if m == _SHARED:
        return np.asarray(part.space[rows])
    width = part.flat.shape[1] // len(MODALITIES)
    return unit(np.asarray(part.flat[rows, m * width : (m + 1) * width]))


def _measured(gallery: Gallery, found: Mapped, index: Index, wanted: float, queries: int) -> tuple[int, float]:
    """How many lists are enough, and the recall: of rows of the table, whole and with one modality, without itself."""
    generator = np.random.default_rng(0)
    places = np.concatenate([part.positions for part in found.vectors.parts])
    live = np.flatnonzero(places < len(found.addresses))
    rows = np.sort(generator.choice(live, min(queries, len(live)), replace=False))
    items = found.vectors.at(rows)
    asked: list[tuple[Embeddings, NDArray[np.int64]]] = [(items, places[rows])]
    for m in range(len(MODALITIES)):
        if (here := np.flatnonzero(items.present[:, m])).size:
            one = np.zeros_like(items.features[here])
            one[:, m] = unit(items.features[here, m])
            present = np.arange(len(MODALITIES))[None] == m
            shared = items.common_space[here] if gallery.model.shared else None
            shown = Embeddings(one, np.repeat(present, len(here), axis=0), shared, items.standardisation)
            asked.append((shown, places[rows[here]]))
    nearest = [search(query, found.vectors, _K + 1, found.counted).positions for query, _ in asked]
    recall = 0.0
    for probes in _PROBES:
        shares = []
        for (query, own), exact in zip(asked, nearest, strict=True):
            hits = [
                index.candidates(query[row : row + 1], probes)[exact[row][exact[row] != own[row]][:_K]].mean()
                for row in range(len(query))
            ]
            shares.append(float(np.mean(hits)))
        recall = min(shares)
        if recall >= wanted:
            return probes, recall
    raise UserError(
        f"an index finds {100 * recall:.1f} % of the ten nearest here, not {100 * wanted:g} %; ask for less"
    )
