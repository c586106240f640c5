"""What a gallery went through, version by version, and what it holds today."""

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import pyarrow.compute as pc

from dmpt.gallery.schema import OWN
from dmpt.gallery.store import PATIENCE, Gallery, size
from dmpt.settings.modalities import names_of

_NAMES = {"Rewrite": "purged", "CreateIndex": "indexed"}


@dataclass(frozen=True)
class Version:
    """One version of a gallery.

    Attributes:
        version: counted from 1.
        time: when it was written, UTC.
        what: was done.
        rows: that it has.
    """

    version: int
    time: datetime
    what: str
    rows: int


@dataclass(frozen=True)
class Stats:
    """What a gallery holds.

    Attributes:
        version: that was looked at.
        rows: samples.
        modalities: how many samples have which: ``{"rgb+nir+tir": 40, "tir": 2}``.
        pids: how many identities are labelled.
        unlabelled: samples without a pid.
        cameras: how many samples each camera has; of those whose camera is known.
        columns: of the user's own, with their types.
        versions: that there are.
        fragments: files that the rows lie in; thousands slow reading down.
        bytes: of these files.
        disk: bytes of the folder, with all earlier versions.
        adapter: sha256 of the model's tensors.
        precision: of the vectors.
        source: the folder that keys are relative to, as it was given.
    """

    version: int
    rows: int
    modalities: dict[str, int]
    pids: int
    unlabelled: int
    cameras: dict[str, int]
    columns: dict[str, str]
    versions: int
    fragments: int
    bytes: int
    disk: int
    adapter: str
    precision: str
    source: str | None


def history(gallery: Gallery) -> list[Version]:
    """All versions that there are, the oldest first.

    Raises:
        UserError: it cannot be read.
    """
    dataset = gallery.refresh().dataset
    found: list[Any] = [*gallery.call("reading its history", dataset.versions, PATIENCE)]
    changes = gallery.call("reading its history", lambda: dataset.get_transactions(len(found)), PATIENCE)
    operations = {gallery.version - back: change for back, change in enumerate(changes)}
    before, lines = 0, []
    for one in sorted(found, key=lambda version: int(version["version"])):
        number, rows = int(one["version"]), int(one["metadata"]["total_rows"])
        # Its times are of this machine's zone.
        moment = one["timestamp"].astimezone(timezone.utc)
        lines.append(Version(number, moment, _what(operations.get(number), rows, before), rows))
        before = rows
    return lines


def stats(gallery: Gallery) -> Stats:
    """What the version that ``gallery`` stands at holds.

    Raises:
        UserError: it cannot be read.
    """
    dataset, labels = gallery.dataset, gallery.read(["present", "pid", "camera"])
    sets = {
        "+".join(names_of(one["values"])): one["counts"]
        for one in pc.value_counts(labels.column("present")).to_pylist()
    }
    cameras = {one["values"]: one["counts"] for one in pc.value_counts(labels.column("camera")).to_pylist()}
    fragments = gallery.call("reading", dataset.get_fragments)
    versions = gallery.call("reading", dataset.versions, PATIENCE)
    present = next((one for one in versions if one["version"] == gallery.version), None)
    return Stats(
        version=gallery.version,
        rows=len(labels),
        modalities=dict(sorted(sets.items())),
        pids=len(pc.unique(labels.column("pid").drop_null())),
        unlabelled=labels.column("pid").null_count,
        cameras={name: cameras[name] for name in sorted(cameras.keys() - {None})},
        columns={field.name: str(field.type) for field in gallery.schema if field.name not in OWN},
        versions=len(versions),
        fragments=len(fragments),
        bytes=0 if present is None else int(present["metadata"]["total_files_size"]),
        disk=size(gallery.path),
        adapter=gallery.model.adapter,
        precision=gallery.model.precision,
        source=gallery.source,
    )


def _what(change: Any, rows: int, before: int) -> str:
    """What a version's transaction did, in a user's words; it may have been deleted."""
    if change is None:
        return "not known"
    operation, name = change.operation, type(change.operation).__name__
    said = (change.transaction_properties or {}).get("__lance_commit_message")
    if said:
        return str(said)
    if name == "Restore":
        return f"rolled back to {operation.version}"
    if name == "Append":
        return f"added {rows - before}"
    if name != "Update":
        return _NAMES.get(name, f"changed by another program ({name})")
    written = sum(fragment.num_rows for fragment in operation.new_fragments)
    if not written:
        return f"removed {before - rows}"
    new = rows - before
    parts = ([f"added {new}"] if new else []) + ([f"changed {written - new}"] if written > new else [])
    return ", ".join(parts)
