"""Small faithful copies of the layouts, quirks included. Each writer returns the records that a reader must find.

What is expected is written out, not computed from the names, so that it can contradict a reader.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dmpt.data.records import Dataset, Record

PERSON = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
VEHICLE = {"rgb": "vis", "nir": "ni", "tir": "th"}


class Fact(NamedTuple):
    """One record: files relative to the root that was given to the writer, by modality."""

    pid: int
    camera: int
    files: dict[str, str]
    scene: int | None = None
    columns: dict[str, tuple[int, int]] | None = None


class Facts(NamedTuple):
    """What a data set holds, in the order of the files' names."""

    train: list[Fact]
    query: list[Fact]
    gallery: list[Fact]


def facts_of(dataset: Dataset, root: Path) -> Facts:
    """What a reader found, in the same terms."""
    return Facts(*([_fact(r, root) for r in split] for split in (dataset.train, dataset.query, dataset.gallery)))


def _fact(record: Record, root: Path) -> Fact:
    files = {modality: path.relative_to(root).as_posix() for modality, path in record.paths.items()}
    return Fact(record.pid, record.camera, files, record.scene, dict(record.columns) or None)


def write_image(path: Path, size: tuple[int, int] = (8, 16)) -> None:
    """A picture of its own, ``size`` = (width, height): noise seeded by its path's end; grey but for RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = list("/".join(path.parts[-3:]).encode())
    colour = path.parent.name.lower() in ("rgb", "vis") or size[0] > 256
    shape = (size[1], size[0], 3) if colour else (size[1], size[0])
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path, "JPEG", quality=95)


def _write(root: Path, facts: Sequence[Fact], size: tuple[int, int] = (8, 16)) -> None:
    # Last name first, so that a listing in the order of creation is not sorted.
    for file in sorted({file for fact in facts for file in fact.files.values()}, reverse=True):
        write_image(root / file, size)


def _in_folders(folder: str, name: str, folders: dict[str, str]) -> dict[str, str]:
    return {modality: f"{folder}/{below}/{name}" for modality, below in folders.items()}


def write_rgbnt201(root: Path) -> Facts:
    """``RGBNT201/{train_171,test}``, with clutter and one suffix in upper case."""

    def fact(split: str, name: str, pid: int, camera: int) -> Fact:
        return Fact(pid, camera, _in_folders(f"RGBNT201/{split}", name, PERSON))

    train = [
        fact("train_171", "000009_cam1_0_05.jpg", 9, 1),
        fact("train_171", "000009_cam3_1_06.jpg", 9, 3),
        fact("train_171", "000257_cam4_0_00.JPG", 257, 4),
        fact("train_171", "000328_cam2_1_10.jpg", 328, 2),
    ]
    test = [
        fact("test", "000258_cam1_0_01.jpg", 258, 1),
        fact("test", "000258_cam2_0_00.jpg", 258, 2),
        fact("test", "000299_cam1_0_30.jpg", 299, 1),
        fact("test", "000299_cam2_0_03.jpg", 299, 2),
    ]
    _write(root, train + test)
    (root / "RGBNT201/test/NI/Thumbs.db").touch()
    (root / "RGBNT201/test/TI/._000258_cam1_0_01.jpg").touch()
    return Facts(train, test, test)


def write_market1501_mm(root: Path, name: str = "Market1501-MM") -> Facts:
    """``{train,query,gallery}`` below a folder of any name, with junk (-1) and distractors (0) in the gallery."""

    def fact(split: str, file: str, pid: int, camera: int) -> Fact:
        return Fact(pid, camera, _in_folders(f"{name}/{split}", file, PERSON))

    train = [
        fact("train", "0002_c1s1_000451_03.jpg", 2, 1),
        fact("train", "0002_c6s4_000776_02.jpg", 2, 6),
        fact("train", "1500_c3s3_065887_01.jpg", 1500, 3),
    ]
    query = [fact("query", "0001_c1s1_001051_00.jpg", 1, 1), fact("query", "1501_c6s4_001902_00.jpg", 1501, 6)]
    junk = fact("gallery", "-1_c1s1_000401_03.jpg", -1, 1)
    gallery = [
        fact("gallery", "0000_c2s1_000151_01.jpg", 0, 2),
        fact("gallery", "0000_c4s6_034537_00.jpg", 0, 4),
        fact("gallery", "0001_c1s1_001051_03.jpg", 1, 1),
        fact("gallery", "0001_c2s1_000301_00.jpg", 1, 2),
        fact("gallery", "1501_c4s1_000301_00.jpg", 1501, 4),
    ]
    _write(root, [*train, *query, *gallery, junk])
    return Facts(train, query, gallery)


def write_rgbnt100(root: Path, inner: str = "RGBNT100/rgbir") -> Facts:
    """One 768 x 128 file per sample; the query is a copy of some of the gallery; junk (-1)."""
    columns = {"rgb": (0, 256), "nir": (256, 512), "tir": (512, 768)}
    return _write_columns(root, inner, columns, 768)


def write_rgbn300(root: Path, inner: str = "RGBN300/rgbir") -> Facts:
    """One 512 x 128 file per pair; otherwise as RGBNT100."""
    return _write_columns(root, inner, {"rgb": (0, 256), "nir": (256, 512)}, 512)


def _write_columns(root: Path, inner: str, columns: dict[str, tuple[int, int]], width: int) -> Facts:
    def fact(split: str, name: str, pid: int, camera: int) -> Fact:
        return Fact(pid, camera, dict.fromkeys(columns, f"{inner}/{split}/{name}"), None, columns)

    train = [
        fact("bounding_box_train", "0501_c0001_000.jpg", 501, 1),
        fact("bounding_box_train", "0501_c0008_003.jpg", 501, 8),
        fact("bounding_box_train", "0599_c0002_011.jpg", 599, 2),
    ]
    junk = fact("bounding_box_train", "-1_c0002_000.jpg", -1, 2)
    query = [fact("query", "0502_c0001_000.jpg", 502, 1), fact("query", "0600_c0003_001.jpg", 600, 3)]
    gallery = [
        fact("bounding_box_test", "0502_c0001_000.jpg", 502, 1),
        fact("bounding_box_test", "0502_c0004_002.jpg", 502, 4),
        fact("bounding_box_test", "0600_c0003_001.jpg", 600, 3),
        fact("bounding_box_test", "0600_c0007_020.jpg", 600, 7),
    ]
    _write(root, [*train, *query, *gallery, junk], (width, 128))
    return Facts(train, query, gallery)


def write_msvr310(root: Path, name: str = "MSVR310") -> Facts:
    """A folder per identity, ``query3``, scenes in the names, views from 0; every query is in the gallery too."""

    def fact(split: str, file: str, pid: int, scene: int, view: int) -> Fact:
        return Fact(pid, view, _in_folders(f"{name}/{split}/{pid:04d}", file, VEHICLE), scene)

    train = [
        fact("bounding_box_train", "0001_s003_v0_000.jpg", 1, 3, 0),
        fact("bounding_box_train", "0001_s003_v5_001.jpg", 1, 3, 5),
        fact("bounding_box_train", "0310_s030_v7_000.jpg", 310, 30, 7),
    ]
    files = [
        ("0019_s012_v0_000.jpg", 19, 12, 0),
        ("0019_s012_v3_001.jpg", 19, 12, 3),
        ("0019_s020_v0_002.jpg", 19, 20, 0),
    ]
    gallery = [*(fact("bounding_box_test", *file) for file in files)]
    gallery.append(fact("bounding_box_test", "0044_s001_v2_000.jpg", 44, 1, 2))  # one scene only: no query
    query = [fact("query3", *file) for file in files]
    _write(root, [*train, *query, *gallery], (16, 8))
    return Facts(train, query, gallery)


#: What ``write_wmveid863(damaged=True)`` takes away.
WMVEID863_LOST = ("WMVEID863/train/0007/ni/0007_v1_n0_001.jpg", "WMVEID863/test/0021/th/0021_v8_n1_003.jpg")


def write_wmveid863(root: Path, damaged: bool = False) -> Facts:
    """A folder per identity, the gallery in ``test``; ``damaged``: two samples lack an image."""

    def fact(split: str, pid: int, file: str, camera: int) -> Fact:
        return Fact(pid, camera, _in_folders(f"WMVEID863/{split}/{pid:04d}", file, VEHICLE))

    train = [
        fact("train", 7, "0007_v1_n0_000.jpg", 1),
        fact("train", 7, "0007_v1_n0_001.jpg", 1),
        fact("train", 7, "0007_v2_n1_002.jpg", 2),
        fact("train", 863, "0863_v4_n0_000.jpg", 4),
    ]
    query = [fact("query", 21, "0021_v3_n0_000.jpg", 3)]
    gallery = [
        fact("test", 21, "0021_v3_n0_000.jpg", 3),
        fact("test", 21, "0021_v6_n1_002.jpg", 6),
        fact("test", 21, "0021_v8_n1_003.jpg", 8),
    ]
    _write(root, [*train, *query, *gallery], (16, 8))
    if not damaged:
        return Facts(train, query, gallery)
    for file in WMVEID863_LOST:
        (root / file).unlink()
    return Facts([train[0], *train[2:]], query, gallery[:2])


def write_manifest_csv(root: Path) -> Facts:
    """``manifest.csv`` with every split, all columns, missing modalities, and files anywhere below it."""
    rows = [
        ("a/1.jpg", "n/1.jpg", "t/1.jpg", 1, 4, 0, "train"),
        ("a/2.jpg", "", "t/2.jpg", 1, 5, "", "train"),
        ("", "", "t/3.jpg", 70, 4, 2, "test"),
        ("a/4, left.jpg", "n/4.jpg", "t/4.jpg", 70, 6, 2, "query"),
        ("a/5.jpg", "n/5.jpg", "t/5.jpg", 70, 5, 2, "gallery"),
    ]
    names = ("rgb", "nir", "tir")
    facts = [
        Fact(pid, camera, {m: f for m, f in zip(names, files, strict=True) if f}, None if scene == "" else int(scene))
        for *files, pid, camera, scene, _ in rows
    ]
    _write(root, facts)
    lines = [",".join(f'"{c}"' if "," in str(c) else str(c) for c in row) for row in rows]
    (root / "manifest.csv").write_text("rgb,nir,tir,pid,camera,scene,split\n" + "\n".join(lines) + "\n")
    return Facts(facts[:2], facts[2:4], [facts[2], facts[4]])


def write_own_folder(root: Path) -> Facts:
    """``{train,test}/{rgb,nir,tir}`` with scenes in some names and a thermal image that is missing."""

    def fact(split: str, name: str, pid: int, camera: int, scene: int | None, modalities: str = "rgb nir tir") -> Fact:
        return Fact(pid, camera, {m: f"{split}/{m}/{name}" for m in modalities.split()}, scene)

    train = [fact("train", "12_c3.jpg", 12, 3, None), fact("train", "12_c4_s7_0001.jpg", 12, 4, 7, "rgb nir")]
    test = [fact("test", "0003_c1_door.JPG", 3, 1, None), fact("test", "0003_c22_door.jpg", 3, 22, None, "tir")]
    _write(root, train + test)
    return Facts(train, test, test)


#: Layouts whose modalities have files of their own.
WRITERS_WITH_OWN_FILES = {
    "rgbnt201": write_rgbnt201,
    "market1501_mm": write_market1501_mm,
    "msvr310": write_msvr310,
    "wmveid863": write_wmveid863,
    "manifest": write_manifest_csv,
    "folder": write_own_folder,
}
