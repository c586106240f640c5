"""Looks at pictures: each file once, never again while it is the same, and never a wrong answer from memory."""

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dmpt.data.check.looks as looking
import dmpt.data.check.remembered as remembered
from dmpt.data.check.looks import Looks, look_at
from dmpt.data.layouts import load_dataset
from dmpt.data.records import Dataset, Record
from layouts import write_rgbnt100
from toy import write_toy_set

FILES = 3 * 16


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "looks"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded."""
    found: list[Path] = []
    decode = looking.decode
    monkeypatch.setattr(looking, "decode", lambda path, convert: (found.append(path), decode(path, convert))[1])
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_toy_set(tmp_path / "data", train_ids=2, test_ids=2, images=4)
    age(tmp_path / "data")
    return tmp_path / "data"


def age(root: Path, seconds: int = 3600) -> None:
    for path in [root] if root.is_file() else root.rglob("*.*"):
        os.utime(path, (time.time() - seconds,) * 2)


def listed(root: Path) -> Dataset:
    return load_dataset("rgbnt201", root)


def look(root: Path) -> Looks:
    dataset = listed(root)
    return look_at(dataset, [*dataset.train, *dataset.query])


def test_an_unchanged_file_is_decoded_once_ever(data: Path, decoded: list[Path]) -> None:
    first = look(data)
    assert sorted(decoded) == sorted(data.rglob("*.jpg"))
    assert len(decoded) == FILES
    decoded.clear()
    assert look(data) == first
    dataset = listed(data)
    assert look_at(dataset, dataset.query).pictures(dataset.query[0]) == first.pictures(dataset.query[0])
    assert decoded == []


def test_relative_paths_are_those_of_their_folder(
    data: Path, decoded: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data root as typed means other files in another folder."""
    look(data)
    other = tmp_path / "elsewhere"
    write_toy_set(other / "data", train_ids=2, test_ids=2, images=4, seed=1)
    age(other)
    decoded.clear()
    monkeypatch.chdir(tmp_path)
    here = look(Path("data"))
    assert decoded == []
    monkeypatch.chdir(other)
    there = look(Path("data"))
    assert len(decoded) == FILES
    name = Path("data/test/RGB/000003_cam1_0_00.jpg")
    mine, others = ({file.path: seen for file, seen in looks.seen.items()}[name] for looks in (here, there))
    assert mine != others


def rewrite(path: Path) -> None:
    """Other pixels in as many bytes."""
    size = path.stat().st_size
    Image.new("L", (32, 64), 100).save(path, quality=50)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert path.stat().st_size == size


def replace_keeping_the_time(path: Path) -> None:
    """As ``cp -p`` does of a file with the same size and time."""
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("change", [rewrite, replace_keeping_the_time])
def test_a_file_that_changed_is_looked_at_again(
    data: Path, decoded: list[Path], change: Callable[[Path], None]
) -> None:
    path = data / "test/TI/000003_cam1_0_00.jpg"
    before = look(data)
    decoded.clear()
    time.sleep(0.02)  # a tick of the file system's clock
    change(path)
    after = look(data)
    assert decoded == [path]
    record = next(record for record in listed(data).query if record.paths["tir"] == path)
    assert after.pictures(record)["tir"].blank
    assert not before.pictures(record)["tir"].blank


def test_a_file_that_may_still_change_unseen_is_not_remembered(data: Path, decoded: list[Path]) -> None:
    path = data / "test/TI/000003_cam1_0_00.jpg"
    path.touch()
    look(data)
    decoded.clear()
    look(data)
    assert decoded == [path]


def test_what_is_broken_is_looked_at_each_time_and_so_may_be_repaired(data: Path, decoded: list[Path]) -> None:
    path = data / "test/TI/000003_cam1_0_00.jpg"
    whole = path.read_bytes()
    stamp = path.stat().st_mtime_ns
    for content, broken in ((whole[:300], 1), (whole[:300], 1), (whole, 0), (whole, 0)):
        path.write_bytes(content)
        os.utime(path, ns=(stamp, stamp))
        looks = look(data)
        assert len([*looks.unreadable()]) == broken
        record = next(record for record in listed(data).query if record.paths["tir"] == path)
        assert len(looks.broken(record)) == broken
        assert list(looks.pictures(record)) == ["rgb", "nir", "tir"][: 3 - broken]
    assert decoded.count(path) >= 3


def test_each_broken_file_is_told_with_each_modality_that_needs_it(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("RGB", (3, 2)).save(good)
    bad.touch()
    kinds = [(good, good, good), (bad, good, bad), (good, good, good), (good, bad, good)]
    records = tuple(Record(dict(zip(("rgb", "nir", "tir"), paths, strict=True)), 1, 1) for paths in kinds)
    looks = look_at(Dataset("manifest", "person", "same_camera", records, (), ()), records)
    assert [len(looks.broken(record)) for record in records] == [0, 2, 0, 1]
    assert all(str(bad) in problem for record in records for problem in looks.broken(record))


def test_what_is_remembered_is_what_was_seen(tmp_path: Path, decoded: list[Path]) -> None:
    """Many bits, not-a-numbers, a name that is no text, modalities side by side."""
    folder = tmp_path / "any"
    folder.mkdir()
    draw = np.random.default_rng(0)
    heat = draw.normal(30, 3, (40, 20)).astype(np.float32)
    heat[0] = np.nan
    Image.fromarray(heat).save(folder / "heat.tif")
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "nothing.tif")
    Image.fromarray(draw.integers(7200, 7711, (40, 20)).astype(np.uint16)).save(folder / "deep.png")
    odd = folder / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(draw.integers(0, 256, (40, 20, 3)).astype(np.uint8)).save(folder / "x.png")
    (folder / "x.png").rename(odd)
    records = tuple(Record({"tir": path}, 1, 1) for path in sorted(folder.iterdir()))
    own = Dataset("folder", "person", "same_camera", records, (), ())
    write_rgbnt100(tmp_path / "wide")
    for dataset in (own, load_dataset("rgbnt100", tmp_path / "wide")):
        age(tmp_path)
        looks = look_at(dataset, dataset.train)
        assert not [*looks.unreadable()]
        count = len(decoded)
        assert look_at(dataset, dataset.train) == looks
        assert len(decoded) == count > 0
    heat_of = look_at(own, records).pictures(next(r for r in records if r.name == "heat.tif"))["tir"].deep
    assert heat_of is not None
    assert heat_of.low == pytest.approx(np.nanpercentile(heat, 0.5), abs=0.5)
    wide = load_dataset("rgbnt100", tmp_path / "wide")
    assert len(look_at(wide, wide.train).pictures(wide.train[0])) == 3


def the_file(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"false", b"true ", 1)),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff\xfe" * 50),
        lambda path: path.write_text("[]\n[]"),
    ],
    ids=["cut", "a flag", "empty", "no text", "other text"],
)
def test_damaged_memory_counts_for_nothing_and_is_written_anew(
    data: Path, cache: Path, decoded: list[Path], damage: Callable[[Path], object]
) -> None:
    seen = look(data)
    whole = the_file(cache).read_bytes()
    damage(the_file(cache))
    assert the_file(cache).read_bytes() != whole
    decoded.clear()
    assert look(data) == seen
    assert len(decoded) == FILES
    assert the_file(cache).read_bytes() == whole
    assert look(data) == seen
    assert len(decoded) == FILES


def test_without_a_place_to_remember_it_looks_each_time(
    data: Path, decoded: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "file" / "below"))
    first = look(data)
    assert look(data) == first
    monkeypatch.setenv("DMPT_CACHE", "~nobody-of-this-name/cache")
    assert look(data) == first
    assert len(decoded) == 3 * FILES
    assert (tmp_path / "file").read_bytes() == b""


def test_memory_that_cannot_be_written_is_still_read(data: Path, cache: Path, decoded: list[Path]) -> None:
    look(data)
    cache.chmod(0o500)
    the_file(cache).chmod(0o400)
    decoded.clear()
    look(data)
    assert decoded == []
    cache.chmod(0o700)


def test_code_that_may_see_something_else_remembers_for_itself(
    data: Path, cache: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(data)
    monkeypatch.setattr(remembered.PIL, "__version__", "0")
    remembered._code.cache_clear()
    look(data)
    assert len(decoded) == 2 * FILES
    assert len(list(cache.iterdir())) == 2
    remembered._code.cache_clear()


def test_what_was_seen_before_ctrl_c_is_remembered(
    data: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, asked = looking.decode, iter(range(FILES))

    def stopped(path: Path, convert: Callable[[Image.Image], object]) -> object:
        if next(asked) == 20:
            raise KeyboardInterrupt
        return decode(path, convert)

    monkeypatch.setattr(looking, "_CHUNK", 1)
    dataset = listed(data)
    records = [*dataset.train, *dataset.query]
    with monkeypatch.context() as patch:
        patch.setattr(looking, "decode", stopped)
        with pytest.raises(KeyboardInterrupt):
            look_at(dataset, records, 1)
    decoded.clear()
    look(data)
    assert len(decoded) == FILES - 20


def test_files_that_are_gone_are_forgotten_when_others_come(data: Path, cache: Path) -> None:
    look(data)
    gone = "000001_cam1_0_00.jpg"
    assert gone in the_file(cache).read_text()
    for path in data.rglob(gone):
        path.unlink()
    for path in list(data.rglob("000001_cam2_0_01.jpg")):
        shutil.copy(path, path.with_name("000001_cam2_0_77.jpg"))
    age(data)
    look(data)
    text = the_file(cache).read_text()
    assert gone not in text
    assert "000001_cam2_0_77.jpg" in text
    assert "000001_cam2_0_01.jpg" in text


def test_memory_is_bounded_and_what_was_not_used_for_longest_goes(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    for number in range(5):
        (cache / f"x{number}.json").write_text("x" * 1000)
        age(cache / f"x{number}.json", 3600 * (number + 1))
    monkeypatch.setattr(remembered, "_MAX_FILES", 4)
    look(data)
    own, *others = sorted(path.name for path in cache.iterdir())
    assert others == ["x0.json", "x1.json", "x2.json"]
    age(cache / own, 9 * 3600)
    look(data)  # nothing new, but it is in use
    monkeypatch.setattr(remembered, "_MAX_BYTES", 1500)
    rewrite(data / "test/TI/000003_cam1_0_00.jpg")
    age(data)
    look(data)
    assert [path.name for path in cache.iterdir()] == [own]  # larger than the bound by itself


def _look_from_another_process(root: Path) -> int:
    return len(look(root).seen)


@pytest.mark.long
def test_two_processes_may_look_at_once(data: Path, cache: Path, decoded: list[Path]) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(_look_from_another_process, [data] * 8) == [FILES] * 8
    _, text = the_file(cache).read_text().split("\n", 1)
    assert len(json.loads(text)) == FILES
    look(data)
    assert decoded == []
