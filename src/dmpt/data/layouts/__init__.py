"""How data sets lie on disk: ``DATASETS`` names them all."""

from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.data.layouts.datasets import DATASETS, Count, Layout
from dmpt.data.layouts.folders import Notes, some
from dmpt.data.layouts.walk import count
from dmpt.data.records import Dataset, Records, Splits
from dmpt.data.split import split_by_identity
from dmpt.settings.config import DataConfig

__all__ = ["DATASETS", "Count", "Layout", "list_dataset", "load_dataset", "passed_over", "shared_pids"]

#: The identity of what a benchmark left in by mistake, in the layouts whose names can say so.
_JUNK = -1
_UNUSED = "lie where this layout reads none; move them to where it does (docs/data.md), or out of the folder"
_UNLISTED = "are in no row; add rows, if they belong to the data"


def load_dataset(
    layout: str, root: str | Path, settings: DataConfig | None = None, skipped: list[str] | None = None
) -> Dataset:
    """List a data set's files; no image is opened.

    Args:
        layout: a key of ``DATASETS``.
        root: the data set's folder, or its parent; of a manifest, also the file.
        settings: their ``object``, ``protocol``, ``test_share`` and ``split_seed`` are used; None = the defaults.
        skipped: what is wrong with single files and rows is added to this list and they are left out; None = refuse.

    Returns:
        Records sorted by file name; those of a manifest in its order.

    Raises:
        UserError: an unknown layout; a folder or file that is missing, unreadable, misnamed or there twice; an identity
            in both train and test; a protocol that the records cannot be judged by.
    """
    dataset, problems = list_dataset(layout, root, settings)
    if problems and skipped is None:
        more = f" (and {len(problems) - 1} more: dmpt check lists them)" if len(problems) > 1 else ""
        raise UserError(problems[0] + more)
    if skipped is not None:
        skipped += problems
    shared = sorted(shared_pids(dataset))
    if shared:
        raise UserError(
            f"{root}: {len(shared)} identities are in both train and test ({some(shared)}); "
            "move all images of an identity to one of them"
        )
    _check_protocol(dataset, root)
    return dataset


def shared_pids(dataset: Dataset) -> set[int]:
    """Identities in both train and test."""
    return {record.pid for record in dataset.train} & {record.pid for record in (*dataset.query, *dataset.gallery)}


def list_dataset(layout: str, root: str | Path, settings: DataConfig | None = None) -> tuple[Dataset, list[str]]:
    """List a data set's files as ``load_dataset`` does, but leave out what is wrong and go on.

    Returns:
        The records that can be used, and one line for each file or row that cannot.

    Raises:
        UserError: an unknown layout, or no data set in this folder.
    """
    if layout not in DATASETS:
        raise UserError(f"data.layout {layout!r} is unknown; choose one of: {', '.join(sorted(DATASETS))}")
    settings = settings or DataConfig()
    facts = DATASETS[layout]
    try:
        notes = Notes(expanded(root))
        found = facts.read(notes.folder, notes)
        useful = {id(records): tuple(record for record in records if record.pid != _JUNK) for records in found}
        splits = Splits(*(useful[id(records)] for records in found))
        taken = _images(splits)
        files = count(notes, taken, _images(found) - taken, _UNUSED if facts.whole else _UNLISTED)
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; check data.root and its rights") from error
    train, query, gallery, unsplit = splits
    if unsplit:
        train, query = split_by_identity(unsplit, settings.test_share, settings.split_seed)
        gallery = query
    chosen = settings.object or facts.object, settings.protocol or facts.protocol
    return Dataset(layout, *chosen, train, query, gallery, files), notes.problems


def passed_over(dataset: Dataset) -> list[str]:
    """A line where there are images that nobody reads, for those who train on or judge by the others.

    None where a table names the images: it leaves out on purpose.
    """
    found = dataset.files.passed_over if DATASETS[dataset.name].whole else ()
    more = f" (and {len(found) - 1} more such lines: dmpt check lists them)" if len(found) > 1 else ""
    return [f"{dataset.files.not_understood} images are passed over: {found[0].message}{more}"] if found else []


def _images(splits: Splits) -> set[Path]:
    return {path for records in splits for record in records for path in record.paths.values()}


def _check_protocol(dataset: Dataset, root: str | Path) -> None:
    """Refuse numbers that would mean nothing."""
    both = dataset.query is dataset.gallery
    tested = dataset.query if both else (*dataset.query, *dataset.gallery)
    if dataset.protocol == "same_scene" and (without := [record.name for record in tested if record.scene is None]):
        raise UserError(
            f"{root}: {len(without)} test images have no scene ({some(without)}), which protocol same_scene needs; "
            "add them, or set data.protocol same_camera"
        )
    if dataset.protocol == "none" and (twice := _samples(dataset.query) & _samples(dataset.gallery)):
        raise UserError(
            f"{root}: {len(twice)} files are in both query and gallery, and with data.protocol none each would find "
            "itself; list query and gallery apart, or set data.protocol same_camera"
        )


def _samples(records: Records) -> set[tuple[Path, ...]]:
    return {tuple(record.paths.values()) for record in records}
