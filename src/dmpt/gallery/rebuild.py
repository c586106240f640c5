"""A gallery for another model: its samples embedded anew, then one version that has them; until then the old stays."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lance
import pyarrow as pa
import pyarrow.compute as pc
from lance.fragment import write_fragments

from dmpt.base.errors import UserError, one_line
from dmpt.gallery.changes import Change
from dmpt.gallery.deadline import Conflict
from dmpt.gallery.done import beside, commit, shards_folder
from dmpt.gallery.failures import failures_path
from dmpt.gallery.schema import OWN, Model, schema_of
from dmpt.gallery.shards import Shard, plan
from dmpt.gallery.sources import Source
from dmpt.gallery.store import PATIENCE, Gallery

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder

_LABELS = {"key", "pid", "camera"}
"""Of our columns those that no model has made."""


def rebuild(
    gallery: Gallery,
    embedder: "Embedder",
    sources: Sequence[Source],
    embed: Callable[[list[Shard]], object],
    batch_size: int = 64,
) -> Change:
    """Embed all samples of a gallery anew; their labels and columns stay.

    What is embedded waits in a gallery of its own beside this one; killed, the same call goes on.

    Args:
        gallery: to rebuild; it is then at the version that was written.
        embedder: the model that it shall be of.
        sources: where its pictures are; the first that has a key is taken, and the first of all is then the gallery's.
        embed: ``shards.embed_shard`` with the embedder, for each of some shards.
        batch_size: samples per pass.

    Raises:
        UserError: a sample is in no source, a picture cannot be read, or others write meanwhile.
    """
    model, keys = Model.of(embedder), gallery.refresh().read(["key"]).column("key").to_pylist()
    waiting = _waiting(gallery, model)
    for source in _these(sources, keys, gallery):
        parts = plan(source, waiting, None, batch_size)
        embed(parts)
        done = commit(waiting, only={part.name(model) for part in parts})
        if done.failed:
            raise UserError(
                f"{done.failed} samples of {gallery.path} could not be embedded; {failures_path(waiting)} says which "
                "and why; mend or remove them, and give the same command again"
            )
    with gallery.writing("rebuilding"):
        gallery.refresh()
        try:
            gallery.call("rebuilding", lambda: _overwrite(gallery, Gallery(waiting), sources[0].place), PATIENCE)
        except Conflict as error:
            raise UserError(f"{gallery.path}: others wrote meanwhile; give the same command again") from error
    gallery.refresh()
    for left in (waiting, shards_folder(waiting), failures_path(waiting)):
        shutil.rmtree(left, ignore_errors=True)
    return Change(gallery.version, changed=len(gallery))


def _waiting(gallery: Gallery, model: Model) -> Path:
    """Where what one model embeds waits."""
    known = hashlib.sha256(json.dumps(model.metadata(), sort_keys=True).encode()).hexdigest()[:12]
    return beside(gallery.path, f".rebuild-{known}.lance")


def _these(sources: Sequence[Source], keys: list[str], gallery: Gallery) -> list[Source]:
    """Of each source the samples that a gallery has, and that no source before it has."""
    lacking, found = set(keys), list[Source]()
    for source in sources:
        samples = tuple(sample for sample in source.samples if sample.key in lacking)
        lacking -= {sample.key for sample in samples}
        if samples or not keys:
            found.append(replace(source, samples=samples, own={}, failures=()))
    if lacking:
        one, places = one_line(min(lacking))[:200], ", ".join(source.given for source in sources)
        raise UserError(
            f"{len(lacking)} samples of {gallery.path} are not in {places}, such as {one}; give --source for each "
            "folder that they came from, or remove them"
        )
    return found


def _overwrite(gallery: Gallery, anew: Gallery, source: str) -> None:
    """One version with the vectors of ``anew`` and the labels of ``gallery``, unless others wrote meanwhile."""
    dataset, own = gallery.dataset, [field for field in gallery.schema if field.name not in OWN]
    schema = schema_of(anew.model, own, source)
    kept = [name for name in schema.names if name in _LABELS or name not in OWN]
    labels = dataset.to_table(columns=kept)
    if pc.any(pc.invert(pc.is_in(labels.column("key"), anew.read(["key"]).column("key").combine_chunks()))).as_py():
        raise Conflict("samples were added")

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in anew.dataset.to_batches():
            at = pc.index_in(batch.column("key"), labels.column("key"))
            here = pc.is_valid(at)  # what was removed meanwhile stays so
            batch, at = batch.filter(here), at.filter(here)
            said = labels.take(at)
            columns = [
                said.column(name).combine_chunks() if name in kept else batch.column(name) for name in schema.names
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches())
    fragments = write_fragments(reader, str(gallery.path), mode="overwrite", schema=schema)
    lance.LanceDataset.commit(
        str(gallery.path),
        lance.LanceOperation.Overwrite(schema, fragments),
        read_version=dataset.version,
        max_retries=0,  # and not on top of what others wrote
        commit_message="rebuilt",
    )
