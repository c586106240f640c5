"""RGBNT100 and RGBN300: vehicles, one file with the modalities side by side in columns of 256 pixels."""

import re
from collections.abc import Sequence
from pathlib import Path

from dmpt.data.layouts.folders import Grammar, filled, home, images
from dmpt.data.layouts.notes import Notes
from dmpt.data.records import Record, Records, Splits

#: Pixel columns in a picture of 768 x 128 (RGBNT100) or, without the last, 512 x 128 (RGBN300).
COLUMNS = {"rgb": (0, 256), "nir": (256, 512), "tir": (512, 768)}
TWO_COLUMNS = {modality: COLUMNS[modality] for modality in ("rgb", "nir")}
_NAME = Grammar(
    re.compile(r"(?P<pid>-1|\d{1,18})_c(?P<camera>\d{1,18})(_.*)?", re.ASCII),
    "PPPP_cCCCC_NNN (identity, camera, number; for example 0502_c0001_000.jpg)",
)
_TRAIN, _TESTS = "bounding_box_train", ("query", "bounding_box_test")


def read_rgbnt100(root: Path, notes: Notes) -> Splits:
    """Read ``rgbir/{bounding_box_train,query,bounding_box_test}``; the folder between may be absent."""
    return _read(root, ("RGBNT100",), COLUMNS, notes)


def read_rgbn300(root: Path, notes: Notes) -> Splits:
    """Read the same folders, with RGB and NIR alone."""
    return _read(root, ("RGBN300", "RGBNT300"), TWO_COLUMNS, notes)


def _read(root: Path, names: Sequence[str], columns: dict[str, tuple[int, int]], notes: Notes) -> Splits:
    notes.folder, there = home(root, _TRAIN, _TESTS, names)
    parts = {name: _read_split(notes.folder / name, columns, notes) for name in there}
    return Splits(*(parts.get(name, ()) for name in (_TRAIN, *_TESTS)))


def _read_split(folder: Path, columns: dict[str, tuple[int, int]], notes: Notes) -> Records:
    """Cameras are numbered as in the names, from 1."""
    twice = set[str]()
    found = images(folder, _NAME, notes, twice)
    filled(list(found), folder, notes)
    records = []
    for stem, path in found.items():
        match = _NAME.pattern.fullmatch(stem)
        assert match is not None  # images() let nothing else through
        if stem not in twice:
            paths = dict.fromkeys(columns, path)
            records.append(Record(paths, pid=int(match["pid"]), camera=int(match["camera"]), columns=columns))
    return tuple(records)
