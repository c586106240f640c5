"""Own data as a folder: a subfolder per modality, identity and camera in the names of files or folders."""

import re
from collections.abc import Sequence
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.layouts.folders import (
    SUFFIXES,
    Grammar,
    Notes,
    clutter,
    contents,
    records_in,
    refuse_empty,
    subfolders,
)
from dmpt.data.records import Records, Splits
from dmpt.settings.modalities import ALSO, MODALITIES, meant

_REST = r"c(?P<camera>\d{1,18})(_s(?P<scene>\d{1,18}))?(_.*)?"
_NAME = Grammar(
    r"(?P<pid>\d{1,18})_" + _REST,
    "PID_cCAM[_sSCENE][_ANYTHING] (for example 12_c3_0001.jpg or 12_c3_s7_0001.jpg)",
)
_NAME_IN_IDENTITY = Grammar(
    r"((?P<pid>\d{1,18})_)?" + _REST,
    "[PID_]cCAM[_sSCENE][_ANYTHING] (for example c3_0001.jpg: the identity is its folder's, the camera is needed)",
)


def read_folder(root: Path, notes: Notes) -> Splits:
    """Read ``{rgb,nir,tir}/PID_cCAM[_sSCENE][_ANYTHING].*``, in the folder itself or in one for each split.

    A folder per identity, named with its number, may lie in those of the modalities (``rgb/12/c3_0001.jpg``) or around
    them (``12/rgb/c3_0001.jpg``); the files' names need not repeat it.

    Splits are ``train`` and ``test``, or ``train``, ``query`` and ``gallery``; ``train`` may be absent. Images of one
    sample have the same name, and lie in folders of the same name. A folder or image that is not there is a missing
    modality.

    Raises:
        UserError: neither modalities nor splits are there, or both, or one of them twice or by another name.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; set data.root to the folder that holds {', '.join(MODALITIES)}")
    there = _spelled(root, ("train", "test", "query", "gallery"))
    if own := [*_modalities(root), *_around(root)]:
        if there:
            raise UserError(f"{root} holds {own[0]} beside {min(there)}; move all images into splits, or none")
        return Splits(unsplit=_read_split(root, notes))
    has_test, has_both = "test" in there, {"query", "gallery"} <= there.keys()
    if has_test == has_both:
        what = "test as well as query and gallery" if has_test else f"neither of {', '.join(MODALITIES)}, nor test"
        raise UserError(
            f"{root} holds {what} ({contents(root)}); set data.root to a folder with rgb, nir, tir, or with train and "
            "test (or query and gallery) that hold them"
        )
    wanted = [split for split in ("train", *(["test"] if has_test else ["query", "gallery"])) if split in there]
    parts = {split: _read_split(root / there[split], notes) for split in wanted}
    query, gallery = (parts["test"],) * 2 if has_test else (parts["query"], parts["gallery"])
    return Splits(parts.get("train", ()), query, gallery)


def _spelled(folder: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Those of the wanted folders that are there, as they are spelled; none may be there twice."""
    names = [path.name for path in subfolders(folder)]
    spelled = {one: [name for name in names if name.lower() == one] for one in wanted}
    for twice in spelled.values():
        if len(twice) > 1:
            raise UserError(f"{folder} holds {' and '.join(twice)}; move the images into one of them")
    return {one: found[0] for one, found in spelled.items() if found}


def _modalities(folder: Path) -> dict[str, str]:
    """The modalities' folders, as they are spelled; one by another name would silently be missing."""
    for name in (path.name for path in subfolders(folder)):
        right = meant(name, MODALITIES, ALSO)
        if right is not None and name.lower() != right:
            raise UserError(f"{folder} holds a folder {name}; rename it to {right}, or to something else if it is none")
    return _spelled(folder, MODALITIES)


def _identities(folder: Path) -> list[str]:
    return [path.name for path in subfolders(folder) if re.fullmatch(r"\d{1,18}", path.name, re.ASCII)]


def _around(folder: Path) -> dict[str, dict[str, str]]:
    """The identities' folders that hold folders of modalities."""
    return {name: modalities for name in _identities(folder) if (modalities := _modalities(folder / name))}


def _read_split(folder: Path, notes: Notes) -> Records:
    names, around = _modalities(folder), _around(folder)
    if not names and not around:
        raise UserError(f"{folder} holds none of {', '.join(MODALITIES)} ({contents(folder)}); give one of them")
    records = [*records_in(folder, names, _NAME, notes, subsets=True)]
    inside = sorted({name for modality in names.values() for name in _identities(folder / modality)})
    below = [(name, folder, {m: f"{spelled}/{name}" for m, spelled in names.items()}) for name in inside]
    for name, home, places in [*below, *((name, folder / name, places) for name, places in around.items())]:
        records += records_in(home, places, _NAME_IN_IDENTITY, notes, identity=name, subsets=True)
    for spelled in names.values():
        _not_barren(folder / spelled, notes)
    refuse_empty(records, folder, notes)
    return tuple(records)


def _not_barren(folder: Path, notes: Notes) -> None:
    """A modality whose folder is full, of arrays or of folders named with words, is not missing on purpose."""
    looked = any(folder in (holding, holding.parent) for holding in {path.parent for path in notes.seen})
    if not looked and any(not clutter(path.name) for path in folder.iterdir()):
        notes.problems.append(
            f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}), nor a folder of an identity, named with its "
            f"number, that does ({contents(folder)}); rename or convert them, take the folder away, or write a manifest"
        )
