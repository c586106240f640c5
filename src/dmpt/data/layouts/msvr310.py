"""MSVR310 and WMVeID863: vehicles, a folder per identity with one folder per modality in it."""

import re
from pathlib import Path

from dmpt.data.layouts.folders import Grammar, filled, home, pair, subfolders
from dmpt.data.layouts.notes import Notes
from dmpt.data.records import Record, Records, Splits

FOLDERS = {"rgb": "vis", "nir": "ni", "tir": "th"}
_MSVR310 = Grammar(
    re.compile(r"(?P<pid>\d{4})_s(?P<scene>\d{3})_v(?P<camera>\d)_\d+", re.ASCII),
    "PPPP_sSSS_vV_NNN (identity, scene, view, number; for example 0019_s012_v0_000.jpg)",
)
_WMVEID863 = Grammar(
    re.compile(r".*?v+(?P<camera>\d).*", re.ASCII),
    "with the camera behind a v (for example v2)",
)


def read_msvr310(root: Path, notes: Notes) -> Splits:
    """Read ``{bounding_box_train,query3,bounding_box_test}/PID/{vis,ni,th}``.

    The identity is in the name and in the folder's; where they differ the sample is left out. Views are numbered as
    in the names, from 0.
    """
    folder, there = home(root, "bounding_box_train", ("query3", "bounding_box_test"), ("MSVR310",))
    notes.folder = folder

    def split(name: str) -> Records:
        if name not in there:
            return ()
        found = [
            item
            for folder_of_pid in subfolders(folder / name)
            for item in pair(folder_of_pid, FOLDERS, _MSVR310, notes)
        ]
        filled(found, folder / name, notes)
        records = []
        for match, paths in found:
            some = next(iter(paths.values()))
            if some.parent.parent.name == match["pid"]:
                pid, camera, scene = (int(match[part]) for part in ("pid", "camera", "scene"))
                records.append(Record(paths, pid=pid, camera=camera, scene=scene))
            else:
                notes.problems.append(
                    f"{some} is named after identity {match['pid']}, not its folder; rename or move it"
                )
        return tuple(records)

    return Splits(split("bounding_box_train"), split("query3"), split("bounding_box_test"))


def read_wmveid863(root: Path, notes: Notes) -> Splits:
    """Read ``{train,query,test}/PID/{vis,ni,th}``; the gallery is ``test``.

    The folder is the identity and the digit behind the first v of the name the camera. Modalities are paired by *name*:
    the field's loaders pair unsorted listings by position, which mixes samples up as soon as one file is missing.
    """
    folder, there = home(root, "train", ("query", "test"), ("WMVEID863", "MSVWild863"))
    notes.folder = folder

    def split(name: str) -> Records:
        if name not in there:
            return ()
        records = []
        for folder_of_pid in subfolders(folder / name):
            if not re.fullmatch(r"\d{1,18}", folder_of_pid.name, re.ASCII):
                notes.seen.update(folder_of_pid.rglob("*"))
                notes.problems.append(
                    f"{folder_of_pid} is not named with the number of an identity; rename or remove it"
                )
                continue
            pid = int(folder_of_pid.name)
            records += [
                Record(paths, pid=pid, camera=int(match["camera"]))
                for match, paths in pair(folder_of_pid, FOLDERS, _WMVEID863, notes)
            ]
        filled(records, folder / name, notes)
        return tuple(records)

    return Splits(split("train"), split("query"), split("test"))
