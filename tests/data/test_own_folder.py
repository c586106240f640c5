"""Own data with a folder per identity, below the modalities or around them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dmpt.base.errors import UserError
from dmpt.data.layouts import list_dataset, load_dataset
from dmpt.settings.modalities import MODALITIES
from layouts import write_image


def flat(root: Path) -> None:
    for name in ("3_c1_a.jpg", "3_c2.jpg", "12_c1_s5.jpg", "40_c9.jpg"):
        for modality in MODALITIES:
            write_image(root / modality / name)


def below(root: Path) -> None:
    """As people have it: identity and camera, or the camera alone, in the names."""
    for name in ("0003/c1_a.jpg", "0003/3_c2.jpg", "12/c1_s5.jpg", "40/0040_c9.jpg"):
        for modality in ("RGB", "NIR", "TIR"):
            write_image(root / modality / name)


def around(root: Path) -> None:
    for pid, name in (("0003", "c1_a.jpg"), ("0003", "3_c2.jpg"), ("12", "c1_s5.jpg"), ("40", "0040_c9.jpg")):
        for modality in MODALITIES:
            write_image(root / pid / modality / name)


def half_and_half(root: Path) -> None:
    """Some of a modality's images lie in a folder of their identity."""
    flat(root)
    for modality in MODALITIES:
        (root / modality / "3").mkdir()
        (root / modality / "3_c2.jpg").rename(root / modality / "3" / "3_c2.jpg")


@pytest.mark.parametrize("write", [flat, below, around, half_and_half])
@pytest.mark.parametrize("splits", [(), ("train", "test"), ("train", "query", "gallery")], ids=str)
def test_a_folder_per_identity_holds_the_same(
    write: Callable[[Path], None], splits: tuple[str, ...], tmp_path: Path
) -> None:
    for split in splits or ("",):
        write(tmp_path / split)
    dataset, problems = list_dataset("folder", tmp_path)
    assert problems == []
    read = [dataset.train, dataset.query, dataset.gallery] if splits else [(*dataset.train, *dataset.query)]
    for records in read:
        found = sorted((record.pid, record.camera, record.scene or 0) for record in records)
        assert found == [(3, 1, 0), (3, 2, 0), (12, 1, 5), (40, 9, 0)]
        for record in records:
            assert tuple(record.paths) == MODALITIES
            assert len({path.name for path in record.paths.values()}) == 1
    files = {"taken": 12 * max(1, len(splits)), "left_out": 0, "ignored": 0, "not_understood": 0}
    assert dataset.files.counts == files


def test_equal_names_of_two_identities_are_not_paired(tmp_path: Path) -> None:
    for file in ("rgb/1/c1.jpg", "rgb/2/c1.jpg", "nir/2/c1.jpg", "tir/1/c1.png"):
        write_image(tmp_path / file)
    dataset = load_dataset("folder", tmp_path)
    found = {
        record.pid: [path.relative_to(tmp_path).as_posix() for path in record.paths.values()]
        for record in (*dataset.train, *dataset.query)
    }
    assert found == {1: ["rgb/1/c1.jpg", "tir/1/c1.png"], 2: ["rgb/2/c1.jpg", "nir/2/c1.jpg"]}


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            "rgb/12/0001.jpg",
            "rgb/12/0001.jpg is not named [PID_]cCAM[_sSCENE][_ANYTHING] (for example c3_0001.jpg",
        ),
        ("rgb/12/13_c1.jpg", "rgb/12/13_c1.jpg is named after identity 13, not its folder 12; rename or move it"),
        ("3/rgb/x.jpg", "3/rgb/x.jpg is not named [PID_]cCAM"),
        ("tir/anna/c1.jpg", "tir holds no image (.apng, .bmp,"),
        ("tir/12/c1.npy", "tir holds no image (.apng, .bmp,"),
        ("12/rbg/c1.jpg", "12 holds a folder rbg; rename it to rgb"),
    ],
)
def test_what_cannot_be_read_is_refused(file: str, words: str, tmp_path: Path) -> None:
    for pid in (1, 2):
        write_image(tmp_path / f"rgb/{pid}/c1.jpg")
    write_image(tmp_path / file)
    with pytest.raises(UserError) as error:
        load_dataset("folder", tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/{words}")
    assert "\n" not in str(error.value)


def test_a_modality_that_is_there_but_empty_is_a_missing_one(tmp_path: Path) -> None:
    for pid in (1, 2):
        write_image(tmp_path / f"rgb/{pid}/c1.jpg")
    (tmp_path / "tir").mkdir()
    (tmp_path / "tir/.DS_Store").touch()
    assert {tuple(record.paths) for record in load_dataset("folder", tmp_path).train} <= {("rgb",)}


def test_a_word_beside_numbers_is_passed_over_and_told(tmp_path: Path) -> None:
    for name in ("1", "2", "anna"):
        write_image(tmp_path / f"rgb/{name}/c1.jpg")
    dataset, problems = list_dataset("folder", tmp_path)
    assert problems == []
    (part,) = dataset.files.passed_over
    assert part.message.startswith(f"{tmp_path}/rgb: 1 images (anna/c1.jpg) lie where this layout reads none")


def test_identities_beside_splits_are_refused(tmp_path: Path) -> None:
    around(tmp_path / "test")
    around(tmp_path)
    with pytest.raises(UserError, match="holds 0003 beside test; move all images into splits, or none"):
        load_dataset("folder", tmp_path)
