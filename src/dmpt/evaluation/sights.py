"""Samples seen with every subset of their modalities, and how their scores with each other lie.

The interaction mixes the modalities that are there, so that each subset is embedded anew. A set of common modalities
occurs in several ways: nothing but RGB in common have two RGB pictures, and RGB + NIR beside RGB + TIR. Each pair of
samples is scored once a set, in one of these ways, which take turns.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from dmpt.base.errors import UserError
from dmpt.data.missing import Subset, restrict
from dmpt.data.records import Record, labels_of
from dmpt.retrieval.calibration import Change, Floats, Pairs, Rows, across, joined
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.rates import Rates, rates_of
from dmpt.retrieval.snorm import Statistics, snorm, statistics
from dmpt.settings.modalities import MODALITIES, number_of

_FEWEST = 5
"""Identities: they are paired in ten ways, and a threshold for an FMR of 10 % takes ten."""
_ENOUGH = 50
"""Identities of a set of common modalities: one with fewer takes pairs of all sets, where these have many more."""
_MOST = 1_000_000
"""Pairs of a set that are looked at."""


class View(NamedTuple):
    """Samples that have some modalities, seen with these alone."""

    rows: Rows  # in the list of all samples
    items: Embeddings


@dataclass(frozen=True, eq=False)
class Sights:
    """All samples, seen with every subset of their modalities.

    Attributes:
        records: the samples.
        by: what tells two views of an identity apart, ``camera`` or ``scene``.
        views: by subset.
    """

    records: Sequence[Record]
    by: Literal["camera", "scene"]
    views: dict[Subset, View]

    @classmethod
    def of(
        cls,
        records: Sequence[Record],
        modalities: Subset,
        by: Literal["camera", "scene"],
        embed: Callable[[Sequence[Record]], Embeddings],
    ) -> "Sights":
        """Embed samples with every subset of some modalities.

        Raises:
            UserError: so few identities carry no rate.
        """
        found = cls(records, by, {})
        if found.count < _FEWEST:
            raise UserError(f"calibration takes {_FEWEST} identities or more, and there are {found.count}; give more")
        for size in range(len(modalities), 0, -1):
            for kept in combinations(modalities, size):
                rows = np.array([row for row, record in enumerate(records) if {*kept} <= record.paths.keys()], np.int64)
                if len(rows):
                    found.views[kept] = View(rows, embed(restrict([records[row] for row in rows], kept)))
        return found

    @cached_property
    def labels(self) -> Labels:
        """Of the samples."""
        return labels_of(self.records)

    @cached_property
    def identities(self) -> Rows:
        """Of the samples, counted from 0."""
        return np.unique(self.labels.pids, return_inverse=True)[1].astype(np.int64)

    @property
    def count(self) -> int:
        """How many identities there are."""
        return len({record.pid for record in self.records})

    @property
    def has_shared_part(self) -> bool:
        """Whether samples without a common modality can be compared, and the sets have one scale."""
        return next(iter(self.views.values())).items.shared is not None

    @property
    def sets(self) -> Iterator[Subset]:
        """Sets of common modalities that scores are for; the empty one where there is a shared part."""
        used = [name for name in MODALITIES if any(name in kept for kept in self.views)]
        for size in range(len(used), -1 if self.has_shared_part else 0, -1):
            yield from combinations(used, size)

    def met(self, common: Subset, strangers: Mapping[Subset, Statistics] | None = None) -> tuple[Floats, Rows, Rows]:
        """Scores of pairs with these common modalities, and where in the list their samples are; each ``(P,)``.

        Args:
            common: the modalities.
            strangers: what each view's samples score with a cohort, to normalise by; None = scores as they are.
        """
        labels = self.labels
        apart = labels.cameras if self.by == "camera" or labels.scenes is None else labels.scenes
        ways = [(one, other) for one in self.views for other in self.views if {*one} & {*other} == {*common}]
        count = len(self.records)
        every = max(1, math.ceil(count * count / 2 / _MOST))
        turn = np.random.default_rng(0).permutation(count)  # of each sample, as the first of a pair
        parts = [(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))]  # a set may occur in no way
        for way, (one, other) in enumerate(ways):
            first, second = self.views[one], self.views[other]
            own = np.flatnonzero(turn[first.rows] % (every * len(ways)) == way * every)
            if not len(own):
                continue
            change = None if strangers is None else _normalised(common, strangers[one][own], strangers[other])
            parts.append(across(first.items[own], second.items, apart, first.rows[own], second.rows, change))
        return joined(parts)

    def tables(self, cohort: Embeddings | None = None) -> tuple[Rates, ...]:
        """Rates of every set that has pairs of mates and of strangers; with a cohort those of normalised scores."""
        strangers = None
        if cohort is not None:
            strangers = {kept: statistics(view.items, cohort) for kept, view in self.views.items()}
        found = {}
        for common in self.sets:
            scores, before, after = self.met(common, strangers)
            found[common] = Pairs(scores, self.identities[before], self.identities[after])
        everyone = Pairs(*joined([(pairs.scores, pairs.first, pairs.second) for pairs in found.values()]))
        everyone = everyone[np.arange(0, len(everyone.scores), max(1, math.ceil(len(everyone.scores) / _MOST)))]
        tables = []
        for common, pairs in found.items():
            few = pairs.identities < _ENOUGH and 1.5 * pairs.identities < everyone.identities
            pooled = few and self.has_shared_part  # which has brought the sets to one scale
            used = everyone if pooled else pairs
            if 0 < used.same.sum() < len(used.scores):
                tables.append(rates_of(common, used, pooled))
        return tuple(tables)


def _normalised(common: Subset, first: Statistics, second: Statistics) -> Change:
    """What brings blocks of scores to units of what their items score with strangers."""
    code = number_of(common)
    return lambda rows, scores: snorm(scores, np.full(scores.shape, code), first[rows], second)


@dataclass(frozen=True)
class BetweenCameras:
    """Error rates between two cameras, at the threshold that all share.

    Attributes:
        cameras: the two, ascending.
        strangers: pairs of strangers.
        mates: pairs of mates.
        fmr: share of the strangers above the threshold, in [0, 1]; None without strangers.
        fnmr: share of the mates not above it; None without mates.
    """

    cameras: tuple[int, int]
    strangers: int
    mates: int
    fmr: float | None
    fnmr: float | None


def between_cameras(sights: Sights, common: Subset, threshold: float) -> list[BetweenCameras]:
    """Error rates of every two cameras, of pairs with these common modalities."""
    scores, before, after = sights.met(common)
    cameras = sights.labels.cameras
    pairs = np.sort(np.stack([cameras[before], cameras[after]], axis=1), axis=1)
    same, passed = sights.identities[before] == sights.identities[after], scores > threshold
    found = []
    for one, other in np.unique(pairs, axis=0).tolist():
        here = (pairs == (one, other)).all(axis=1)
        strangers, mates = passed[here & ~same], passed[here & same]
        fmr = float(strangers.mean()) if len(strangers) else None
        fnmr = 1 - float(mates.mean()) if len(mates) else None
        found.append(BetweenCameras((one, other), len(strangers), len(mates), fmr, fnmr))
    return found
