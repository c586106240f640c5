"""Reading layouts: the plain case, every kind of clutter, every error."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmpt.base.errors import UserError
from dmpt.data.layouts import load_dataset
from dmpt.data.records import Record, fingerprint, labels_of, pid_to_label, same_data, short
from dmpt.settings.modalities import MODALITIES
from toy import write_toy_set


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three identities to learn, two to test, four samples of each, named files without pixels."""
    for split, pids in {"train_3": (9, 2, 300), "test": (7, 8)}.items():
        for folder in ("RGB", "NI", "TI"):
            (tmp_path / "set" / split / folder).mkdir(parents=True)
            for pid in pids:
                for i in range(4):
                    (tmp_path / "set" / split / folder / f"{pid:06d}_cam{i % 2 + 1}_0_{i:02d}.jpg").touch()
    return tmp_path / "set"


def test_reads_sorted_aligned_samples(root: Path) -> None:
    dataset = load_dataset("rgbnt201", root)
    assert (dataset.name, dataset.object, dataset.protocol) == ("rgbnt201", "person", "same_camera")
    assert [record.pid for record in dataset.train] == [2] * 4 + [9] * 4 + [300] * 4
    assert [record.camera for record in dataset.train[:4]] == [1, 1, 2, 2]
    assert dataset.query == dataset.gallery
    assert len(dataset.gallery) == 8
    for record in dataset.train + dataset.gallery:
        assert tuple(record.paths) == MODALITIES
        assert {path.name for path in record.paths.values()} == {record.name}
        assert [path.parent.name for path in record.paths.values()] == ["RGB", "NI", "TI"]
        assert record.scene is None


def test_root_may_be_the_parent_or_a_string(root: Path) -> None:
    assert load_dataset("rgbnt201", str(root.parent)) == load_dataset("rgbnt201", root)


def test_suffixes_of_any_case_pair_by_stem(root: Path) -> None:
    for folder, suffix in {"RGB": ".JPG", "NI": ".PNG", "TI": ".Tiff"}.items():
        path = root / "test" / folder / "000007_cam1_0_00.jpg"
        path.rename(path.with_suffix(suffix))
    record = load_dataset("rgbnt201", root).gallery[0]
    assert [path.suffix for path in record.paths.values()] == [".JPG", ".PNG", ".Tiff"]


def test_clutter_is_ignored(root: Path) -> None:
    before = load_dataset("rgbnt201", root)
    for name in ("Thumbs.db", "._000007_cam1_0_00.jpg", ".DS_Store", "desktop.ini", "readme.txt"):
        (root / "test" / "NI" / name).touch()
    (root / "train_3.zip").touch()
    (root / ".cache").mkdir()
    assert load_dataset("rgbnt201", root) == before


def test_camera_may_have_two_digits(root: Path) -> None:
    for folder in ("RGB", "NI", "TI"):
        path = root / "test" / folder / "000008_cam2_0_03.jpg"
        path.rename(path.with_name("000008_cam12_0_03.jpg"))
    assert {record.camera for record in load_dataset("rgbnt201", root).gallery} == {1, 2, 12}


def remove(path: str) -> Callable[[Path], None]:
    return lambda root: shutil.rmtree(root / path)


def touch(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).touch()


def two_trains(root: Path) -> None:
    (root / "train_171").mkdir()


def two_sets(root: Path) -> None:
    shutil.copytree(root / "train_3", root / "a" / "train_3")
    (root / "train_3").rename(root / "b")
    shutil.copytree(root / "b", root / "b2" / "train_4")


def lost_files(root: Path) -> None:
    (root / "test/NI/000007_cam2_0_01.jpg").unlink()
    (root / "test/RGB/000008_cam2_0_01.jpg").unlink()


def empty(root: Path) -> None:
    for folder in ("RGB", "NI", "TI"):
        shutil.rmtree(root / "test" / folder)
        (root / "test" / folder).mkdir()


def shared_identity(root: Path) -> None:
    for folder in ("RGB", "NI", "TI"):
        (root / "test" / folder / "000300_cam1_0_00.jpg").touch()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root), ["no folder", "data.root"]),
        (lambda root: (root / "train_3").rename(root / "trian_3"), ["no folder train_*", "holds test, trian_3"]),
        (two_trains, ["more than one", "train_171", "train_3"]),
        (two_sets, ["more than one", "a/train_3", "b2/train_4"]),
        (remove("test"), ["no folder", "test", "holds train_3"]),
        (remove("train_3/NI"), ["train_3 holds no folder NI", "holds RGB, TI"]),
        (lost_files, ["test/NI/000007_cam2_0_01.* is missing", "and 1 more: dmpt check"]),
        (empty, ["test holds no images"]),
        (touch("test/TI/000007_cam1_0_00 (1).jpg"), ["000007_cam1_0_00 (1).jpg", "PPPPPP_camC_T_NN"]),
        (touch("test/TI/000007_cam1_0_00.png"), ["000007_cam1_0_00.jpg", "000007_cam1_0_00.png", "twice"]),
        (touch("test/RGB/000007_CAM1_0_00.jpg"), ["000007_CAM1_0_00.jpg", "PPPPPP_camC_T_NN"]),
        (shared_identity, ["1 identities are in both", "300"]),
    ],
)
def test_errors_are_one_line_and_name_the_place(root: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    damage(root)
    with pytest.raises(UserError) as error:
        load_dataset("rgbnt201", root)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_unknown_layout_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"'market' is unknown; choose one of: folder, manifest, .*rgbnt201, wmveid863"):
        load_dataset("market", "anywhere")


def test_labels_follow_sorted_pids() -> None:
    records = [Record({"rgb": Path("x.jpg")}, pid=pid, camera=1) for pid in (300, 2, 9, 300)]
    assert pid_to_label(records) == {2: 0, 9: 1, 300: 2}


def test_fingerprint_knows_the_data_but_not_the_place(root: Path) -> None:
    first = fingerprint(load_dataset("rgbnt201", root).train)
    moved = root.rename(root.parent / "elsewhere")
    assert fingerprint(load_dataset("rgbnt201", moved).train) == first
    for folder in ("RGB", "NI", "TI"):
        path = moved / "train_3" / folder / "000009_cam1_0_00.jpg"
        path.rename(path.with_name("000009_cam2_0_00.jpg"))
    assert fingerprint(load_dataset("rgbnt201", moved).train) != first


@pytest.mark.parametrize(
    "change",
    [{"camera": 2}, {"pid": 8}, {"scene": 4}, {"scene": None}, {"columns": {"rgb": (0, 8)}}, {"paths": {}}],
    ids=str,
)
def test_fingerprint_knows_each_thing_that_a_record_says(change: dict[str, Any]) -> None:
    """With the same files: a manifest may say another camera of a picture."""
    records = [Record({"rgb": Path("RGB/a.jpg")}, 7, 1, 3), Record({"rgb": Path("RGB/b.jpg")}, 7, 1, 3)]
    assert fingerprint([records[0], replace(records[1], **change)]) != fingerprint(records)
    assert fingerprint([records[0], replace(records[1])]) == fingerprint(records)


def first_version(records: Sequence[Record]) -> str:
    """What was stored before there were sizes."""
    digest = hashlib.sha256()
    for record in records:
        files = [f"{m}={path.parent.name}/{path.name}" for m, path in sorted(record.paths.items())]
        digest.update(repr((files, record.pid, record.camera, record.scene)).encode())
    return digest.hexdigest()


def test_two_sets_of_the_same_names_have_two_fingerprints_and_one_of_before(root: Path) -> None:
    def change(folder: Path) -> None:
        (folder / "train_3" / "NI" / "000009_cam1_0_00.jpg").write_bytes(b"another picture")

    copy = shutil.copytree(root, root.parent / "copy")
    change(copy)
    first, other = (load_dataset("rgbnt201", folder).train for folder in (root, copy))
    before = first_version(first)
    assert before == first_version(other)
    assert not same_data(fingerprint(first), fingerprint(other))
    for now in (fingerprint(first), fingerprint(other)):
        assert same_data(before, now)
        assert same_data(now, before)
        assert not same_data(now, first_version(first[1:]))
    assert len({short(one) for one in (before, fingerprint(first), fingerprint(other))}) == 3
    (root / "train_3" / "NI" / "000009_cam1_0_00.jpg").unlink()
    assert not same_data(fingerprint(first), fingerprint(other))  # a file that has gone is for decoding to tell


@pytest.mark.parametrize("scenes", [(3, None, 5), (None, None, None), (0, 0, 5)], ids=str)
def test_labels_have_scenes_where_every_record_has_one(scenes: tuple[int | None, ...]) -> None:
    records = [Record({"rgb": Path("x.jpg")}, 10 + i, i, scene) for i, scene in enumerate(scenes)]
    labels = labels_of(records)
    assert labels.pids.tolist() == [10, 11, 12]
    assert labels.cameras.tolist() == [0, 1, 2]
    if None in scenes:
        assert labels.scenes is None
    else:
        assert labels.scenes is not None
        assert labels.scenes.tolist() == list(scenes)


def test_toy_set_is_a_readable_layout_and_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_toy_set(tmp_path / name, train_ids=3, test_ids=2, images=4, cameras=2, seed=5)
    write_toy_set(tmp_path / "c", train_ids=3, test_ids=2, images=4, cameras=2, seed=6)
    dataset = load_dataset("rgbnt201", tmp_path / "a")
    assert {record.pid for record in dataset.train} == {1, 2, 3}
    assert {(record.pid, record.camera) for record in dataset.gallery} == {(4, 1), (4, 2), (5, 1), (5, 2)}
    assert len(dataset.train) == 12
    images = {name: [p.read_bytes() for p in sorted((tmp_path / name).rglob("*.jpg"))] for name in "abc"}
    assert images["a"] == images["b"]
    assert len(set(images["a"])) == len(images["a"])
    assert images["a"] != images["c"]
