"""A source is listed alike whatever its form: keys, files, labels, columns of one's own; nothing outside of it."""

import hashlib
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.gallery.sources import Sample, Source, read_source
from runs import toy


def picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 32), (shade, 20, 30)).save(path)
    return path


def keys(source: Source) -> list[str]:
    return [sample.key for sample in source.samples]


def failures(source: Source) -> str:
    return "\n".join(reason for _, reason in source.failures)


@pytest.mark.parametrize("names", [("rgb", "nir", "tir"), ("RGB", "NI", "TI"), ("vis", "ni", "th")])
def test_folders_of_modalities(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        picture(tmp_path / name / "b.png")
        picture(tmp_path / name / "Ada Ω" / "a.jpg")
    picture(tmp_path / names[2] / "only.png")
    picture(tmp_path / "7" / names[0] / "x.png")
    found = read_source(tmp_path)
    first = names[0]
    expected = {
        f"{first}/b.png": (None, ["rgb", "nir", "tir"]),
        f"{first}/Ada Ω/a.jpg": ("Ada Ω", ["rgb", "nir", "tir"]),
        f"{names[2]}/only.png": (None, ["tir"]),
        f"7/{first}/x.png": ("7", ["rgb"]),
    }
    assert {s.key: (s.pid, list(s.paths)) for s in found.samples} == expected
    assert keys(found) == sorted(expected)
    assert (found.failures, found.own, found.passed_over) == ((), {}, ())


def test_images_of_one_modality(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    picture(tmp_path / "ada" / "a.jpg")
    picture(tmp_path / "ada" / "deep" / "lost.jpg")
    found = read_source(tmp_path, modality="tir")
    assert [(s.key, s.pid, list(s.paths)) for s in found.samples] == [
        ("ada/a.jpg", "ada", ["tir"]),
        ("x.png", None, ["tir"]),
    ]
    assert len(found.passed_over) == 1
    assert "1 images (deep/lost.jpg) lie elsewhere" in found.passed_over[0]


def test_a_split_of_a_benchmark(data: Path) -> None:
    gallery, train, whole = (read_source(data, layout="rgbnt201", split=s) for s in ("gallery", "train", None))  # type: ignore[arg-type]
    assert keys(gallery) == keys(read_source(data, layout="rgbnt201", split="test"))
    assert keys(whole) == sorted([*keys(gallery), *keys(train)])
    first = gallery.samples[0]
    assert (first.key, first.pid, first.camera) == ("test/RGB/000009_cam1_0_00.jpg", "9", "1")
    assert list(first.paths) == ["rgb", "nir", "tir"]
    assert all((data / sample.key).is_file() for sample in gallery.samples)


MANIFEST = """rgb,tir,pid,camera,site,count,when,time,code,split
a.png,t/a.png,Ada,north,yard,3,2026-03-01,2026-03-01T14:00:00Z,007,test
b.png,,12.0,2,,4.5,2026-03-02 10:00,1772373600,8,train
c.png,,,,hall,,,,,query
gone.png,,1,1,hall,1,,,1,test
d.png,,1,1,hall,1,,noon,1,test
e.png,,{long},1,hall,1,,,1,test
"""


def manifest(folder: Path) -> None:
    for name in ("a", "b", "c", "d", "e", "t/a"):
        picture(folder / f"{name}.png")
    (folder / "manifest.csv").write_text(MANIFEST.format(long="x" * 10_000))


def test_a_manifest_with_columns_of_ones_own(tmp_path: Path) -> None:
    manifest(tmp_path)
    found = read_source(tmp_path)
    assert [(s.key, s.pid, s.camera, list(s.paths)) for s in found.samples] == [
        ("a.png", "Ada", "north", ["rgb", "tir"]),
        ("b.png", "12", "2", ["rgb"]),
        ("c.png", None, None, ["rgb"]),
    ]
    afternoon = datetime(2026, 3, 1, 14, tzinfo=timezone.utc)
    own = {name: column.to_pylist() for name, column in found.own.items()}
    assert own == {
        "site": ["yard", None, "hall"],
        "count": [3.0, 4.5, None],
        "when": [datetime(2026, 3, 1, tzinfo=timezone.utc), datetime(2026, 3, 2, 10, tzinfo=timezone.utc), None],
        "time": [afternoon, afternoon, None],
        "code": ["007", "8", None],
        "split": ["test", "train", "query"],
    }
    said = failures(found)
    assert "row 5, column rgb: there is no file gone.png" in said
    assert "row 6, column time: 'noon' is no time" in said
    assert "row 7, column pid: longer than 1000 characters" in said
    assert keys(read_source(tmp_path / "manifest.csv", split="test")) == ["a.png", "c.png"]
    assert read_source(tmp_path / "manifest.csv").given == str(tmp_path)


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    for name in "ba":
        picture(tmp_path / f"{name}.png")
    columns: dict[str, Any] = {
        "rgb": ["b.png", "a.png"],
        "pid": [1.0, 2.0],
        "day": [date(2026, 3, 1), None],
        "at": pa.array([1, 2_000_000_001], pa.timestamp("ns")),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "weight": pa.array([1, 2], pa.float32()),
        "note": pa.nulls(2),
    }
    pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    own = read_source(tmp_path).own
    assert [str(column.type) for column in own.values()] == [
        "date32[day]",
        "timestamp[us]",
        "string",
        "float",
        "string",
    ]
    assert own["kind"].to_pylist() == ["y", "x"]
    pq.write_table(pa.table(columns | {"box": [[1], [2]]}), tmp_path / "manifest.parquet")
    with pytest.raises(UserError, match=r"the column 'box' holds list<.*leave it out"):
        read_source(tmp_path)


def test_nothing_outside_of_the_source(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside.png")
    inside = tmp_path / "in"
    picture(inside / "a.png")
    (inside / "manifest.csv").write_text(f"rgb\na.png\n../outside.png\n{outside}\n")
    found = read_source(inside)
    assert keys(found) == ["a.png"]
    assert "row 3, column rgb: ../outside.png leaves the manifest's folder" in failures(found)
    assert f"row 4: {outside} lies outside of {inside}" in failures(found)
    (inside / "manifest.csv").unlink()
    (inside / "b.png").symlink_to(outside)
    (inside / "ada").symlink_to(inside)
    (inside / "away").symlink_to(tmp_path)
    found = read_source(inside, modality="rgb")
    assert keys(found) == ["a.png", "ada/a.png", "ada/b.png", "away/outside.png", "b.png"]
    for sample in found.samples:
        if sample.key.endswith("a.png"):
            assert len(sample.contents(found.root)) == 1
            continue
        with pytest.raises(UserError, match=r"leads out of .*; copy the file there"):
            sample.contents(found.root)


def test_content_is_of_the_bytes_and_of_what_they_are(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "a.png", 1), picture(tmp_path / "b.png", 2)
    read = {path: path.read_bytes() for path in (one, two)}

    def digest(**paths: Path) -> str:
        return Sample("x", paths).digest(read)

    assert digest(rgb=one) == hashlib.sha256(f"rgb  {len(read[one])}\n".encode() + read[one]).hexdigest()
    assert len({digest(rgb=one), digest(nir=one), digest(rgb=two), digest(rgb=one, nir=two)}) == 4
    cut = Sample("x", {"rgb": one, "nir": one}, columns={"rgb": (0, 8), "nir": (8, 16)})
    assert cut.digest(read) != digest(rgb=one, nir=one)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "holds neither a manifest nor folders rgb, nir, tir .*images of one modality need --modality"),
        ({"split": "test"}, "has no splits; name its layout with --data.layout"),
        ({"layout": "rgbnt201", "modality": "rgb"}, "--modality is for folders of images alone"),
        ({"layout": "nobody"}, "data.layout 'nobody' is unknown"),
        ({"modality": "nir"}, "holds no samples; see docs/embed.md"),
    ],
)
def test_what_is_no_source(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_source(tmp_path, **options)


def test_other_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*nowhere; give a folder of images, or a manifest"):
        read_source(tmp_path / "nowhere")
    table = tmp_path / "manifest.csv"
    picture(tmp_path / "a.png")
    for header, said in (
        ("RGB,pid", "the column 'RGB' is unknown; did you mean rgb?"),
        ("rgb,camid", "the column 'camid' is unknown; did you mean camera?"),
        ("file,pid", "has no column one of rgb, nir, tir"),
    ):
        table.write_text(f"{header}\na.png,1\n")
        with pytest.raises(UserError) as error:
            read_source(tmp_path)
        assert said in str(error.value)
    table.write_text("rgb\na.png\n")
    with pytest.raises(UserError, match="has no column split; leave --split out"):
        read_source(tmp_path, split="test")
    for name in ("rgb", "RGB"):
        picture(tmp_path / "two" / name / "a.png")
    with pytest.raises(UserError, match="holds RGB and rgb, both rgb; leave one"):
        read_source(tmp_path / "two")


def test_toy_in_three_forms_is_the_same(tmp_path: Path) -> None:
    root = toy(tmp_path / "toy", train_ids=1, test_ids=2, images=2)
    listed = read_source(root, layout="rgbnt201", split="test")
    by_folder = read_source(root / "test")
    rows = [",".join(["rgb", "nir", "tir"])]
    rows += [",".join(str(p.relative_to(root)) for p in sample.paths.values()) for sample in listed.samples]
    (root / "own.csv").write_text("\n".join(rows))
    by_table = read_source(root / "own.csv")
    assert keys(listed) == keys(by_table) == [f"test/{key}" for key in keys(by_folder)]
    for one, two, three in zip(listed.samples, by_folder.samples, by_table.samples, strict=True):
        assert one.paths == two.paths == three.paths
