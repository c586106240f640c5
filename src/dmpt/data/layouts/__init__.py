"""The layouts `dmpt` reads. A new one is a reader, an entry in ``DATASETS`` and a test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.data.layouts.folders import some
from dmpt.data.layouts.msvr310 import read_msvr310, read_wmveid863
from dmpt.data.layouts.notes import Notes
from dmpt.data.layouts.own_folder import read_folder
from dmpt.data.layouts.rgbnt100 import read_rgbn300, read_rgbnt100
from dmpt.data.layouts.rgbnt201 import read_market1501_mm, read_rgbnt201
from dmpt.data.layouts.table import read_manifest
from dmpt.data.layouts.walk import count
from dmpt.data.records import Dataset, Record, Records, Splits
from dmpt.data.split import split_by_identity
from dmpt.settings.config import DataConfig

#: The identity of what a benchmark left in by mistake, in the layouts whose names can say so.
JUNK = -1
_UNUSED = "lie where this layout reads none; move them to where it does (docs/data.md), or out of the folder"
_UNLISTED = "are in no row; add rows, if they belong to the data"


@dataclass(frozen=True)
class Count:
    """How much a published split holds; None = not known.

    Attributes:
        ids: different identities, distractors (identity 0) counted as one.
        samples: records.
        cameras: different cameras.
        scenes: different scenes.
    """

    ids: int | None = None
    samples: int | None = None
    cameras: int | None = None
    scenes: int | None = None


@dataclass(frozen=True)
class Layout:
    """Facts about a benchmark, and its reader.

    Attributes:
        object: what is re-identified.
        protocol: which gallery items a query ignores.
        licence: its terms.
        read: from the folder to the splits. What can be left out (a sample with a missing image, a misnamed file) it
            adds to the notes' problems, one line each, and goes on. Records of identity -1 are junk and left out later.
        known: published counts of ``train``, ``query``, ``gallery`` and ``total`` (train and gallery together).
        whole: whether images in the folder that no record uses are a mistake; a table leaves out on purpose.
    """

    object: Literal["person", "vehicle"]
    protocol: str
    licence: str
    read: Callable[[Path, Notes], Splits]
    known: Mapping[str, Count] = field(default_factory=dict)
    whole: bool = True


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

    Args:
        layout: a key of ``DATASETS``.
        root: the data set's folder, or its parent; of a manifest, also the file.
        settings: as for ``load_dataset``.

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
        useful = {id(records): tuple(record for record in records if record.pid != JUNK) for records in found}
        train, query, gallery, unsplit = (useful[id(records)] for records in found)
        taken, every = _images(train, query, gallery, unsplit), _images(*found)
        files = count(notes, taken, every - taken, _UNUSED if facts.whole else _UNLISTED)
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; check data.root and its rights") from error
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


def _images(*splits: Records) -> set[Path]:
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
    if dataset.protocol == "none" and (twice := _files(dataset.query) & _files(dataset.gallery)):
        raise UserError(
            f"{root}: {len(twice)} files are in both query and gallery, and with data.protocol none each would find "
            "itself; list query and gallery apart, or set data.protocol same_camera"
        )


def _files(records: Records) -> set[tuple[Path, ...]]:
    def files(record: Record) -> tuple[Path, ...]:
        return tuple(record.paths.values())

    return {files(record) for record in records}


# Where they are published is in docs/data.md. The counts of RGBNT201, RGBNT100 and MSVR310 are from the file names in
# IDEA's captions (github.com/924973292/IDEA, commit 4e65520), queries of RGBNT100 as papers print them, of MSVR310 by
# CCNet's list; Market1501-MM is Market-1501's standard split as a loader prints it (github.com/Syliz517/CLIP-ReID,
# issue 52); RGBN300 from the README of HAMNet (github.com/ttaalle/multi-modal-vehicle-Re-ID).
_UNKNOWN = "none known to us; ask its authors before you use or share it: "

DATASETS = {
    "rgbnt201": Layout(
        object="person",
        protocol="same_camera",
        licence="none stated with the download; it shows recognisable people: ask Zheng et al. (AAAI 2021)",
        read=read_rgbnt201,
        known={
            "train": Count(ids=171, samples=3951, cameras=4),
            "query": Count(ids=30, samples=836, cameras=2),
            "gallery": Count(ids=30, samples=836, cameras=2),
            "total": Count(ids=201, samples=4787),
        },
    ),
    "market1501_mm": Layout(
        object="person",
        protocol="same_camera",
        licence="none stated with the download; derived from Market-1501, whose terms hold (Zheng et al., ICCV 2015)",
        read=read_market1501_mm,
        known={
            "train": Count(ids=751, samples=12936, cameras=6),
            "query": Count(ids=750, samples=3368, cameras=6),
            "gallery": Count(ids=751, samples=15913, cameras=6),  # 750, and the distractors under 0
        },
    ),
    "rgbnt100": Layout(
        object="vehicle",
        protocol="same_camera",
        licence=_UNKNOWN + "Li et al. (AAAI 2020)",
        read=read_rgbnt100,
        known={
            "train": Count(ids=50, samples=8675, cameras=8),
            "query": Count(ids=50, samples=1715),
            "gallery": Count(ids=50, samples=8575, cameras=8),
            "total": Count(ids=100, samples=17250),
        },
    ),
    "msvr310": Layout(
        object="vehicle",
        protocol="same_scene",
        licence=_UNKNOWN + "Zheng et al. (CCNet, Information Fusion 2023)",
        read=read_msvr310,
        known={
            "train": Count(ids=155, samples=1032, cameras=8, scenes=30),
            "query": Count(ids=52, samples=591),
            "gallery": Count(ids=155, samples=1055, scenes=30),
            "total": Count(ids=310, samples=2087),
        },
    ),
    "wmveid863": Layout(
        object="vehicle",
        protocol="same_camera",
        licence=_UNKNOWN + "the authors of FACENet",
        read=read_wmveid863,
    ),
    "rgbn300": Layout(
        object="vehicle",
        protocol="same_camera",
        licence=_UNKNOWN + "Li et al. (AAAI 2020)",
        read=read_rgbn300,
        known={"total": Count(ids=300, samples=50125, cameras=8)},
    ),
    "manifest": Layout(
        object="person",
        protocol="same_camera",
        licence="whatever you have agreed with those it shows",
        read=read_manifest,
        whole=False,
    ),
    "folder": Layout(
        object="person",
        protocol="same_camera",
        licence="whatever you have agreed with those it shows",
        read=read_folder,
    ),
}
