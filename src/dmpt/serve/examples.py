"""What a gallery holds, for who sees it first: in numbers, and as a few of its rows."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dmpt.gallery.history import stats
from dmpt.gallery.store import Gallery
from dmpt.gallery.times import TIME


def summary(gallery: Gallery) -> dict[str, Any]:
    """In numbers."""
    found = stats(gallery)
    return {
        "rows": found.rows,
        "identities": found.pids,
        "unlabelled": found.unlabelled,
        "cameras": found.cameras,
        "modalities": found.modalities,
        "time": _span(gallery),
        "columns": found.columns,
    }


def _span(gallery: Gallery) -> dict[str, str] | None:
    """First and last moment; None where there are none."""
    if TIME not in gallery.schema.names or not pa.types.is_timestamp(gallery.schema.field(TIME).type):
        return None
    ends = pc.min_max(gallery.read([TIME]).column(TIME)).as_py()
    return None if ends["min"] is None else {"first": ends["min"].isoformat(), "last": ends["max"].isoformat()}


def keys_of_examples(gallery: Gallery, count: int) -> list[str]:
    """The fullest row of each of some identities, spread evenly over all; without labels, rows so spread."""
    table = gallery.read(["key", "pid", "present"])
    if not len(table):
        return []
    codes = table.column("present").to_numpy()
    full = np.array([int(code).bit_count() for code in range(256)])[codes]
    table = table.take(pa.array(np.argsort(-full, kind="stable")))
    pids = table.column("pid").combine_chunks()
    if pids.null_count < len(pids):
        own = pc.unique(pids.drop_null()).sort()
        chosen = own.take(_spread(len(own), count))
        rows = pc.index_in(chosen, pids)
    else:
        rows = _spread(len(table), count)
    return list(table.column("key").take(rows).to_pylist())


def _spread(length: int, count: int) -> pa.Array:
    """Places of ``count`` things in a list, as far apart as can be."""
    return pa.array(np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(np.int64)))
