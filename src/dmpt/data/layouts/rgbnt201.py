"""RGBNT201 and Market1501-MM: persons, a folder per modality, the same file name in each."""

import re
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.layouts.folders import Grammar, contents, existing, filled, home, home_of_tests, homes, pair, some
from dmpt.data.layouts.notes import Notes
from dmpt.data.records import Record, Records, Splits

FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
_RGBNT201 = Grammar(
    re.compile(r"(?P<pid>\d{6})_cam(?P<camera>\d{1,18})_\d+_\d+", re.ASCII),
    "PPPPPP_camC_T_NN (identity, camera, session, number; for example 000287_cam1_0_05.jpg)",
)
_MARKET = Grammar(
    re.compile(r"(?P<pid>-1|\d{1,18})_c(?P<camera>\d).*", re.ASCII),
    "PPPP_cCsS_FFFFFF_NN (identity, camera, sequence, frame, number; for example 0002_c1s1_000451_03.jpg)",
)
#: Names of the folder in use; nobody agrees.
MARKET_NAMES = ("Market1501-MM", "Market-1501-RGBNT", "market1501_to_RGBNT201_dark", "Market-MM")


def read_rgbnt201(root: Path, notes: Notes) -> Splits:
    """Read ``train_*/{RGB,NI,TI}`` and ``test/{RGB,NI,TI}``; every test image is both query and gallery.

    A folder that holds ``test`` alone is enough to judge a model on.
    """
    found = homes(root, ("train_*",), ("RGBNT201",), depth=1)
    trains = [path for folder in found for path in sorted(folder.glob("train_*")) if path.is_dir()]
    if not trains and (alone := home_of_tests(root, ("test",), ("RGBNT201",), depth=1)):
        notes.folder = alone
        test = _read_split(alone / "test", _RGBNT201, notes)
        return Splits(query=test, gallery=test)
    if not trains:
        raise UserError(
            f"{root} holds no folder train_* ({contents(root)}); set data.root to the folder that holds it and test "
            "(RGBNT201: train_171)"
        )
    if len(trains) > 1:
        raise UserError(
            f"{root} holds more than one folder train_* ({some(trains)}); "
            "keep one, or set data.root to a folder that holds one"
        )
    notes.folder = trains[0].parent
    train = _read_split(trains[0], _RGBNT201, notes)
    test = _read_split(notes.folder / "test", _RGBNT201, notes)
    return Splits(train, test, test)


def read_market1501_mm(root: Path, notes: Notes) -> Splits:
    """Read ``{train,query,gallery}/{RGB,NI,TI}``, whatever the folder above is called.

    Distractors (identity 0) stay in the gallery.
    """
    notes.folder, there = home(root, "train", ("query", "gallery"), MARKET_NAMES)
    return Splits(**{split: _read_split(notes.folder / split, _MARKET, notes) for split in there})


def _read_split(folder: Path, grammar: Grammar, notes: Notes) -> Records:
    """Pair the images of one split; cameras are numbered as in the names, from 1."""
    for name in FOLDERS.values():
        existing(existing(folder) / name)
    found = list(pair(folder, FOLDERS, grammar, notes))
    filled(found, folder, notes)
    return tuple(Record(paths, pid=int(match["pid"]), camera=int(match["camera"])) for match, paths in found)
