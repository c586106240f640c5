"""A source embedded in shards: each by itself, by whom and in whatever order, and one commit at the end.

    shards = plan(read_source("photos"), Path("g.lance"))
    for shard in shards:
        embed_shard(model, shard)
    commit(Path("g.lance"))

What a shard made waits in ``g.shards`` beside the gallery, of which it is no part before the commit: its rows in a
folder of its own, and a file NAME.json, which is written by rename, so that a shard is done or is not.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import LanceFragment

from dmpt.base.errors import UserError
from dmpt.gallery.changes import completed
from dmpt.gallery.deadline import Conflict, within
from dmpt.gallery.done import Done, shards_folder
from dmpt.gallery.reading import Batch, embedded
from dmpt.gallery.rows import to_batch
from dmpt.gallery.schema import Model
from dmpt.gallery.sources import Failure, Sample, Source
from dmpt.gallery.store import DEADLINE, PATIENCE, Gallery, create_gallery

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder

_BATCHES = 16
"""Of a shard, where nobody says how many shards there are: what a kill costs at most, and what memory holds."""


@dataclass(frozen=True, eq=False)
class Shard:
    """Some samples of a source, one after the other."""

    index: int  # 0, 1, ...
    count: int  # of shards
    source: Source
    start: int  # of the source's samples
    stop: int
    out: Path  # the gallery
    batch_size: int
    listing: str  # sha256 of all keys: shards of one commit saw the same source

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Those of this shard."""
        return self.source.samples[self.start : self.stop]

    def name(self, model: Model) -> str:
        """What its files are called: other samples, labels or vectors make others."""
        samples = [(sample.key, sample.pid, sample.camera) for sample in self.samples]
        own = {name: str(column[self.start : self.stop].to_pylist()) for name, column in self.source.own.items()}
        said = model.metadata() | {"samples": samples, "own": own, "batch": self.batch_size}
        return f"{self.index:05d}-of-{self.count:05d}.{_sha(json.dumps(said, sort_keys=True))[:16]}"


def plan(source: Source, out: Path, count: int | None = None, batch_size: int = 64) -> list[Shard]:
    """Cut a source into shards of whole batches, so that each row is the same however many there are.

    Args:
        source: its samples, in their order.
        out: the gallery that they will be in.
        count: of shards, about equal; some are empty where there are fewer batches. None = of 16 batches each.
        batch_size: samples per pass of the model.
    """
    total = len(source.samples)
    batches = -(-total // batch_size)
    count = count or max(1, -(-batches // _BATCHES))
    listing = _sha("\0".join(sample.key for sample in source.samples))
    edges = [min(total, index * batches // count * batch_size) for index in range(count + 1)]
    return [
        Shard(index, count, source, start, stop, out, batch_size, listing)
        for index, (start, stop) in enumerate(pairwise(edges))
    ]


def embed_shard(
    model: "Embedder",
    shard: Shard,
    *,
    workers: int | None = None,
    watch: Callable[[Batch], object] = lambda batch: None,
) -> Done:
    """Embed a shard, unless that is done; samples whose content the gallery has are left out.

    Args:
        model: of ``dmpt.load``.
        shard: of ``plan``. The gallery is made where it is not there, empty.
        workers: threads that read and decode; None = one per core.
        watch: is told of each batch.

    Returns:
        What is written for the commit; memory holds one shard.

    Raises:
        UserError: the gallery is of another model, has not these columns, or cannot be written to.
    """
    writer = Model.of(model)
    name, folder = shard.name(writer), shards_folder(shard.out)
    if found := Done.read(folder / f"{name}.json"):
        if found.listing != shard.listing:  # the source changed elsewhere
            found = replace(found, listing=shard.listing)
            found.write(folder / f"{name}.json")
        return found
    gallery = _opened(shard.out, writer, shard.source)
    samples, own = shard.samples, shard.source.own
    batches, kept = list[pa.RecordBatch](), 0
    failures = [*shard.source.failures] if shard.index == 0 else list[Failure]()
    for batch in embedded(
        model,
        samples,
        shard.source.root,
        known=_known(gallery, samples),
        batch_size=shard.batch_size,
        workers=workers,
    ):
        kept, failures = kept + batch.kept, [*failures, *batch.failures]
        if batch.embeddings is not None:
            taken = [samples[row] for row in batch.rows]
            at = pa.array([shard.start + row for row in batch.rows], pa.int64())
            rows = to_batch(
                writer,
                batch.embeddings,
                [sample.key for sample in taken],
                pid=[sample.pid for sample in taken],
                camera=[sample.camera for sample in taken],
                content=batch.contents,
                extra={name: column.take(at) for name, column in own.items()},
            )
            batches.append(rows)
        watch(batch)
    fragment = None
    if batches:
        table = completed(gallery.dataset, pa.Table.from_batches(batches), gallery)
        fragment = within(
            DEADLINE * PATIENCE,
            shard.out,
            "writing a shard",
            lambda: LanceFragment.create(str(folder / name), table, schema=table.schema).to_json(),
        )
    columns = gallery.schema.names
    done = Done(
        shard.index, shard.count, shard.listing, writer.metadata(), columns, len(samples), kept, fragment, failures
    )
    done.write(folder / f"{name}.json")
    return done


def vanished(out: Path, source: Source) -> int:
    """How many rows of a gallery are of samples that are not in a source; they stay.

    Raises:
        UserError: it cannot be read.
    """
    keys = Gallery(out).read(["key"]).column("key")
    there = pc.is_in(keys, pa.array([sample.key for sample in source.samples], pa.string()))
    return len(keys) - int(pc.sum(there).as_py() or 0)


def _opened(out: Path, model: Model, source: Source) -> Gallery:
    """The gallery, made where it is not there; other shards may do so at the same time."""
    if not (out / "_versions").is_dir():
        fields = [pa.field(name, column.type) for name, column in source.own.items()]
        try:
            create_gallery(out, model, fields, source.place)
        except (UserError, Conflict):
            time.sleep(1)
            if not (out / "_versions").is_dir():
                raise
    gallery = Gallery(out)
    gallery.model.refuse(model, str(out))
    return gallery


def _known(gallery: Gallery, samples: tuple[Sample, ...]) -> dict[str, str | None]:
    """Content by key, of what the gallery has among the keys from the first to the last."""
    if not samples or not len(gallery):
        return {}
    first, last = (sample.key.replace("'", "''") for sample in (samples[0], samples[-1]))
    table = gallery.read(["key", "content"], f"key >= '{first}' AND key <= '{last}'")
    return dict(zip(*(table.column(name).to_pylist() for name in ("key", "content")), strict=True))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
