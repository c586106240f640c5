"""Own data as a folder: a subfolder per modality, identity and camera in the names of files or folders."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.layouts.folders import SUFFIXES, Grammar, clutter, contents, filled, pair, subfolders
from dmpt.data.layouts.notes import Notes
from dmpt.data.records import Record, Records, Splits
from dmpt.settings.modalities import ALSO, MODALITIES, meant

_REST = r"c(?P<camera>\d{1,18})(_s(?P<scene>\d{1,18}))?(_.*)?"
_NAME = Grammar(
    re.compile(r"(?P<pid>\d{1,18})_" + _REST, re.ASCII),
    "PID_cCAM[_sSCENE][_ANYTHING] (for example 12_c3_0001.jpg or 12_c3_s7_0001.jpg)",
)
_NAME_IN_IDENTITY = Grammar(
    re.compile(r"((?P<pid>\d{1,18})_)?" + _REST, re.ASCII),
    "[PID_]cCAM[_sSCENE][_ANYTHING] (for example c3_0001.jpg: the identity is its folder's, the camera is needed)",
)
_IDENTITY = re.compile(r"\d{1,18}", re.ASCII)


def read_folder(root: Path, notes: Notes) -> Splits:
    """Read ``{rgb,nir,tir}/PID_cCAM[_sSCENE][_ANYTHING].*``, in the folder itself or in one for each split.

    A folder per identity, named with its number, may lie in those of the modalities (``rgb/12/c3_0001.jpg``) or around
    them (``12/rgb/c3_0001.jpg``); the files' names need not repeat it.

    Splits are ``train`` and ``test``, or ``train``, ``query`` and ``gallery``; ``train`` may be absent. Images of one
    sample have the same name, and lie in folders of the same name. A folder or image that is not there is a missing
    modality.

    Args:
        root: the folder.
        notes: get the images, and a problem for each that is misnamed or there twice.

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
    train = _read_split(root / there["train"], notes) if "train" in there else ()
    if has_test:
        test = _read_split(root / there["test"], notes)
        return Splits(train, test, test)
    return Splits(train, _read_split(root / there["query"], notes), _read_split(root / there["gallery"], notes))


def _spelled(folder: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Those of the wanted folders that are there, as they are spelled.

    Raises:
        UserError: one is there twice.
    """
    names = [path.name for path in subfolders(folder)]
    spelled = {one: [name for name in names if name.lower() == one] for one in wanted}
    for twice in spelled.values():
        if len(twice) > 1:
            raise UserError(f"{folder} holds {' and '.join(twice)}; move the images into one of them")
    return {one: found[0] for one, found in spelled.items() if found}


def _modalities(folder: Path) -> dict[str, str]:
    """The modalities' folders, as they are spelled.

    Raises:
        UserError: one is there twice, or by another name: it would be a modality that is silently missing.
    """
    for name in (path.name for path in subfolders(folder)):
        right = meant(name, MODALITIES, ALSO)
        if right is not None and name.lower() != right:
            raise UserError(f"{folder} holds a folder {name}; rename it to {right}, or to something else if it is none")
    return _spelled(folder, MODALITIES)


def _identities(folder: Path) -> list[str]:
    return [path.name for path in subfolders(folder) if _IDENTITY.fullmatch(path.name)]


def _around(folder: Path) -> dict[str, dict[str, str]]:
    """The identities' folders that hold folders of modalities."""
    return {name: modalities for name in _identities(folder) if (modalities := _modalities(folder / name))}


def _read_split(folder: Path, notes: Notes) -> Records:
    names, around = _modalities(folder), _around(folder)
    if not names and not around:
        raise UserError(f"{folder} holds none of {', '.join(MODALITIES)} ({contents(folder)}); give one of them")
    inside = sorted({name for modality in names.values() for name in _identities(folder / modality)})
    records = [*_records(folder, names, None, notes)]
    for name in inside:
        records += _records(folder, {modality: f"{spelled}/{name}" for modality, spelled in names.items()}, name, notes)
    for name, modalities in around.items():
        records += _records(folder / name, modalities, name, notes)
    for spelled in names.values():
        _not_barren(folder / spelled, notes)
    filled(records, folder, notes)
    return tuple(records)


def _not_barren(folder: Path, notes: Notes) -> None:
    """A modality whose folder is full, of arrays or of folders named with words, is not missing on purpose."""
    looked = any(folder in (holding, holding.parent) for holding in {path.parent for path in notes.seen})
    if not looked and any(not clutter(path.name) for path in folder.iterdir()):
        notes.problems.append(
            f"{folder} holds no image ({', '.join(sorted(SUFFIXES))}), nor a folder of an identity, named with its "
            f"number, that does ({contents(folder)}); rename or convert them, take the folder away, or write a manifest"
        )


def _records(folder: Path, names: dict[str, str], identity: str | None, notes: Notes) -> Iterator[Record]:
    """The samples of one folder of every modality, all of one identity where it is the folder's."""
    grammar = _NAME if identity is None else _NAME_IN_IDENTITY
    for match, paths in pair(folder, names, grammar, notes, subsets=True):
        pid = int(match["pid"] or identity or "")
        if identity is not None and pid != int(identity):
            file = next(iter(paths.values()))
            notes.problems.append(f"{file} is named after identity {pid}, not its folder {identity}; rename or move it")
            continue
        scene = None if match["scene"] is None else int(match["scene"])
        yield Record(paths, pid=pid, camera=int(match["camera"]), scene=scene)
