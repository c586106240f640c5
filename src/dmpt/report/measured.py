"""A run on its test split: what every part of a report looks at, measured once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmpt.adapter.folder import Card
from dmpt.base.errors import UserError
from dmpt.base.terminal import console
from dmpt.data.records import Record, fingerprint, labels_of, same_data, short
from dmpt.evaluation.evaluate import evaluate
from dmpt.evaluation.opened import USUAL, Conditions
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.metrics import Metrics
from dmpt.retrieval.protocols import PROTOCOLS, Labels
from dmpt.retrieval.scores import blocks


@dataclass(frozen=True)
class Ranked:
    """One query's list.

    Attributes:
        query: row of the query.
        items: rows of the gallery, best first, without what the protocol ignores.
        scores: their similarities: cosines over the modalities that both have.
        hits: which of them are the query's identity.
        average_precision: of the whole list, percent; NaN where there is nothing to find.
    """

    query: int
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    hits: NDArray[np.bool_]
    average_precision: float


@dataclass(frozen=True, eq=False)
class Measured:
    """One run and its test split.

    Attributes:
        name: what the report calls it.
        run: the folder that the user gave.
        card: settings and provenance of the adapter.
        network: in evaluation mode, on its device.
        query: records of the query side.
        gallery: records of the gallery side; the same object where the two are one.
        query_features: Q items, which may lack modalities.
        gallery_features: G items.
        metrics: the numbers.
        trained: parameters that training moved; 0 before its first step.
        provenance: where the numbers come from, by label.
        apart: why these are not the run's own data; empty where they are.
        ending: of the names of pages about them.
    """

    name: str
    run: Path
    card: Card
    network: DMPT
    query: Sequence[Record]
    gallery: Sequence[Record]
    query_features: Embeddings
    gallery_features: Embeddings
    metrics: Metrics
    trained: int
    provenance: dict[str, Any]
    apart: str = ""
    ending: str = ""

    @property
    def query_labels(self) -> Labels:
        """What the protocol looks at."""
        return labels_of(self.query)

    @property
    def gallery_labels(self) -> Labels:
        """What the protocol looks at."""
        return labels_of(self.gallery)

    @property
    def data_fingerprint(self) -> str:
        """Of query and gallery, as in ``metrics.json``."""
        return fingerprint([*self.query, *self.gallery])

    def ranked(self, query: int, top: int) -> Ranked:
        """The first ``top`` items of one query's list; equal scores by gallery row."""
        labels = self.gallery_labels
        asked = self.query_labels[query : query + 1]
        kept = np.flatnonzero(~PROTOCOLS[self.metrics.protocol](asked, labels)[0])
        only = self.query_features[query : query + 1]
        _, found = next(blocks(only, self.gallery_features, match_copies=False))
        scores = found[0, kept]
        order = np.argsort(-scores, kind="stable")[:top]
        items = kept[order]
        hits = labels.pids[items] == asked.pids[0]
        return Ranked(query, items, scores[order], hits, float(self.metrics.average_precision[query]))

    def records(self) -> list[Record]:
        """Every test sample once."""
        return [*(self.query[row] for row in self._alone()), *self.gallery]

    def samples(self) -> tuple[list[Record], Embeddings]:
        """Every test sample once, with its features."""
        alone = np.array(self._alone(), dtype=np.int64)
        return self.records(), join(self.query_features[alone], self.gallery_features)

    def _alone(self) -> list[int]:
        """Rows of the queries that are not in the gallery too."""
        if self.query is self.gallery:
            return []
        there = {_sight(record) for record in self.gallery}  # benchmarks list a query's copy in the gallery too
        return [row for row, record in enumerate(self.query) if _sight(record) not in there]


def _sight(record: Record) -> tuple[str, int, int, int | None]:
    """What copies of a sample in two folders share."""
    return record.name, record.pid, record.camera, record.scene


def measure(run: Path, conditions: Conditions = USUAL, *, name: str | None = None) -> Measured:
    """Load a run's adapter and rank its test split, as ``dmpt evaluate`` does.

    Args:
        run: run or adapter folder.
        conditions: what is not as in training.
        name: for the report; None = the folder's name.

    Raises:
        UserError: something is missing or does not fit.
    """
    name = name or run.resolve().name
    console.print(f"{name}: features of the test samples")
    found = evaluate(run, conditions)
    opened, metrics, gallery, where = found.opened, found.metrics, found.gallery, found.provenance
    folder, card = opened.folder, opened.card
    provenance = {
        "adapter": folder.resolve().name if folder == run else f"{run.resolve().name}/{folder.name}",
        "training step": opened.step,
        "seed": card.config.train.seed,
        "checkpoint chosen by": where["chosen_by"],
        "test data": f"{where['data']}, {len({r.pid for r in gallery})} identities, "
        f"fingerprint {where['data_fingerprint']}",
        "missing or broken files (any split)": len(found.skipped),
        "protocol": f"{metrics.protocol}: {metrics.valid_queries} of {metrics.queries} queries valid, "
        f"gallery {metrics.gallery}",
        "trained on": f"{card.data.get('name', 'unknown')}, {card.ids} identities, "
        f"fingerprint {card.data.get('fingerprint', 'unknown')}",
        "backbone": card.config.backbone.name,
        "backbone weights": f"{'random values, ' * (card.config.backbone.weights == 'random')}sha256 "
        f"{card.backbone_sha256}",
        "precision": opened.precision,
        "software": f"dmpt {where['dmpt']}, commit {where['commit'] or 'unknown'}, torch {where['torch']}, "
        f"timm {where['timm']}, Python {where['python']}",
        "licence": card.licence or "unknown",
    }
    return Measured(
        name=name,
        run=run,
        card=card,
        network=opened.network,
        query=found.query,
        gallery=gallery,
        query_features=found.seen.query,
        gallery_features=found.seen.gallery,
        metrics=metrics,
        trained=found.trained,
        provenance=provenance,
        apart=opened.apart,
        ending=found.ending,
    )


def measure_all(runs: Sequence[Path], conditions: Conditions = USUAL) -> list[Measured]:
    """``measure`` of several runs on the same test data, by names that tell them apart.

    Raises:
        UserError: they were tested on different data; something is missing or does not fit.
    """
    called = [None] if len(runs) == 1 else names(runs)
    measured = [measure(run, conditions, name=name) for run, name in zip(runs, called, strict=True)]
    check_same_data(measured)
    return measured


def names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as much of their paths as makes them differ; what all end with is left out."""
    parts = [folder.resolve().parts for folder in folders]
    from_the_end = zip(*(part[::-1] for part in parts), strict=False)
    alike = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, from_the_end))
    tails = [part[: len(part) - alike] for part in parts]
    for length in range(1, max(map(len, tails), default=0) + 1):
        found = ["/".join(tail[-length:]) for tail in tails]
        if len(set(found)) == len(found):
            return found
    return [f"{folder.name} ({number})" for number, folder in enumerate(folders, 1)]


def check_same_data(runs: Sequence[Measured]) -> None:
    """Refuse runs that were not tested on the same records by the same protocol.

    Raises:
        UserError: the fingerprints or protocols differ.
    """
    first = runs[0]
    for other in runs[1:]:
        prints = first.data_fingerprint, other.data_fingerprint
        if not same_data(*prints):
            raise UserError(
                f"{first.run} and {other.run} were tested on different data (fingerprints "
                f"{' and '.join(map(short, prints))}); "
                "give runs of one data set, or the --data.root that both share"
            )
        if other.metrics.protocol != first.metrics.protocol:
            raise UserError(
                f"{first.run} is judged by protocol {first.metrics.protocol}, {other.run} by {other.metrics.protocol}; "
                "train them with one data.protocol"
            )
