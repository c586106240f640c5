"""Who is asked for: the shots of one person or vehicle, or many of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmpt.base.errors import UserError
from dmpt.base.terminal import track, warn
from dmpt.data.records import Record
from dmpt.gallery.reading import embedded
from dmpt.gallery.sources import read_source
from dmpt.retrieval.embeddings import Embeddings
from dmpt.settings.modalities import MODALITIES

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Query:
    """One person or vehicle.

    Attributes:
        name: what a result calls it.
        shots: where its pictures are, S of them.
        embeddings: of the S shots.
    """

    name: str
    shots: Sequence[Record]
    embeddings: Embeddings


def of_shots(embedder: "Embedder", pictures: Mapping[str, Sequence[Path | None]]) -> Query:
    """One whose shots are files, by modality.

    Raises:
        UserError: numbers of pictures differ, or one cannot be used.
    """
    given = {name: list(pictures[name]) for name in MODALITIES if pictures.get(name)}
    embeddings = embedder.embed(**given)  # type: ignore[arg-type]
    shots = [
        Record({name: path for name, own in given.items() if (path := own[row])}, 0, 0)
        for row in range(len(embeddings))
    ]
    return Query(shots[0].name, shots, embeddings)


def of_source(embedder: "Embedder", source: Path, modality: str | None = None) -> list[Query]:
    """Each sample of a folder or a manifest, as ``gallery.sources.read_source`` reads it; failures are notes.

    Raises:
        UserError: it holds no samples, or none that can be used.
    """
    found = read_source(source, modality=modality)
    for failure in found.failures:
        warn(f"left out: {failure.reason}")
    queries = list[Query]()
    batches = embedded(embedder, found.samples, found.root, batch_size=_BATCH)
    for batch in track(batches, "queries", -(-len(found.samples) // _BATCH)):
        for failure in batch.failures:
            warn(f"left out: {failure.reason}")
        for place, row in enumerate(batch.rows):
            assert batch.embeddings is not None  # there are rows
            sample = found.samples[row]
            queries.append(Query(sample.key, [sample.record], batch.embeddings[place : place + 1]))
    if not queries:
        raise UserError(f"none of the samples of {found.given} can be used; mend their pictures, or give others")
    return queries
