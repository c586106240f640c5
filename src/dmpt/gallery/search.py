"""Who is this: the best items of a gallery for one person or vehicle, and what their scores mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmpt.adapter.calibration import Calibration
from dmpt.base.errors import UserError
from dmpt.gallery.index import load_index
from dmpt.gallery.schema import OWN
from dmpt.gallery.store import Gallery
from dmpt.gallery.vectors import mapped
from dmpt.retrieval.embeddings import Embeddings, averaged, join
from dmpt.retrieval.rerank import rerank
from dmpt.retrieval.scores import apart
from dmpt.retrieval.search import Found, Mask, search
from dmpt.settings.modalities import names_of

Shots = Literal["mean", "max"]
_DEPTH = 8
"""Items looked at for each that is wanted, where they are grouped; more where these are of too few."""
_FEW = 0.1
"""Share of the items below which all that meet a condition are compared: an index would lose neighbours."""
_MASKS = 64
"""Conditions whose items are remembered, at most."""
_RERANKED = 100
"""Items that are re-ranked, at least."""


@dataclass(frozen=True)
class Hit:
    """An item that was found.

    Attributes:
        key: of the item.
        score: of the mixed form, six decimals (``retrieval.scores``).
        modalities: which it has in common with the query; none = shared parts were compared, or, of a model without
            them, mean features.
        has: which it has.
        pid: its label; None = unlabelled.
        camera: None = not known.
        fmr: the share of strangers that score as high, at most; None = not calibrated. Of several shots it is their
            number times that of one: a calibration is of single ones, and the average or the best of several is higher.
        expected_false_matches: how many of as many strangers as there are items would score as high, at most.
        distance: after re-ranking, what the order is by; the score stays what it was.
        columns: what the gallery has besides.
        spectra: the score over each common modality alone, where that was asked for.
    """

    key: str
    score: float
    modalities: tuple[str, ...]
    has: tuple[str, ...]
    pid: str | None = None
    camera: str | None = None
    fmr: float | None = None
    expected_false_matches: float | None = None
    distance: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    spectra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Ranked:
    """Items for one query, best first."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float64]
    shots: NDArray[np.int64]  # whose score it is
    distances: NDArray[np.float64] | None = None

    def __getitem__(self, rows: NDArray[np.int64]) -> "_Ranked":
        distances = None if self.distances is None else self.distances[rows]
        return _Ranked(self.positions[rows], self.scores[rows], self.shots[rows], distances)


class Search:
    """Search in one version of a gallery, whatever others write meanwhile; threads may share it.

    Args:
        gallery: what to search in.
        indexed: compare with the candidates of its index alone (``gallery.index``), not with every item.

    Raises:
        UserError: it is empty, its vectors cannot be read, or it has no index.
    """

    def __init__(self, gallery: Gallery, indexed: bool = False):
        self.gallery = Gallery(gallery.path, gallery.version, gallery.deadline)  # nobody else moves it on
        self._mapped = mapped(self.gallery)
        self._masks: dict[str, Mask] = {}
        self._groups: dict[str | None, tuple[NDArray[np.int64], bool]] = {}
        if not len(self):
            raise UserError(f"{gallery.path} is empty; fill it with dmpt gallery add")
        self._codes = self._mapped.codes
        self.index = load_index(self.gallery, self._mapped) if indexed else None

    def __len__(self) -> int:
        return len(self._mapped.addresses)

    def counted(self, conditions: Sequence[str] = ()) -> Mask:
        """Which items meet all conditions, bool ``(N + 1,)``, in the table's order; the last is none."""
        mask = self._mapped.counted
        for condition in conditions:
            mask = mask & self._mask(condition)
        return mask

    def _mask(self, condition: str) -> Mask:
        found = self._masks.get(condition)
        if found is None:
            found = self._mapped.mask(self.gallery.addresses(condition))
            if len(self._masks) >= _MASKS:
                self._masks.clear()
            self._masks[condition] = found
        return found

    def present(self, mask: Mask) -> int:
        """The modalities that counted items have, bit m for modality m."""
        return int(np.bitwise_or.reduce(self._codes[mask], initial=0))

    def __call__(
        self,
        queries: Sequence[Embeddings],
        k: int = 10,
        *,
        conditions: Sequence[str] = (),
        group: str | None = "pid",
        shots: Shots = "mean",
        calibration: Calibration | None = None,
        fpir: float | None = None,
        reranked: bool = False,
        spectra: bool = False,
    ) -> list[list[Hit]]:
        """The best items for each query, best first; of equal scores the first in the table.

        Args:
            queries: the shots of one person or vehicle each, of the gallery's model.
            k: hits, at least 1; there may be fewer.
            conditions: in SQL, which all items meet that count (``filters.conditions``).
            group: a column: of items with one label the best stands for all. None = each item for itself, as those do
                that have no label.
            shots: several shots are averaged, or an item has the best of their scores.
            calibration: of the gallery's model.
            fpir: keep what scores above the threshold that, with this probability, one or more of as many strangers as
                there are items exceed.
            reranked: order the first hundred items, or k, by k-reciprocal re-ranking.
            spectra: say of each hit what each common modality says alone.

        Raises:
            UserError: a condition cannot be read, there is no such column, or the calibration cannot carry the rate.
        """
        if fpir is not None and calibration is None:
            raise UserError("the model is not calibrated, so nothing says who is known; dmpt calibrate measures it")
        mask = self.counted(conditions)
        groups, single = self._labels(group)
        asked = [averaged(query) if shots == "mean" and len(query) > 1 else query for query in queries]
        depth = max(_RERANKED, k) if reranked else k if single else _DEPTH * k
        found = self._best(asked, k, depth, mask, None if reranked else groups)
        if reranked:
            found = [self._reranked(query, own) for query, own in zip(asked, found, strict=True)]
        first = [own[_first_of_each(groups[own.positions])[:k]] for own in found]
        items = int(np.count_nonzero(mask))
        meant = [_Meaning(calibration, items, len(query), fpir) for query in queries]
        alone = [self._apart(query, own) if spectra else None for query, own in zip(asked, first, strict=True)]
        hits = self._hits([query.codes for query in asked], first, meant, alone)
        return [[hit for hit in own if one.is_known(hit)] for own, one in zip(hits, meant, strict=True)]

    def _best(
        self, queries: Sequence[Embeddings], k: int, depth: int, mask: Mask, groups: NDArray[np.int64] | None
    ) -> list[_Ranked]:
        """Of each query ``depth`` items, and more until they have k groups, where there are so many."""
        every = max(1, int(np.count_nonzero(mask)))
        found: dict[int, _Ranked] = {}
        lacking = list(range(len(queries)))
        while lacking:
            depth = min(depth, every)
            result = self._nearest(join(*(queries[index] for index in lacking)), depth, mask)
            start, more = 0, list[int]()
            for index in lacking:
                rows = slice(start, start := start + len(queries[index]))
                found[index] = _merged(result.positions[rows], result.scores[rows])
                if groups is not None and depth < every and result.positions[rows, -1].min() >= 0:
                    more += [index] if len(np.unique(groups[found[index].positions])) < k else []
            lacking, depth = more, 4 * depth
        return [found[index] for index in range(len(queries))]

    def _nearest(self, query: Embeddings, k: int, mask: Mask) -> Found:
        """Of all items that count, or of the candidates among them: of more lists where a condition leaves fewer."""
        share = np.count_nonzero(mask) / len(self)
        if self.index is None or share < _FEW:
            return search(query, self._mapped.vectors, k, mask)
        probes = math.ceil(self.index.probes / share)
        each = [query[row : row + 1] for row in range(len(query))]
        found = [search(one, self._mapped.vectors, k, mask & self.index.candidates(one, probes)) for one in each]
        return Found(np.concatenate([one.scores for one in found]), np.concatenate([one.positions for one in found]))

    def _labels(self, column: str | None) -> tuple[NDArray[np.int64], bool]:
        """A number for each label of a column, by position, and whether all differ; what has none has its own."""
        if column is None:
            self._groups.setdefault(column, (np.arange(len(self)), True))
        elif column not in self._groups:
            labels = self.gallery.read([column]).column(column).combine_chunks()
            if pa.types.is_nested(labels.type):
                raise UserError(f"column {column} holds {labels.type}; group by one of labels, such as pid")
            codes = labels.dictionary_encode().indices
            own = np.arange(len(labels)) + len(labels)
            here = labels.is_valid().to_numpy(zero_copy_only=False)
            groups = np.where(here, codes.fill_null(0).to_numpy(zero_copy_only=False), own)
            self._groups[column] = groups, len(np.unique(groups)) == len(groups)
        return self._groups[column]

    def _reranked(self, query: Embeddings, found: _Ranked) -> _Ranked:
        """By distance after re-ranking, of several shots the least."""
        if not len(found.positions):
            return found
        items = self._mapped.vectors.at(self._mapped.rows[found.positions])
        distances = -np.concatenate([scores.copy() for _, scores in rerank(query, items)]).max(axis=0)
        order = np.argsort(distances, kind="stable")
        return replace(found[order], distances=np.round(distances[order].astype(np.float64), 6))

    def _apart(self, query: Embeddings, found: _Ranked) -> list[dict[str, float]]:
        """What each modality says alone of the shot and the item of each score."""
        said: list[dict[str, float]] = [{} for _ in found.positions]
        for shot in np.unique(found.shots):
            own = np.flatnonzero(found.shots == shot)
            items = self._mapped.vectors.at(self._mapped.rows[found.positions[own]])
            for row, alone in zip(own, apart(query[shot : shot + 1], items), strict=True):
                said[row] = alone
        return said

    def _hits(
        self,
        codes: Sequence[NDArray[np.int64]],
        found: Sequence[_Ranked],
        meant: Sequence["_Meaning"],
        spectra: Sequence[Sequence[Mapping[str, float]] | None],
    ) -> list[list[Hit]]:
        """With what the table says of them."""
        own = [name for name in self.gallery.schema.names if name not in OWN]
        wanted = np.unique(np.concatenate([each.positions for each in found]))
        dataset, names = self.gallery.dataset, ["key", "pid", "camera", *own]
        table = self.gallery.call("reading", lambda: dataset.take(wanted.tolist(), columns=names))
        said = dict(zip(wanted.tolist(), table.to_pylist(), strict=True))
        hits: list[list[Hit]] = []
        for sets, each, means, alone in zip(codes, found, meant, spectra, strict=True):
            hits.append([])
            for rank, position in enumerate(each.positions.tolist()):
                row, score = said[position], float(each.scores[rank])
                common = int(sets[each.shots[rank]] & self._codes[position])
                fmr, expected = means.of(score, common)
                distance = None if each.distances is None else float(each.distances[rank])
                hits[-1].append(
                    Hit(
                        row["key"],
                        score,
                        names_of(common),
                        names_of(int(self._codes[position])),
                        row["pid"],
                        row["camera"],
                        fmr,
                        expected,
                        distance,
                        {name: row[name] for name in own},
                        alone[rank] if alone else {},
                    )
                )
        return hits


class _Meaning:
    """What the scores of one query mean, of so many shots and among so many items."""

    def __init__(self, calibration: Calibration | None, items: int, shots: int, fpir: float | None):
        self._calibration, self._items, self._shots, self._fpir = calibration, items, shots, fpir

    def of(self, score: float, common: int) -> tuple[float | None, float | None]:
        """FMR, and how many false matches are expected."""
        rate = None if self._calibration is None else self._calibration.fmr(score, common)
        if rate is None:
            return None, None
        fmr = min(1.0, self._shots * rate)
        return fmr, fmr * self._items

    def is_known(self, hit: Hit) -> bool:
        """Whether a stranger to all items would hardly score as high."""
        if self._calibration is None or self._fpir is None:
            return True
        if hit.fmr is None:  # over other modalities than the calibration has
            return False
        pairs = self._shots * self._items
        return hit.score > self._calibration.fpir_threshold(hit.modalities, pairs, self._fpir)


def _merged(positions: NDArray[np.int64], scores: NDArray[np.float64]) -> _Ranked:
    """What shots found, ``(S, k)`` each: every item once, with the best of its scores."""
    shots, _ = np.nonzero(positions >= 0)
    items, values = positions[positions >= 0], scores[positions >= 0]
    order = np.lexsort((items, -values))
    order = order[_first_of_each(items[order])]
    return _Ranked(items[order], values[order], shots[order])


def _first_of_each(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of the first of each label, ascending."""
    return np.sort(np.unique(labels, return_index=True)[1])
