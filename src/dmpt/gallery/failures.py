"""What could not be embedded, as a table beside the gallery: ``key`` and ``reason``."""

from collections.abc import Sequence
from pathlib import Path

import lance
import pyarrow as pa

from dmpt.gallery.deadline import within
from dmpt.gallery.sources import Failure
from dmpt.gallery.store import DEADLINE

_SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("reason", pa.string(), nullable=False)])


def failures_path(out: Path) -> Path:
    """``g.failures.lance`` beside ``g.lance``."""
    return out.with_name(f"{out.name.removesuffix('.lance')}.failures.lance")


def write_failures(out: Path, failures: Sequence[Failure]) -> None:
    """The newest version of the table is the last commit's; there is none where nothing ever failed.

    Raises:
        UserError: it cannot be written.
    """
    path, mode = failures_path(out), "overwrite" if failures_path(out).exists() else "create"
    if not failures and mode == "create":
        return
    table = pa.Table.from_pylist([failure._asdict() for failure in failures], schema=_SCHEMA)
    within(DEADLINE, path, "writing failures", lambda: lance.write_dataset(table, str(path), mode=mode))
