"""Own data as a folder: a subfolder per modality, identity and camera in the file names."""

import difflib
import re
from pathlib import Path

from dmpt.data.listing import Grammar, contents, filled, pair, subfolders
from dmpt.data.manifest import ALSO, MODALITIES, Record, Records, Splits
from dmpt.errors import UserError

_NAME = Grammar(
    re.compile(r"(?P<pid>\d{1,18})_c(?P<camera>\d{1,18})(_s(?P<scene>\d{1,18}))?(_.*)?", re.ASCII),
    "PID_cCAM[_sSCENE][_ANYTHING] (for example 12_c3_0001.jpg or 12_c3_s7_0001.jpg)",
)


def read_folder(root: Path, problems: list[str]) -> Splits:
    """Read ``{rgb,nir,tir}/PID_cCAM[_sSCENE][_ANYTHING].*``, in the folder itself or in one for each split.

    Splits are ``train`` and ``test``, or ``train``, ``query`` and ``gallery``; ``train`` may be absent. Images of one
    triplet have the same name. A folder or image that is not there is a missing modality.

    Args:
        root: the folder.
        problems: gets a line for each image that is misnamed or there twice.

    Raises:
        UserError: neither modalities nor splits are there, or both, or a modality is there twice.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; set data.root to the folder that holds {', '.join(MODALITIES)}")
    spelled = {folder.name.lower(): folder for folder in subfolders(root)}
    there = spelled.keys()
    if own := _modalities(root):
        if beside := sorted(there & {"train", "test", "query", "gallery"}):
            raise UserError(f"{root} holds {next(iter(own))} beside {beside[0]}; move all images into splits, or none")
        return Splits(unsplit=_read_split(root, problems))
    has_test, has_both = "test" in there, {"query", "gallery"} <= there
    if has_test == has_both:
        what = "test as well as query and gallery" if has_test else f"neither of {', '.join(MODALITIES)}, nor test"
        raise UserError(
            f"{root} holds {what} ({contents(root)}); set data.root to a folder with rgb, nir, tir, or with train and "
            "test (or query and gallery) that hold them"
        )
    train = _read_split(spelled["train"], problems) if "train" in there else ()
    if has_test:
        test = _read_split(spelled["test"], problems)
        return Splits(train, test, test)
    return Splits(train, _read_split(spelled["query"], problems), _read_split(spelled["gallery"], problems))


def _modalities(folder: Path) -> dict[str, str]:
    """The folders that are there, as they are spelled.

    Raises:
        UserError: one is there twice, or by another name: it would be a modality that is silently missing.
    """
    names = sorted(path.name for path in subfolders(folder))
    for name in {name.lower(): name for name in names if name.lower() not in MODALITIES}.values():
        if meant := [*difflib.get_close_matches(name.lower(), MODALITIES, 1), ALSO.get(name.lower())][0]:
            raise UserError(f"{folder} holds a folder {name}; rename it to {meant}, or to something else if it is none")
    spelled = {modality: [name for name in names if name.lower() == modality] for modality in MODALITIES}
    for twice in spelled.values():
        if len(twice) > 1:
            raise UserError(f"{folder} holds {' and '.join(twice)}; move the images into one of them")
    return {modality: found[0] for modality, found in spelled.items() if found}


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
