"""Samples to vectors: files are read and decoded in threads while the model works."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dmpt.base.errors import UserError, one_line
from dmpt.data.images import read_record
from dmpt.gallery.sources import Failure, Sample
from dmpt.retrieval.embeddings import Embeddings
from dmpt.runtime.runtime import Images, Present
from dmpt.settings.modalities import MODALITIES

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder

_AHEAD = 2
"""Batches that are decoded before the model asks for them."""


_NOT_FINITE = "the model's numbers overflow on it; look at its pictures, or embed with --precision fp32"


class Batch(NamedTuple):
    """What became of some samples."""

    rows: list[int]  # those that were embedded, as positions in the list of all
    embeddings: Embeddings | None  # of these; None where there are none
    contents: list[str]  # of these: sha256 of their pictures
    kept: int  # number of samples whose content is known already
    failures: list[Failure]


def embedded(
    model: "Embedder",
    samples: Sequence[Sample],
    root: Path,
    *,
    known: Mapping[str, str | None] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> Iterator[Batch]:
    """Embed samples; what cannot be read is told, and the rest goes on.

    A sample of which one picture is broken is not embedded: what is left of it would be another sample.

    Args:
        model: of ``dmpt.load``; modalities that it does not read are left out.
        samples: in the order that is wanted.
        root: the folder that they lie in, resolved (``Source.root``).
        known: by key, the content of samples that need not be embedded again.
        batch_size: samples per pass of the model.
        workers: threads that read and decode; None = one per core.

    Yields:
        For each ``batch_size`` samples, in order, what became of them.
    """
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, "decode")
    coming: deque[_Coming] = deque()
    try:
        for start in range(0, len(samples), batch_size):
            coming.append(_Coming(model, pool, samples[start : start + batch_size], start, root, known or {}))
            if len(coming) > _AHEAD:
                yield coming.popleft().finished()
        while coming:
            yield coming.popleft().finished()
    finally:
        pool.shutdown(cancel_futures=True)


class _Coming:
    """A batch that is being decoded."""

    def __init__(
        self,
        model: "Embedder",
        pool: ThreadPoolExecutor,
        samples: Sequence[Sample],
        start: int,
        root: Path,
        known: Mapping[str, str | None],
    ) -> None:
        self._model, self._start, self._keys = model, start, [sample.key for sample in samples]
        shape = (len(MODALITIES), len(samples), 3, *model.data.size)
        self._images, self._present = np.zeros(shape, np.float32), np.zeros(shape[:2], np.bool_)
        self._read: list[Future[str | Failure | None]] = [
            pool.submit(_read, model, sample, root, known, self._images[:, row], self._present[:, row])
            for row, sample in enumerate(samples)
        ]

    def finished(self) -> Batch:
        """Wait for it and embed it."""
        outcomes: list[str | Failure | None] = [future.result() for future in self._read]
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        contents = {row: outcome for row, outcome in enumerate(outcomes) if isinstance(outcome, str)}
        kept, rows, embeddings = outcomes.count(None), list(contents), None
        if rows:
            images, present = self._images, self._present
            if len(rows) < len(outcomes):
                images, present = images[:, rows], present[:, rows]
            embeddings = self._model.encode(images, present)
            finite = np.isfinite(embeddings.flat).all(axis=1)
            if not finite.all():
                failures += [Failure(self._keys[row], _NOT_FINITE) for row in np.array(rows)[~finite]]
                rows, embeddings = list(np.array(rows)[finite]), embeddings[np.flatnonzero(finite)]
        return Batch([self._start + row for row in rows], embeddings, [contents[row] for row in rows], kept, failures)


def _read(
    model: "Embedder", sample: Sample, root: Path, known: Mapping[str, str | None], images: Images, present: Present
) -> str | Failure | None:
    """Its content, once its pictures are in ``images (3, 3, H, W)``; None where it is known."""
    sample = sample.seen_by(model.modalities)
    if not sample.paths:
        return Failure(sample.key, f"has none of {', '.join(model.modalities)}, which the model reads")
    try:
        files = sample.contents(root)
        content = sample.digest(files)
        if known.get(sample.key) == content:
            return None
        decoded = read_record(sample.record, model.value_range, files)
    except UserError as error:
        return Failure(sample.key, one_line(str(error)))
    places = {name: MODALITIES.index(name) for name in decoded}
    model.transform(decoded, {name: images[m] for name, m in places.items()})
    present[list(places.values())] = True
    return content
