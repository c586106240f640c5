"""``dmpt evaluate``: a trained run or adapter in, mAP and CMC out."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dmpt.adapter import calibration
from dmpt.adapter import folder as adapter
from dmpt.adapter.files import CARD
from dmpt.adapter.packaged import is_shipped
from dmpt.base.environment import environment
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, write_text
from dmpt.base.terminal import warn
from dmpt.data.records import Record, as_one, fingerprint, labels_of, short
from dmpt.embed.extract import Pair, Seen, look_in_views
from dmpt.evaluation import missing
from dmpt.evaluation.conditions import USUAL, Conditions
from dmpt.evaluation.opened import Opened, open_adapter, test_records
from dmpt.retrieval.calibration import Verification, verification
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.metrics import Metrics, measure
from dmpt.retrieval.metrics import evaluate as score
from dmpt.retrieval.openset import OpenSet, open_set
from dmpt.retrieval.protocols import Labels
from dmpt.retrieval.reached import Reached, reached
from dmpt.retrieval.rerank import KReciprocal, rerank
from dmpt.settings.modalities import number_of

PRIVATE = ("adapter", "command")
"""What provenance says of this machine's paths."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A trained model on a test split: the numbers, and what they came from."""

    name: str  # what people call it; pages about several need names that differ
    run: Path  # the folder that the user gave
    opened: Opened
    query: Sequence[Record]
    gallery: Sequence[Record]  # the same object where the two are one
    seen: Seen
    metrics: Metrics
    skipped: Sequence[str] = ()  # missing or broken files that were left out, of any split
    missing: dict[str, Any] | None = None  # numbers with modalities missing; None = not asked for
    reranked: dict[str, Any] | None = None  # numbers after re-ranking; None = not asked for
    open_set: list[OpenSet] | None = None  # who is in the gallery at all, and who; None = not asked for

    @property
    def trained(self) -> int:
        """Parameters that training moved; 0 before its first step."""
        return self.opened.network.trained_count if self.opened.step else 0

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Where the numbers come from; under ``apart`` why they are not the run's own, as of other data."""
        opened, config = self.opened, self.opened.card.config
        return {
            "adapter": str(opened.folder),
            "which": opened.folder.name,
            "step": opened.step,
            "seed": config.train.seed,
            "selected": config.train.select,
            "chosen_by": adapter.chosen_by(opened.folder, opened.card),
            "history": list(opened.card.history),
            "data": opened.dataset.name,
            "object": opened.dataset.object,
            "apart": opened.apart,
            "modalities": list(config.data.modalities),
            "data_fingerprint": fingerprint([*self.query, *self.gallery]),
            "backbone_sha256": opened.card.backbone_sha256,
            "precision": opened.precision,
            **environment(),
        }

    @cached_property
    def verification(self) -> Verification | None:
        """How far mates and strangers of different cameras lie apart; None where there are none of either."""
        return verification(*self.seen)

    @cached_property
    def calibrated(self) -> list[Reached] | None:
        """What the thresholds of the adapter's calibration come to here, between samples that lack nothing.

        None where there is no calibration at this precision, or it is of these very samples.
        """
        known, modalities = calibration.load(self.opened.folder), self.opened.data.modalities
        table = None if known is None else known.rates(modalities)
        if known is None or table is None or known.precision != self.opened.precision:
            return None
        if known.fingerprint == fingerprint(as_one(self.query, self.gallery)):
            return None
        items, labels = everyone((self.query, self.gallery), self.seen)
        whole = np.flatnonzero(items.codes == number_of(modalities))
        if not len(whole):
            return None
        if known.views == "scene" and labels.scenes is not None:
            labels = Labels(labels.pids, labels.scenes)
        try:
            return reached(table.thresholds, items[whole], labels[whole])
        except UserError:  # no two views of any of those that lack nothing
            return None

    @property
    def ending(self) -> str:
        """What files about it have in their names, behind a dot; empty for the run's own test split."""
        where = self.provenance
        if not where["apart"]:
            return ""
        return f".{where['data']}-{short(where['data_fingerprint'])}-{self.metrics.protocol}"

    def to_dict(self) -> dict[str, Any]:
        """The numbers, in percent, and where they come from, in types that JSON knows.

        Those with modalities missing are under ``missing``, those after re-ranking under ``k_reciprocal_reranked``; the
        others are neither. Under ``verification`` are those of pairs, without a ranking; under ``calibrated`` the rates
        in [0, 1] at the thresholds of the adapter's calibration; under ``open_set`` those of searches for people of
        whom some are not there.
        """
        also = {
            "verification": None if self.verification is None else asdict(self.verification),
            "calibrated": None if self.calibrated is None else [asdict(found) for found in self.calibrated],
            "open_set": None if self.open_set is None else [asdict(found) for found in self.open_set],
            "missing": self.missing,
            "k_reciprocal_reranked": self.reranked,
        }
        return {
            **self.metrics.to_dict(),
            "skipped": list(self.skipped),
            "provenance": self.provenance,
            **{name: found for name, found in also.items() if found is not None},
        }

    def save(self) -> Path | None:
        """Write ``metrics.json`` into the folder that was evaluated; numbers that stand apart have a file of their own.

        An adapter is there to be shared: in its folder the file names no path of this machine.

        Returns:
            The file; None where the adapter comes with the package, which keeps no numbers of yours.

        Raises:
            UserError: it cannot be written.
        """
        if is_shipped(self.run):
            return None
        path, result = self.run / f"metrics{self.ending}.json", self.to_dict()
        if (self.run / CARD).exists():
            where = {key: value for key, value in self.provenance.items() if key not in PRIVATE}
            result |= {"skipped": len(self.skipped), "provenance": where}
        write_text(path, json.dumps(result, indent=2) + "\n")
        return path


def evaluate(
    run: str | Path,
    conditions: Conditions = USUAL,
    *,
    without: str | None = None,
    reranked: bool = False,
    openset: bool = False,
) -> Evaluation:
    """Evaluate an adapter on its data set's test split.

    Args:
        run: run folder or adapter folder.
        conditions: what is not as in training.
        without: also with modalities missing: ``all`` cases, or one, e.g. ``rgb+nir``.
        reranked: also after k-reciprocal re-ranking.
        openset: also how often those are found who are in a gallery, at a rate of alarms for those who are not.

    Raises:
        UserError: something is missing or does not fit.
    """
    run = expanded(run)
    opened = open_adapter(run, conditions)
    if opened.apart:
        warn(f"{run}: {opened.apart}; these numbers are kept apart")
    protocol = opened.dataset.protocol
    cases = [] if without is None else missing.parse(without, opened.data.modalities)  # refused before an image is read
    records, unreadable = test_records(opened.dataset, opened.data, conditions.skip_broken)
    whole = opened.data.modalities
    views = missing.views(records, whole, cases)
    found = look_in_views(opened.network, opened.data, records, [*views], opened.precision, conditions.batch_size)
    seen = found[whole]
    metrics = score(*seen, protocol)
    lacking = missing.measure(found, views, protocol) if cases else None
    again = None
    if reranked:
        method = KReciprocal()
        again = {"method": method.name, **measure(rerank(*seen[:2], method), *seen[2:], protocol).to_dict()}
    searched = None
    if openset:
        searched = open_set(*everyone(records, seen))
    skipped, name = [*opened.incomplete, *unreadable], run.resolve().name
    return Evaluation(name, run, opened, *records, seen, metrics, skipped, lacking, again, searched)


def everyone(records: Pair, seen: Seen) -> tuple[Embeddings, Labels]:
    """All items of query and gallery, once where the two are one list."""
    query, gallery = records
    return seen.gallery if query is gallery else join(seen.query, seen.gallery), labels_of(as_one(query, gallery))


def by_query(metrics: Metrics, queries: Labels) -> dict[str, list[Any]]:
    """``pids`` and ``average_precision`` of each query, percent; None where there is nothing to find."""
    found = [None if math.isnan(value) else value for value in metrics.average_precision.tolist()]
    return {"pids": queries.pids.tolist(), "average_precision": found}
