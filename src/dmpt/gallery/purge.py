"""What was removed is gone for good: no earlier version stays, and no file that holds it."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import lance

from dmpt.base.errors import UserError
from dmpt.gallery.deadline import Conflict
from dmpt.gallery.failures import failures_path
from dmpt.gallery.store import PATIENCE, Gallery, size
from dmpt.gallery.vectors import forget

_OURS = {"_dmpt.lock", "_versions/latest_version_hint.json"}
"""Files of the folder that hold no rows and belong to no version."""


@dataclass(frozen=True)
class Purged:
    """What a purge left.

    Attributes:
        version: the only one that there is now.
        versions: how many are gone.
        freed: bytes.
    """

    version: int
    versions: int
    freed: int


def purge(gallery: Gallery) -> Purged:
    """Rewrite what still has removed rows, and delete every version but the newest.

    Nobody may write meanwhile; who does is waited for. Who reads an earlier version reads on at the newest. Indices are
    dropped, since they know removed rows; so is the table of what could not be embedded, which the next add makes anew.

    Args:
        gallery: to purge; it is then at the version that is left.

    Raises:
        UserError: others write for longer than the deadline, a version is tagged, or a file cannot be deleted.
    """
    with gallery.writing("purging", alone=True):
        gallery.refresh()
        before = size(gallery.path)
        try:
            versions = gallery.call("purging", lambda: _purge(gallery.dataset, gallery.path), PATIENCE)
        except Conflict as error:  # where there are no locks
            raise UserError(f"{gallery.path}: others wrote while it was purged; do it again") from error
        gallery.refresh()
        forget(gallery)  # behind: until now a search may have made them anew of an earlier version
        failures = failures_path(gallery.path)
        shutil.rmtree(failures, ignore_errors=True)
        if failures.exists():
            raise UserError(f"{failures} names samples too and could not be deleted; delete it")
        if left := gallery.call("purging", lambda: _strangers(gallery)):
            raise UserError(f"{gallery.path}: {left[0]} belongs to no version and could not be deleted; delete it")
        return Purged(gallery.version, versions, before - size(gallery.path))


def _purge(dataset: lance.LanceDataset, folder: Path) -> int:
    """How many versions are gone."""
    for index in {index.name for index in dataset.describe_indices()}:
        dataset.drop_index(index)
    dataset.checkout_latest()  # type: ignore[no-untyped-call]
    # A fragment without removed rows stays as it is, unless it is so small that it is joined with others.
    dataset.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
    dataset.checkout_latest()  # type: ignore[no-untyped-call]
    if any(fragment.num_deletions for fragment in dataset.get_fragments()):
        raise UserError(f"{dataset.uri}: rows that were removed are still in its files; do it again")
    # Unverified files are of writes that were killed, since nobody else writes now. Lance leaves their temporary ones.
    for path in folder.rglob(".tmp*"):
        with suppress(OSError):  # what stays is told
            path.unlink()
    return int(dataset.cleanup_old_versions(timedelta(0), delete_unverified=True).old_versions)


def _strangers(gallery: Gallery) -> list[str]:
    """Files of the folder that are not of the version that is left."""
    ours = {
        path.replace("\\", "/")
        for batch in gallery.dataset.tracked_files()
        for path in batch.column("path").to_pylist()
    }
    found = (path.relative_to(gallery.path).as_posix() for path in gallery.path.rglob("*") if path.is_file())
    return sorted(path for path in found if path not in ours | _OURS)
