"""Own data as a folder: a subfolder per modality, identity and camera in the file names."""

import re
from collections.abc import Sequence
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.layouts.folders import Grammar, contents, filled, pair, subfolders
from dmpt.data.records import Record, Records, Splits
from dmpt.settings.modalities import ALSO, MODALITIES, meant

_NAME = Grammar(
    re.compile(r"(?P<pid>\d{1,18})_c(?P<camera>\d{1,18})(_s(?P<scene>\d{1,18}))?(_.*)?", re.ASCII),
    "PID_cCAM[_sSCENE][_ANYTHING] (for example 12_c3_0001.jpg or 12_c3_s7_0001.jpg)",
)


def read_folder(root: Path, problems: list[str]) -> Splits:
    """Read ``{rgb,nir,tir}/PID_cCAM[_sSCENE][_ANYTHING].*``, in the folder itself or in one for each split.

    Splits are ``train`` and ``test``, or ``train``, ``query`` and ``gallery``; ``train`` may be absent. Images of one
    sample have the same name. A folder or image that is not there is a missing modality.

    Args:
        root: the folder.
        problems: gets a line for each image that is misnamed or there twice.

    Raises:
        UserError: neither modalities nor splits are there, or both, or one of them twice or by another name.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; set data.root to the folder that holds {', '.join(MODALITIES)}")
    there = _spelled(root, ("train", "test", "query", "gallery"))
    if own := _modalities(root):
        if there:
            raise UserError(f"{root} holds {next(iter(own))} beside {min(there)}; move all images into splits, or none")
        return Splits(unsplit=_read_split(root, problems))
    has_test, has_both = "test" in there, {"query", "gallery"} <= there.keys()
    if has_test == has_both:
        what = "test as well as query and gallery" if has_test else f"neither of {', '.join(MODALITIES)}, nor test"
        raise UserError(
            f"{root} holds {what} ({contents(root)}); set data.root to a folder with rgb, nir, tir, or with train and "
            "test (or query and gallery) that hold them"
        )
    train = _read_split(root / there["train"], problems) if "train" in there else ()
    if has_test:
        test = _read_split(root / there["test"], problems)
        return Splits(train, test, test)
    return Splits(train, _read_split(root / there["query"], problems), _read_split(root / there["gallery"], problems))


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


def _read_split(folder: Path, problems: list[str]) -> Records:
    names = _modalities(folder)
    if not names:
        raise UserError(f"{folder} holds none of {', '.join(MODALITIES)} ({contents(folder)}); give one of them")
    found = list(pair(folder, names, _NAME, problems, subsets=True))
    filled(found, folder, problems)
    return tuple(
        Record(
            paths,
            pid=int(match["pid"]),
            camera=int(match["camera"]),
            scene=None if match["scene"] is None else int(match["scene"]),
        )
        for match, paths in found
    )
