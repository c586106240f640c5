"""Everything in a data folder is counted: taken, left out, ignored, not understood."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from dmpt.data.images import read_image
from dmpt.data.layouts import DATASETS, list_dataset, passed_over
from dmpt.data.layouts.folders import SUFFIXES
from dmpt.data.records import Files
from dmpt.evaluation.opened import open_adapter
from dmpt.training.data import read
from layouts import (
    write_image,
    write_manifest_csv,
    write_market1501_mm,
    write_msvr310,
    write_own_folder,
    write_rgbnt201,
    write_wmveid863,
)
from runs import fit, settings, toy
from toy import write_toy_set

COUNTS = ("taken", "left_out", "ignored", "not_understood")


def files_of(layout: str, root: Path) -> Files:
    dataset, problems = list_dataset(layout, root)
    assert bool(dataset.files.left_out) <= bool(problems)
    return dataset.files


def counts_of(layout: str, root: Path) -> tuple[int, ...]:
    return tuple(files_of(layout, root).counts[name] for name in COUNTS)


def messages_of(layout: str, root: Path) -> list[str]:
    return [part.message for part in files_of(layout, root).passed_over]


def set_of(root: Path) -> Path:
    write_toy_set(root, train_ids=2, test_ids=2, images=2, cameras=2, size=(8, 8))
    return root


def test_the_suffixes_are_those_of_the_formats_that_are_decoded() -> None:
    formats = {"JPEG", "PNG", "BMP", "TIFF", "WEBP"}
    registered = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    assert {".jpg", ".jfif", ".jpe", ".tiff"} <= registered
    assert registered == SUFFIXES


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".apng"])
def test_every_suffix_in_any_case_is_read(suffix: str, tmp_path: Path) -> None:
    root = set_of(tmp_path / "set")
    before, _ = list_dataset("rgbnt201", root)
    for path in (root / "test").rglob("*.jpg"):
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix), "PNG" if suffix == ".apng" else "JPEG")
        path.unlink()
    after, problems = list_dataset("rgbnt201", root)
    assert problems == []
    assert [record.pid for record in after.query] == [record.pid for record in before.query]
    assert {record.file.suffix for record in after.query} == {suffix}
    assert read_image(after.query[0].file, (0, 65535)).shape == (3, 8, 8)
    assert counts_of("rgbnt201", root) == (24, 0, 0, 0)


def test_what_is_counted(tmp_path: Path) -> None:
    """Each kind of file once; junk and clutter are ignored, and what a problem names is left out."""
    write_market1501_mm(tmp_path)
    home = tmp_path / "Market1501-MM"
    assert counts_of("market1501_mm", tmp_path) == (30, 0, 3, 0)  # 10 samples, and one of identity -1
    write_image(tmp_path / "beside.jpg")  # not in the data set's folder
    for name in ("list.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "._0001_c1s1_001051_00.jpg", "notes", "a.zip"):
        (home / "query/RGB" / name).write_text("no picture")
    for folder in (".cache", "__MACOSX", "query/NI/@eaDir"):
        write_image(home / folder / "0001_c1s1_001051_00.jpg")
    assert counts_of("market1501_mm", tmp_path) == (30, 0, 3 + 7 + 3, 0)
    assert files_of("market1501_mm", tmp_path).folder == home
    (home / "query/NI/0001_c1s1_001051_00.jpg").unlink()  # a problem: the two others are left out
    write_image(home / "query/TI/anna.jpg")  # a problem
    assert counts_of("market1501_mm", tmp_path) == (27, 3, 13, 0)
    write_image(home / "val/RGB/0001_c1s1_001051_00.jpg")
    assert counts_of("market1501_mm", tmp_path) == (27, 3, 13, 1)


def deeper(root: Path) -> None:
    for path in sorted((root / "train_2/RGB").iterdir())[::2]:
        write_image(path.parent / "a" / path.name)


def higher(root: Path) -> None:
    write_image(root / "train_2/000001_cam1_0_00.jpg")


def another_split(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")


def another_modality(root: Path) -> None:
    shutil.copytree(root / "test/RGB", root / "test/SWIR")


def a_suffix_of_nothing(root: Path) -> None:
    shutil.copy(next((root / "test/RGB").iterdir()), root / "test/RGB/000003_cam1_0_07")


@pytest.mark.parametrize(
    ("change", "images", "message"),
    [
        (deeper, 2, "train_2/RGB: 2 images (a/000001_cam1_0_00.jpg, ...) lie where this layout reads none"),
        (higher, 1, "train_2: 1 images (000001_cam1_0_00.jpg) lie where"),
        (another_split, 12, ": 12 images (val/NI/000003_cam1_0_00.jpg, ...) lie where"),
        (another_modality, 4, "test: 4 images (SWIR/000003_cam1_0_00.jpg, ...) lie where"),
        (
            a_suffix_of_nothing,
            1,
            "test/RGB: 1 images (000003_cam1_0_07) have no suffix that is read; save them as .png",
        ),
    ],
)
def test_what_is_passed_over_is_told_by_folder(
    change: Callable[[Path], None], images: int, message: str, tmp_path: Path
) -> None:
    root = set_of(tmp_path / "set")
    assert passed_over(list_dataset("rgbnt201", root)[0]) == []
    change(root)
    dataset, problems = list_dataset("rgbnt201", root)
    assert (len(dataset.train), len(dataset.query), problems) == (4, 4, [])  # nothing else tells
    assert dataset.files.not_understood == images
    (part,) = dataset.files.passed_over
    assert part.message.removeprefix(str(root)).removeprefix("/").startswith(message)
    assert all(path.is_file() for path in part.examples)
    assert passed_over(dataset) == [f"{images} images are passed over: {part.message}"]


def test_training_and_evaluation_say_it_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("dmpt.evaluation.opened.warn", said.append)
    data = toy(tmp_path / "toy")
    trainer = fit(settings(data, epochs=1), tmp_path / "run")
    assert not any("passed over" in line for line in trainer.data.lines())
    open_adapter(tmp_path / "run")
    assert said == []
    shutil.copytree(data / "test", data / "val")
    open_adapter(tmp_path / "run")
    trained = read(settings(data, epochs=1), skip_broken=False).lines()
    assert said == [line for line in trained if "passed over" in line]
    (line,) = said
    assert line.startswith(f"72 images are passed over: {data}: 72 images (val/NI/000009_cam1_0_00.jpg, ...) lie")


def test_images_of_every_format_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    root = set_of(tmp_path / "set")
    picture = Image.new("RGB", (8, 8))
    kinds = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM")
    for kind in kinds:
        buffer = io.BytesIO()
        picture.save(buffer, kind)
        (root / "test/RGB" / f"{kind}.data").write_bytes(buffer.getvalue())
    (root / "test/RGB/x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    for number, start in enumerate((b"", b"B", b"BM, a firm", b"RIFF\0\0\0\0WAVE", b"P5x", b"\0\0\0\x18ftypisom")):
        (root / "test/RGB" / f"{number}.other").write_bytes(start)
    files = files_of("rgbnt201", root)
    assert (files.not_understood, files.ignored) == (len(kinds) + 1, 6)


def test_links_are_followed_once_and_a_file_by_two_names_is_one(tmp_path: Path) -> None:
    root = set_of(tmp_path / "set")
    (root / "test").rename(tmp_path / "elsewhere")
    (root / "test").symlink_to(tmp_path / "elsewhere")  # as people put large data beside
    (root / "test/RGB/loop").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "broken.jpg").symlink_to(root / "gone.jpg")
    (root / "again").symlink_to(root / "train_2")
    os.link(root / "train_2/RGB/000001_cam1_0_00.jpg", root / "hard.jpg")
    assert counts_of("rgbnt201", root) == (24, 0, 0, 0)
    write_image(tmp_path / "more/x.jpg")
    (root / "more").symlink_to(tmp_path / "more")
    (root / "twice").symlink_to(tmp_path / "more")
    assert messages_of("rgbnt201", root)[0].startswith(f"{root}: 1 images (more/x.jpg) lie")


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = set_of(tmp_path / "set")
    (root / "val").mkdir()
    scandir = os.scandir

    def closed(path: Path) -> object:
        if Path(path).name == "val":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", closed)
    assert messages_of("rgbnt201", root) == [
        f"{root}/val cannot be listed (Permission denied), so nothing in it is counted; see its rights"
    ]
    assert len(passed_over(list_dataset("rgbnt201", root)[0])) == 1


def test_a_table_answers_for_the_folders_that_its_rows_lead_to(tmp_path: Path) -> None:
    write_manifest_csv(tmp_path)
    assert counts_of("manifest", tmp_path) == (12, 0, 1, 0)  # the table itself is no picture
    write_image(tmp_path / "runs/figure.jpg")  # a project's: no row leads there
    write_image(tmp_path / "a/deep/6.jpg")
    write_image(tmp_path / "n/2.jpg")
    files = files_of("manifest", tmp_path / "manifest.csv")
    assert (files.folder, files.not_understood) == (tmp_path, 2)
    assert [part.message for part in files.passed_over] == [
        f"{tmp_path}/a: 1 images (deep/6.jpg) are in no row; add rows, if they belong to the data",
        f"{tmp_path}/n: 1 images (2.jpg) are in no row; add rows, if they belong to the data",
    ]
    assert passed_over(list_dataset("manifest", tmp_path)[0]) == []  # left out on purpose, for all that training knows


def test_images_of_bad_rows_are_left_out_and_not_passed_over(tmp_path: Path) -> None:
    for name in ("1", "2", "3", "4"):
        write_image(tmp_path / f"rgb/{name}.jpg")
    rows = ["rgb,pid,camera,split", "rgb/1.jpg,1,1,train", "rgb/2.jpg,x,1,train", "rgb/3.jpg,1,1,no"]
    (tmp_path / "manifest.csv").write_text("\n".join([*rows, "rgb/4.jpg,1,1,train,9"]))
    assert counts_of("manifest", tmp_path) == (1, 3, 1, 0)


@pytest.mark.parametrize("place", ["set/../set", "./set", "set"])
def test_the_folder_may_be_written_in_any_way(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest_csv(tmp_path / "set")
    set_of(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert counts_of("manifest", Path(place)) == (12, 0, 1, 0)
    assert files_of("rgbnt201", Path(place)).taken == 24
    monkeypatch.chdir(tmp_path / "set")
    assert counts_of("manifest", Path()) == (12, 0, 1, 0)
    assert counts_of("manifest", Path("manifest.csv")) == (12, 0, 1, 0)


def test_only_tables_leave_images_out_on_purpose() -> None:
    assert [name for name, layout in DATASETS.items() if not layout.whole] == ["manifest"]


def test_an_identitys_folder_of_the_wrong_name_is_told_once(tmp_path: Path) -> None:
    write_wmveid863(tmp_path)
    write_image(tmp_path / "WMVEID863/test/anna/vis/v1.jpg")
    dataset, problems = list_dataset("wmveid863", tmp_path)
    assert len(problems) == 1
    assert (dataset.files.left_out, dataset.files.not_understood) == (1, 0)


@pytest.mark.parametrize(
    ("layout", "write"),
    [("rgbnt201", write_rgbnt201), ("msvr310", write_msvr310), ("folder", write_own_folder)],
)
def test_a_dataset_is_what_its_records_are(layout: str, write: Callable[[Path], object], tmp_path: Path) -> None:
    """Whatever else lies in the folder."""
    write(tmp_path)
    before, _ = list_dataset(layout, tmp_path)
    write_image(before.train[0].file.parent / "x" / "y.jpg")
    after, _ = list_dataset(layout, tmp_path)
    assert after == before
    assert after.files.not_understood == before.files.not_understood + 1
