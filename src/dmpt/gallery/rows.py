"""The way between rows of a gallery and the ``Embeddings`` that they stand for."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dmpt.base.errors import UserError, one_line
from dmpt.gallery.schema import Model, schema_of
from dmpt.gallery.times import TIME, moments
from dmpt.retrieval.embeddings import Embeddings, Features
from dmpt.settings.modalities import MODALITIES

LABEL_LENGTH = 1000
"""Characters of a pid, a camera."""
KEY_LENGTH = 4096
_OFF = 1e-3
"""A vector the square of whose length is further than this from 1 was written by something else."""
Rows = NDArray[np.bool_]
"""Which rows, ``(N,)``."""


def to_batch(
    model: Model,
    embeddings: Embeddings,
    keys: Sequence[str],
    *,
    pid: Sequence[str | None] | None = None,
    camera: Sequence[str | None] | None = None,
    content: Sequence[str | None] | None = None,
    extra: Mapping[str, Sequence[Any] | pa.Array] | None = None,
) -> pa.RecordBatch:
    """Rows of a gallery.

    Args:
        model: whose vectors they are.
        embeddings: of N samples.
        keys: N names, each once.
        pid: N labels; None = unlabelled.
        camera: N labels; None = not known.
        content: sha256 of each sample's files.
        extra: columns of the user's own, N values each. ``time`` is brought to UTC (``gallery.times``).

    Raises:
        UserError: a vector holds NaN, a key is given twice, a label is too long or no text, or a time is none.
    """
    count, features = len(embeddings), embeddings.features
    given = {"keys": keys, "pid": pid, "camera": camera, "content": content, **(extra or {})}
    for name, values in given.items():
        if values is not None and len(values) != count:
            raise UserError(f"{name} has {len(values)} values for {count} samples; give one for each")
    shared = embeddings.shared
    widths = (features.shape[1:], 0 if shared is None else shared.shape[1])
    if widths != ((len(MODALITIES), model.width), model.shared):
        raise UserError(f"these vectors have width {features.shape[2]} and the model's {model.width}; use the same")
    names = _texts("key", keys, KEY_LENGTH)
    if len(set(keys)) < count:
        double = Counter(keys).most_common(1)[0][0]
        raise UserError(f"the key {one_line(double)} is given twice; give each sample one name of its own")
    lengths = np.where(embeddings.present, np.linalg.norm(features.astype(np.float64), axis=2), 0)
    whole = np.abs(np.square(lengths).sum(axis=1) - 1) < _OFF  # NaN is not
    whole &= ((lengths > 0) == embeddings.present).all(axis=1)
    if shared is not None:
        whole &= _is_unit(shared)
    if not whole.all():
        key = one_line(keys[int(np.argmin(whole))])
        raise UserError(f"the vector of {key} holds NaN, or has no length; look at its pictures, or embed with fp32")
    columns = {"key": names}
    for m, name in enumerate(MODALITIES):
        one = features[:, m] / np.where(lengths[:, m] > 0, lengths[:, m], 1)[:, None]
        columns[name] = _vectors(one.astype(np.float32), embeddings.present[:, m])
    columns["lengths"] = _vectors(lengths.astype(np.float32), None)
    columns["present"] = pa.array(embeddings.codes.astype(np.uint8))
    if shared is not None:
        columns["shared"] = _vectors(shared, None)
    for name, values in (("pid", pid), ("camera", camera)):
        columns[name] = to_labels(name, [None] * count if values is None else values)
    columns["content"] = pa.array([None] * count if content is None else list(content), pa.string())
    columns["adapter"] = pa.array([model.adapter] * count, pa.string())
    own = {name: _column(name, values) for name, values in (extra or {}).items()}
    schema = schema_of(model, [pa.field(name, column.type) for name, column in own.items()])
    return pa.RecordBatch.from_arrays([*columns.values(), *own.values()], schema=schema)


def to_embeddings(table: pa.Table | pa.RecordBatch, where: str = "the gallery") -> Embeddings:
    """What was put in: each number of ``features`` within 2^-22 of its own size, the rest as it was.

    Args:
        table: rows with the columns of vectors; its metadata are those of a gallery.
        where: what the user calls it.

    Raises:
        UserError: a row was not written by dmpt: NaN, a length other than 1, or ``present`` that contradicts nulls.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    model = Model.read(table.schema, where)
    lengths, _ = _matrix(table.column("lengths"), len(MODALITIES))
    codes = table.column("present").to_numpy()
    present = (codes[:, None] >> np.arange(len(MODALITIES)) & 1).astype(np.bool_)
    wrong = {"present is 0 or no set of modalities": (codes == 0) | (codes >= 1 << len(MODALITIES))}
    wrong["lengths are not those of an item"] = ~(np.abs(np.square(lengths).sum(axis=1) - 1) < _OFF)
    features = np.empty((len(table), len(MODALITIES), model.width), np.float32)
    for m, name in enumerate(MODALITIES):
        vectors, here = _matrix(table.column(name), model.width)
        wrong[f"present contradicts {name}"] = (here != present[:, m]) | (here != (lengths[:, m] > 0))
        wrong[f"{name} is not of length 1"] = here & ~_is_unit(vectors)
        np.multiply(vectors, lengths[:, m, None], out=features[:, m])
    shared = None
    if model.shared:
        shared, here = _matrix(table.column("shared"), model.shared)
        wrong["shared is missing, or not of length 1"] = ~here | ~_is_unit(shared)
    for what, rows in wrong.items():
        if rows.any():
            key = table.column("key")[int(np.argmax(rows))].as_py() if "key" in table.column_names else "a row"
            raise UserError(
                f"{where}: {one_line(str(key))} was changed by another program: {what}; remove it, or dmpt gallery "
                "rollback to an earlier version"
            )
    return Embeddings(features, present, shared, model.standardisation)


def to_labels(name: str, values: Sequence[str | None]) -> pa.Array:
    """A column of labels, whose ``name`` is for messages: text of at most ``LABEL_LENGTH`` characters, or null.

    Raises:
        UserError: one is longer, empty, or no text.
    """
    return _texts(name, values, LABEL_LENGTH)


def _is_unit(vectors: Features) -> Rows:
    """Which rows have length 1; NaN has none."""
    squares: Rows = np.abs(np.einsum("nd,nd->n", vectors, vectors) - 1) < _OFF
    return squares


def _vectors(rows: Features, here: Rows | None) -> pa.Array:
    """``(N, D)`` as a column, null where not ``here``."""
    mask = None if here is None else pa.array(~here)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1], mask=mask)


def _matrix(column: pa.ChunkedArray, width: int) -> tuple[Features, Rows]:
    """A column as ``(N, width)``, zeros where null, and where it is not null."""
    found = np.zeros((len(column), width), np.float32)
    here = np.ones(len(column), np.bool_)
    start = 0
    for chunk in column.chunks:
        rows = slice(start, start := start + len(chunk))
        # What a null holds is anything; and ``values`` knows nothing of a slice.
        here[rows] = chunk.is_valid().to_numpy(zero_copy_only=False)
        values = chunk.values.to_numpy(zero_copy_only=False)[chunk.offset * width :][: len(chunk) * width]
        np.copyto(found[rows], values.reshape(-1, width), where=here[rows, None])
    return found, here


def _texts(name: str, values: Sequence[str | None], longest: int) -> pa.Array:
    """A column of names or labels."""
    for row, value in enumerate(values):
        if value is None and name != "key":
            continue
        if not isinstance(value, str) or not value:
            raise UserError(f"{name}, row {row}: {one_line(str(value))[:80]!r} is no text; give text, or nothing")
        if len(value) > longest:
            raise UserError(f"{name}, row {row}: {len(value)} characters; give at most {longest}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{name}, row {row}: {one_line(value)[:80]} is not Unicode; rename it") from error
    return pa.array(list(values), pa.string())


def _column(name: str, values: Sequence[Any] | pa.Array) -> pa.Array:
    """A column of the user's own, moments where it is called so."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if name == TIME:
        return moments(values.to_pylist() if isinstance(values, pa.Array) else values)
    if isinstance(values, pa.Array):
        return values
    try:
        return pa.array(list(values))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, UnicodeEncodeError) as error:
        raise UserError(f"column {one_line(name)}: {one_line(str(error))}; give values of one type") from error
