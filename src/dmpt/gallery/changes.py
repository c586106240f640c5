"""What changes a gallery: add, remove, label, roll back. Each call is one version, or none where nothing changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmpt.base.errors import UserError, one_line
from dmpt.gallery.rows import to_batch, to_labels
from dmpt.gallery.schema import OWN, Model
from dmpt.gallery.store import Gallery
from dmpt.retrieval.embeddings import Embeddings

_MODELS = {*OWN} - {"pid", "camera"}
"""Columns that an upsert replaces in any case."""


@dataclass(frozen=True)
class Change:
    """What became of a write.

    Attributes:
        version: of the gallery, after it.
        added: rows that are new.
        changed: rows that were there and were written anew.
        removed: rows that are gone.
    """

    version: int
    added: int = 0
    changed: int = 0
    removed: int = 0


class Newer(UserError):
    """Somebody else wrote since."""


def add(
    gallery: Gallery,
    model: Model,
    embeddings: Embeddings,
    keys: Sequence[str],
    *,
    pid: Sequence[str | None] | None = None,
    camera: Sequence[str | None] | None = None,
    content: Sequence[str | None] | None = None,
    extra: Mapping[str, Sequence[Any] | pa.Array] | None = None,
) -> Change:
    """Put samples into a gallery: rows whose key is there are replaced, the others are new.

    A pid, a camera or a column of the user's that is not given for a row, or None, stays what it was.

    Args:
        gallery: to write to; it is then at the version that was written.
        model: whose vectors these are (``Model.of``).
        embeddings: of N samples.
        keys: N names, each once.
        pid: N labels.
        camera: N labels.
        content: sha256 of each sample's files.
        extra: columns of the user's own that the gallery has.

    Raises:
        UserError: the gallery holds vectors of another model, or ``to_batch`` refuses the rows, or the store the write.
    """
    return add_rows(
        gallery, model, to_batch(model, embeddings, keys, pid=pid, camera=camera, content=content, extra=extra)
    )


def add_rows(gallery: Gallery, model: Model, batch: pa.RecordBatch) -> Change:
    """``add``, of rows that ``to_batch`` made."""
    if not batch.num_rows:
        return Change(gallery.version)

    def upsert(dataset: lance.LanceDataset) -> dict[str, int]:
        gallery.model.refuse(model, str(gallery.path))
        rows = completed(dataset, batch, gallery)
        merge = dataset.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
        return dict(merge.conflict_retries(0).execute(rows))

    done = gallery.write("adding", upsert, batch.num_rows)
    return Change(gallery.version, added=done["num_inserted_rows"], changed=done["num_updated_rows"])


def remove(gallery: Gallery, keys: Sequence[str] = (), *, pids: Sequence[str] = (), where: str | None = None) -> Change:
    """Take rows out of the newest version; earlier versions still have them (``gallery.purge`` leaves none).

    Args:
        gallery: to write to.
        keys: of these rows.
        pids: of rows with these labels.
        where: of rows that meet a condition in SQL. What is given must all hold.

    Raises:
        UserError: nothing is named, a key or pid is not there, or the condition cannot be read.
    """
    gallery.refresh()
    chosen = keys_of(gallery, keys, pids=pids, where=where)
    if not chosen:
        return Change(gallery.version)
    table = pa.table({"key": pa.array(chosen, pa.string())})

    def delete(dataset: lance.LanceDataset) -> dict[str, int]:
        return dict(dataset.merge_insert("key").when_matched_delete().conflict_retries(0).execute(table))

    done = gallery.write("removing", delete, len(chosen))
    return Change(gallery.version, removed=done["num_deleted_rows"])


def label(gallery: Gallery, labels: Mapping[str, str | None], only_unlabelled: bool = False) -> Change:
    """Say who is on samples, whatever was said before.

    Args:
        gallery: to write to.
        labels: pid by key; None = unlabelled.
        only_unlabelled: a sample that has a label keeps it.

    Raises:
        UserError: a key is not there, or a label is too long or no text.
    """
    if not labels:
        return Change(gallery.version)
    keys_of(gallery.refresh(), list(labels))
    table = pa.table({"key": pa.array(list(labels), pa.string()), "pid": to_labels("pid", list(labels.values()))})

    condition = "target.pid IS NULL" if only_unlabelled else None

    def update(dataset: lance.LanceDataset) -> dict[str, int]:
        merge = dataset.merge_insert("key").when_matched_update_all(condition)
        return dict(merge.conflict_retries(0).execute(table))

    done = gallery.write("labelling", update, len(labels))
    return Change(gallery.version, changed=done["num_updated_rows"])


def rollback(gallery: Gallery, version: int, newest: int | None = None) -> Change:
    """Make an earlier version the newest, as a version of its own: nothing in between is lost.

    Args:
        gallery: to write to.
        version: to go back to.
        newest: which must be the newest just then, as of who takes back a write of his own; None = any.

    Raises:
        Newer: another one is.
        UserError: there is no such version.
    """
    Gallery(gallery.path, version, gallery.deadline)  # which looks at it

    def restore(dataset: lance.LanceDataset) -> None:
        if newest not in (None, int(dataset.version)):
            raise Newer(f"{gallery.path} is at version {dataset.version}: somebody wrote after version {newest}")
        dataset.checkout_version(version).restore()  # type: ignore[no-untyped-call]

    gallery.write("rolling back", restore, alone=newest is not None)  # nobody writes between the look and the restoring
    return Change(gallery.version)


def keys_of(
    gallery: Gallery, keys: Sequence[str] = (), *, pids: Sequence[str] = (), where: str | None = None
) -> list[str]:
    """Rows that a user names, in the table's order.

    Args:
        gallery: to look in.
        keys: of these.
        pids: of those with these labels.
        where: of those that meet a condition in SQL. What is given must all hold.

    Raises:
        UserError: nothing is named, a key or pid is not there, or the condition cannot be read.
    """
    if not keys and not pids and where is None:
        raise UserError("nothing is named; give keys, --pid or --where")
    every = gallery.read(["key", "pid"])
    chosen = every
    for name, given in (("key", keys), ("pid", pids)):
        if not given:
            continue
        wanted = pa.array(list(given), pa.string())
        if lacking := wanted.filter(pc.invert(pc.is_in(wanted, every.column(name)))).to_pylist():
            one = min(lacking)
            raise UserError(
                f"{gallery.path} has no {name} {one_line(one)[:200]}; dmpt gallery export lists what it has"
            )
        chosen = chosen.filter(pc.is_in(chosen.column(name), wanted))
    if where is not None:
        chosen = chosen.filter(pc.is_in(chosen.column("key"), gallery.read(["key"], where).column("key")))
    return list(chosen.column("key").to_pylist())


def completed(dataset: lance.LanceDataset, batch: pa.RecordBatch | pa.Table, gallery: Gallery) -> pa.Table:
    """Rows with all columns of the gallery; what they do not say is what the rows of their keys say today."""
    schema = dataset.schema
    if unknown := [name for name in batch.schema.names if name not in schema.names]:
        raise UserError(
            f"{gallery.path} has no column {one_line(unknown[0])}; it has {', '.join(schema.names)}; columns are fixed "
            "when a gallery is made"
        )
    said = {name for name in batch.schema.names if not batch.column(name).null_count}
    unsaid = [name for name in schema.names if name not in {*_MODELS, *said}]
    keys, columns = batch.column("key"), {}
    today = pa.table({})
    if unsaid:  # keys of all rows: a condition with a thousand keys would be slower
        there = gallery.call("reading", lambda: dataset.to_table(columns=["key"])).column("key")
        rows = pc.index_in(there, keys).is_valid()
        found = np.flatnonzero(rows.to_numpy(zero_copy_only=False))
        if len(found):
            today = gallery.call("reading", lambda: dataset.take(found, columns=unsaid))
            at = pc.index_in(keys, there.filter(rows))
    for field in schema:
        column = batch.column(field.name) if field.name in batch.schema.names else pa.nulls(len(keys), field.type)
        if column.type != field.type:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise UserError(
                    f"column {one_line(field.name)} holds {field.type} in {gallery.path}, not {column.type}: "
                    f"{one_line(str(error))[:200]}"
                ) from error
        if field.name in unsaid and len(today):
            column = pc.coalesce(column, pc.take(today.column(field.name), at))
        columns[field.name] = column
    return pa.table(list(columns.values()), schema=schema)
