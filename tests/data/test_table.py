"""Own data: tables and folders, their mistakes, and the split by identity."""

import csv
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.data.layouts import load_dataset
from dmpt.data.layouts.folders import Notes
from dmpt.data.layouts.table import read_manifest, write_manifest
from dmpt.data.records import Dataset, Record, fingerprint
from dmpt.data.seeds import seed_for
from dmpt.data.split import split_by_identity
from dmpt.evaluation.evaluate import evaluate
from dmpt.evaluation.opened import test_records as check_records
from dmpt.settings.config import Config, DataConfig, TrainConfig
from dmpt.training.data import read
from dmpt.training.trainer import Trainer
from layouts import WRITERS_WITH_OWN_FILES, facts_of, write_manifest_csv, write_own_folder, write_rgbnt100
from runs import fit, settings, toy, with_

HEADER = "rgb,nir,tir,pid,camera"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three samples, named files without pixels."""
    for name in ("rgb/1.jpg", "nir/1.jpg", "tir/1.jpg", "rgb/2.jpg", "rgb/3.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).touch()
    (tmp_path / "outside.jpg").touch()
    return tmp_path / "data"


def table(root: Path, *rows: str, header: str = HEADER) -> Path:
    path = root / "manifest.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def error_of(layout: str, path: Path, settings: DataConfig | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_dataset(layout, path, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("rgb/9.jpg,,,7,2", "row 3, column rgb: there is no file rgb/9.jpg; restore it, correct the cell"),
        ("rgb,,,7,2", "row 3, column rgb: there is no file rgb;"),
        ("../outside.jpg,,,7,2", "row 3, column rgb: ../outside.jpg leaves the manifest's folder"),
        ("rgb/2.jpg,rgb/../../outside.jpg,,7,2", "row 3, column nir: rgb/../../outside.jpg leaves"),
        ("rgb/2.jpg,,,,2", "row 3, column pid: is empty; write a number"),
        ("rgb/2.jpg,,,7", "row 3, column camera: is empty"),
        (
            "rgb/2.jpg,,,anna,2",
            "row 3, column pid: 'anna' is no whole number of 0 or more, of at most 18 digits; write a number",
        ),
        ("rgb/2.jpg,,,7,-2", "row 3, column camera: '-2' is no whole number"),
        ("rgb/2.jpg,,,7.5,2", "row 3, column pid: '7.5' is no whole number"),
        ("rgb/2.jpg,,,٣,2", "row 3, column pid: '٣' is no whole number"),
        ("rgb/2.jpg,,," + "9" * 30 + ",2", "row 3, column pid: '999"),
        (",,,7,2", "row 3: no image in any of rgb, nir, tir"),
        ("a" * 300 + ".jpg,,,7,2", "row 3, column rgb: there is no file aaa"),
        ("rgb/1.jpg,,,7,2", "row 3, column rgb: "),
    ],
)
def test_every_bad_row_is_named_and_left_out(root: Path, row: str, words: str) -> None:
    path = table(root, "rgb/1.jpg,nir/1.jpg,tir/1.jpg,5,1", row, "rgb/3.jpg,,,6,1", ",,,,9")
    message = error_of("manifest", path)
    assert message.startswith(f"{path}, {words}")
    assert message.endswith("(and 1 more: dmpt check lists them)")
    notes = Notes(root)
    splits = read_manifest(path, notes)
    assert [record.pid for record in splits.unsplit] == [5, 6]
    assert len(notes.problems) == 2
    assert notes.problems[1].startswith(f"{path}, row 5, column pid: is empty")
    assert all("\n" not in line for line in notes.problems)


def test_a_file_listed_twice_names_both_rows(root: Path) -> None:
    path = table(root, "rgb/1.jpg,,,5,1", "rgb/2.jpg,,,6,1", "rgb/../rgb/1.jpg,,,6,2")
    assert f"row 4, column rgb: {root}/rgb/1.jpg is in row 2 already" in error_of("manifest", path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; its first row must name the columns: rgb, nir, tir, pid, camera, scene, split"),
        (HEADER + "\n", "has no rows"),
        ("rgb;nir;pid;camera\n", "no commas"),
        ("rgb\tpid\tcamera\n", "no commas"),
        ('\n"rgb";"pid";"camera"\n"a.jpg";"1";"2"\n', "no commas"),
        (",,,\n", "has no column pid, camera, one of rgb, nir, tir"),
        ("rgb,NIR,pid,camera\n", "the column 'NIR' is unknown; did you mean nir?"),
        ("rgb,weather,pid,camera\n", "'weather' is unknown; rename it to one of rgb, nir, tir, pid"),
        ("rgb,thermal,pid,camera\n", "the column 'thermal' is unknown; did you mean tir?"),
        ("rgb,pid,camid\n", "the column 'camid' is unknown; did you mean camera?"),
        ("rgb,rgb,pid,camera\n", "the column 'rgb' is there twice"),
        ("rgb,camera\n", "has no column pid (it has rgb, camera)"),
        ("pid,camera\n", "has no column one of rgb, nir, tir"),
        (HEADER + "\na, b.jpg,,,5,1\n", "row 2: 6 cells under 5 columns; quote cells that hold commas"),
        (HEADER + '\n"a.jpg,,,5,1\n', "no CSV"),
        ("rgb,pid,camera,split\nrgb/1.jpg,1,1,val\n", "row 2, column split: 'val' is unknown; write train, query"),
        ("rgb,pid,camera,split\nrgb/1.jpg,1,1,\n", "row 2, column split: is empty; write train"),
    ],
)
def test_a_bad_table_is_one_line(root: Path, text: str, words: str) -> None:
    path = root / "manifest.csv"
    path.write_text(text)
    message = error_of("manifest", path)
    assert message.startswith(str(path))
    assert words in message


def test_a_row_with_too_many_cells_is_left_out_and_the_others_are_read(root: Path) -> None:
    path = table(root, "rgb/1.jpg,,,5,1,7", "rgb/2.jpg,,,6,1")
    notes = Notes(root)
    assert [record.pid for record in read_manifest(path, notes).unsplit] == [6]
    assert notes.problems == [f"{path}, row 2: 6 cells under 5 columns; quote cells that hold commas"]


def test_a_table_of_another_encoding_and_no_table(root: Path) -> None:
    assert "holds neither manifest.csv nor manifest.parquet" in error_of("manifest", root)
    assert "there is no" in error_of("manifest", root / "none.csv")
    (root / "manifest.csv").write_bytes("rgb,pid,camera\nfür.jpg,1,1\n".encode("latin-1"))
    assert "is not UTF-8 text" in error_of("manifest", root)
    (root / "manifest.parquet").touch()
    assert "holds both manifest.csv and manifest.parquet" in error_of("manifest", root)


def test_spreadsheets_and_pandas_write_tables_like_this(root: Path) -> None:
    """A byte order mark, Windows line ends, spaces, blank lines, empty rows, 12.0; a row may go over two lines."""
    (root / "rgb/a\nb.jpg").touch()
    text = (
        'rgb, pid,camera,scene\r\n rgb/1.jpg ,12.0,3.0,\r\n\r\n,,,,,,,,\r\n"rgb/a\nb.jpg",1,1,7.0\r\nrgb/2.jpg,x,1,\r\n'
    )
    (root / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    notes = Notes(root)
    records = read_manifest(root, notes).unsplit
    assert [(r.pid, r.camera, r.scene, r.name) for r in records] == [(12, 3, None, "1.jpg"), (1, 1, 7, "a\nb.jpg")]
    assert [line.partition(": ")[0] for line in notes.problems] == [f"{root / 'manifest.csv'}, row 6, column pid"]


def test_absolute_paths_are_taken_as_they_are(root: Path) -> None:
    path = table(root, f"{root.parent / 'outside.jpg'},,,5,1", "rgb/1.jpg,,,6,1")
    notes = Notes(root)
    records = read_manifest(path, notes).unsplit
    assert [record.paths["rgb"] for record in records] == [root.parent / "outside.jpg", root / "rgb/1.jpg"]
    assert notes.problems == []


def test_relative_paths_start_at_the_table(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(root, "rgb/1.jpg,nir/1.jpg,,5,1", "rgb/2.jpg,,,6,1")
    monkeypatch.chdir(root)
    relative = fingerprint(load_dataset("manifest", "manifest.csv").train)
    monkeypatch.chdir(root.parent)
    assert relative == fingerprint(load_dataset("manifest", root).train)
    monkeypatch.chdir(root)
    for place in (root, root / "manifest.csv", Path(), Path("manifest.csv")):
        table(root, "../outside.jpg,,,5,1")
        assert "leaves" in error_of("manifest", place)


def test_a_table_written_from_a_relative_folder_is_read_from_anywhere(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(root, "rgb/1.jpg,nir/1.jpg,,5,1", "rgb/2.jpg,,,6,1")
    (root.parent / "elsewhere").mkdir()
    monkeypatch.chdir(root.parent / "elsewhere")
    relative = load_dataset("manifest", Path("..") / root.name)
    write_manifest("own.csv", relative)
    assert fingerprint(load_dataset("manifest", root.parent / "elsewhere" / "own.csv").train) == fingerprint(
        relative.train
    )


@pytest.mark.parametrize("layout", WRITERS_WITH_OWN_FILES)
def test_any_data_set_survives_the_trip_through_a_table(layout: str, tmp_path: Path) -> None:
    WRITERS_WITH_OWN_FILES[layout](tmp_path)
    dataset = load_dataset(layout, tmp_path)
    for place in (tmp_path / "all.csv", tmp_path / "else" / "where.csv"):
        write_manifest(place, dataset)
        again = load_dataset("manifest", place, DataConfig(object=dataset.object, protocol=dataset.protocol))  # type: ignore[arg-type]
        assert replace(again, name=layout) == dataset
        assert (again.query is again.gallery) == (dataset.query == dataset.gallery)
    inside = list(csv.DictReader((tmp_path / "all.csv").open()))
    outside = list(csv.DictReader((tmp_path / "else" / "where.csv").open()))
    assert not any(Path(row["rgb"]).is_absolute() for row in inside)
    assert all(Path(row["rgb"] or row["tir"]).is_absolute() for row in outside)


def test_shared_files_cannot_be_written(tmp_path: Path) -> None:
    write_rgbnt100(tmp_path)
    with pytest.raises(UserError, match="side by side"):
        write_manifest(tmp_path / "manifest.csv", load_dataset("rgbnt100", tmp_path))


def test_parquet_without_pyarrow_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (root / "manifest.parquet").touch()
    assert "pip install 'dmpt[parquet]'" in error_of("manifest", root)
    with pytest.raises(UserError, match=r"dmpt\[parquet\]"):
        write_manifest(root / "x.parquet", Dataset("x", "person", "same_camera", (), (), ()))


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_manifest_csv(tmp_path)
    dataset = load_dataset("manifest", tmp_path / "manifest.csv")
    write_manifest(tmp_path / "all.parquet", dataset)
    assert load_dataset("manifest", tmp_path / "all.parquet") == dataset
    rows = {"rgb": ["a/1.jpg", None, "a/2.jpg"], "pid": [1.0, float("nan"), 2.0], "camera": [1, 2, 3]}
    parquet.write_table(arrow.table(rows), tmp_path / "b.parquet")
    notes = Notes(tmp_path)
    assert [r.pid for r in read_manifest(tmp_path / "b.parquet", notes).unsplit] == [1, 2]
    assert [line.partition(": ")[0] for line in notes.problems] == [f"{tmp_path / 'b.parquet'}, row 2, column pid"]
    (tmp_path / "c.parquet").write_bytes(b"no table")
    assert "is no readable Parquet file" in error_of("manifest", tmp_path / "c.parquet")


class _Table:
    """What the reader uses of a pyarrow table."""

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns, self.column_names = columns, list(columns)

    def select(self, names: list[str]) -> "_Table":
        return _Table({name: self.columns[name] for name in names})

    def to_pylist(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*self.columns.values(), strict=True)]


def test_parquet_cells_of_every_type(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in, so that it runs where pyarrow is not installed."""
    fake, module = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    columns = {"rgb": ["rgb/1.jpg", "rgb/2.jpg"], "nir": ["nir/1.jpg", None], "pid": [5, 6], "camera": [1.0, 2.0]}
    scenes = {"scene": [3.0, float("nan")], "split": ["test", "test"]}
    fake.ArrowException = Exception  # type: ignore[attr-defined]
    fake.parquet = module  # type: ignore[attr-defined]
    module.read_table = lambda path: _Table(columns | scenes)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    (root / "manifest.parquet").touch()
    dataset = load_dataset("manifest", root)
    found = [(r.pid, r.camera, r.scene, sorted(r.paths)) for r in dataset.gallery]
    assert found == [(5, 1, 3, ["nir", "rgb"]), (6, 2, None, ["rgb"])]


def test_parquet_cells_that_are_no_text(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    strange = arrow.array([b"\xff"], arrow.binary()).view(arrow.string())
    parquet.write_table(arrow.table({"rgb": strange, "pid": [1], "camera": [1]}), tmp_path / "manifest.parquet")
    assert "a cell cannot be read" in error_of("manifest", tmp_path)
    when = arrow.array([1], arrow.timestamp("ns"))
    parquet.write_table(arrow.table({"when": when, "pid": [1], "camera": [1]}), tmp_path / "manifest.parquet")
    assert "the column 'when' is unknown" in error_of("manifest", tmp_path)


def test_folders_that_would_be_overlooked(tmp_path: Path) -> None:
    write_own_folder(tmp_path)
    (tmp_path / "rgb").mkdir()
    assert "holds rgb beside " in error_of("folder", tmp_path)
    (tmp_path / "rgb").rmdir()
    (tmp_path / "train" / "RGB").mkdir()
    if len(list((tmp_path / "train").glob("[rR]*"))) == 2:  # not where the file system knows no case
        assert "train holds RGB and rgb; move the images into one" in error_of("folder", tmp_path)


def test_names_of_folders_may_differ_in_case_but_not_otherwise(tmp_path: Path) -> None:
    write_own_folder(tmp_path)
    before = load_dataset("folder", tmp_path)
    (tmp_path / "test").rename(tmp_path / "Test")
    assert [record.pid for record in load_dataset("folder", tmp_path).gallery] == [r.pid for r in before.gallery]
    (tmp_path / "test").mkdir(exist_ok=True)
    if len(list(tmp_path.glob("[tT]est"))) == 2:  # not where the file system knows no case
        assert "holds Test and test; move the images into one" in error_of("folder", tmp_path)
        (tmp_path / "test").rmdir()
    (tmp_path / "train" / "masks").mkdir()
    assert load_dataset("folder", tmp_path).train == before.train
    (tmp_path / "train" / "tir").rename(tmp_path / "train" / "Thermal")
    assert "train holds a folder Thermal; rename it to tir" in error_of("folder", tmp_path)
    (tmp_path / "train" / "Thermal").rename(tmp_path / "train" / "tirs")
    assert "train holds a folder tirs; rename it to tir" in error_of("folder", tmp_path)


def test_an_umlaut_is_one_however_it_is_written(tmp_path: Path) -> None:
    for modality, form in (("rgb", "NFC"), ("nir", "NFD")):
        (tmp_path / modality).mkdir()
        for pid in (1, 2):
            (tmp_path / modality / unicodedata.normalize("NFC", f"{pid}_c1_tür.webp")).with_name(
                unicodedata.normalize(form, f"{pid}_c1_tür.webp")
            ).touch()
    dataset = load_dataset("folder", tmp_path)
    assert [tuple(r.paths) for r in (*dataset.train, *dataset.gallery)] == [("rgb", "nir")] * 2


def test_a_folder_without_splits_is_split_by_identity(tmp_path: Path) -> None:
    write_own_folder(tmp_path)
    (tmp_path / "train/tir").rename(tmp_path / "train/TIR")  # in any case
    (tmp_path / "train/rgb/13_c1.png").touch()
    dataset = load_dataset("folder", tmp_path / "train")
    assert dataset.query is dataset.gallery
    found = sorted((r.pid, r.camera, r.scene, tuple(r.paths)) for r in (*dataset.train, *dataset.gallery))
    assert found == [(12, 3, None, ("rgb", "nir", "tir")), (12, 4, 7, ("rgb", "nir")), (13, 1, None, ("rgb",))]
    assert {r.pid for r in dataset.train} ^ {r.pid for r in dataset.gallery} == {12, 13}


def rename(old: str, new: str) -> Callable[[Path], None]:
    return lambda root: (root / old).rename(root / new) and None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (rename("test", "query"), ["neither of rgb, nir, tir, nor test", "it holds query, train"]),
        (lambda root: [(root / name).mkdir() for name in ("query", "gallery")], ["test as well as query and gallery"]),
        (rename("test/rgb/0003_c1_door.JPG", "test/rgb/anna.jpg"), ["anna.jpg is not named PID_cCAM"]),
        (rename("test", "../gone"), ["nor test"]),
    ],
)
def test_bad_folders_are_one_line(tmp_path: Path, damage: Callable[[Path], None], words: list[str]) -> None:
    root = tmp_path / "root"
    write_own_folder(root)
    damage(root)
    message = error_of("folder", root)
    for word in words:
        assert word in message


def records_of(pids: list[int]) -> tuple[Record, ...]:
    return tuple(Record({"rgb": Path(f"{pid}_{i}.jpg")}, pid, 1) for i, pid in enumerate(pids))


pids = st.lists(st.integers(0, 50), min_size=2, max_size=60).filter(lambda drawn: len(set(drawn)) > 1)
shares = st.floats(0.01, 0.99)


@given(pids, shares, st.integers(0, 1000))
def test_the_split_parts_identities_and_keeps_everything(drawn: list[int], share: float, seed: int) -> None:
    records = records_of(drawn)
    train, test = split_by_identity(records, share, seed)
    assert train
    assert test
    assert not {r.pid for r in train} & {r.pid for r in test}
    assert sorted((*train, *test), key=records.index) == list(records)
    assert list(train) == [r for r in records if r in train]  # in order
    assert split_by_identity(records[::-1], share, seed) == (train[::-1], test[::-1])


@given(st.sets(st.integers(0, 10**6), min_size=20, max_size=60), st.integers(0, 1000))
@example({*range(10, 40)}, 0)
def test_an_identity_stays_on_its_side_when_others_come(drawn: set[int], seed: int) -> None:
    everyone = sorted(drawn)
    lots = [seed_for("split", seed, pid) < 2**63 for pid in everyone[:-5]]
    assume(any(lots) and not all(lots))  # where all fall to one side, the last to do so goes to the other
    _, before = split_by_identity(records_of(everyone[:-5]), 0.5, seed)
    _, after = split_by_identity(records_of(everyone), 0.5, seed)
    assert {r.pid for r in before} == {r.pid for r in after} & set(everyone[:-5])


def test_the_share_is_met_on_average_and_seeds_differ() -> None:
    records = records_of(list(range(5000)))
    _, first = split_by_identity(records, 0.2, 0)
    _, second = split_by_identity(records, 0.2, 1)
    assert abs(len(first) / 5000 - 0.2) < 0.03  # 5 standard deviations
    assert len({r.pid for r in first} & {r.pid for r in second}) / 5000 == pytest.approx(0.04, abs=0.015)


def test_one_identity_cannot_be_split() -> None:
    with pytest.raises(UserError, match=r"one identity \(\.\)"):
        split_by_identity(records_of([4, 4, 4]), 0.5, 0)


def test_settings_decide_how_own_data_are_split_and_judged(root: Path) -> None:
    rows = []
    for pid in range(40):
        (root / f"rgb/x{pid}.jpg").touch()
        rows.append(f"rgb/x{pid}.jpg,,,{pid},{pid % 2}")
    path = table(root, *rows)
    plain = load_dataset("manifest", path)
    assert (plain.object, plain.protocol) == ("person", "same_camera")
    assert plain.query is plain.gallery
    assert len(plain.train) + len(plain.gallery) == 40
    assert load_dataset("manifest", path, DataConfig(split_seed=1)).gallery != plain.gallery
    assert len(load_dataset("manifest", path, DataConfig(test_share=0.6)).gallery) > len(plain.gallery)
    assert load_dataset("manifest", path, DataConfig(object="vehicle")).object == "vehicle"
    assert "test images have no scene" in error_of("manifest", path, DataConfig(protocol="same_scene"))
    assert "would find itself" in error_of("manifest", path, DataConfig(protocol="none"))


def test_an_identity_in_both_splits_is_refused(root: Path) -> None:
    path = table(root, "rgb/1.jpg,5,1,train", "rgb/2.jpg,5,2,test", header="rgb,pid,camera,split")
    assert "1 identities are in both train and test (5)" in error_of("manifest", path)


def test_query_and_gallery_may_share_files_but_not_rows(root: Path) -> None:
    rows = ["rgb/1.jpg,5,1,query", "rgb/1.jpg,5,1,gallery", "rgb/2.jpg,5,2,gallery"]
    dataset = load_dataset("manifest", table(root, *rows, header="rgb,pid,camera,split"))
    assert facts_of(dataset, root).query == facts_of(dataset, root).gallery[:1]
    again = error_of("manifest", table(root, *rows, rows[0], header="rgb,pid,camera,split"))
    assert "row 5" in again
    assert "in row 2 already" in again


def test_own_data_are_trained_and_evaluated(tmp_path: Path) -> None:
    """The toy set as a table gives the numbers that it gives as RGBNT201."""
    data = toy(tmp_path / "toy")
    write_manifest(data / "manifest.csv", load_dataset("rgbnt201", data))
    results = []
    for layout in ("rgbnt201", "manifest"):
        config = with_(settings(data, epochs=1), data={"layout": layout})
        fit(config, tmp_path / layout)
        results.append(evaluate(tmp_path / layout).to_dict())
    assert results[1]["provenance"]["data"] == "manifest"
    names = ("mAP", "rank1", "queries", "protocol")
    assert {name: results[0][name] for name in names} == {name: results[1][name] for name in names}


def test_rows_that_are_wrong_can_be_skipped(tmp_path: Path) -> None:
    data = toy(tmp_path / "toy")
    write_manifest(data / "manifest.csv", load_dataset("rgbnt201", data))
    (data / "train_8/NI/000001_cam1_0_00.jpg").unlink()
    config = with_(settings(data), data={"layout": "manifest"})
    with pytest.raises(UserError, match="row 2, column nir: there is no file"):
        Trainer(config, tmp_path / "run")
    trainer = Trainer(config, tmp_path / "run", skip_broken=True)
    assert len(trainer.data.records) == 47
    assert [line.partition(", ")[2].partition(":")[0] for line in trainer.data.skipped] == ["row 2, column nir"]


@pytest.mark.parametrize(
    ("first", "second", "lacking"), [("rgb/1.jpg,nir/1.jpg", "rgb/2.jpg,", 1), ("rgb/1.jpg,", ",nir/1.jpg", 2)]
)
def test_training_says_beforehand_what_will_be_missing(root: Path, first: str, second: str, lacking: int) -> None:
    rows = [f"{first},5,1,train", f"{second},6,1,train", "rgb/3.jpg,,7,1,test", "rgb/x1.jpg,,7,1,test"]
    for name in ("nir/1.jpg", *(f"rgb/{name}.jpg" for name in ("1", "2", "3", "x1"))):
        Image.new("L", (8, 16)).save(root / name)
    path = table(root, *rows, header="rgb,nir,pid,camera,split")
    config = Config(
        data=DataConfig(layout="manifest", root=str(path)), heads="modality", train=TrainConfig(ids=2, instances=2)
    )
    assert read(config, False).lines()[1:] == [
        f"samples that lack a modality: {lacking}",
        "dmpt evaluate will find nothing: under protocol same_camera no test query has a match (dmpt check lists them)",
    ]


def test_a_data_set_without_test_images_trains_but_is_not_evaluated(root: Path) -> None:
    path = table(root, "rgb/1.jpg,5,1,train", "rgb/2.jpg,6,2,train", header="rgb,pid,camera,split")
    dataset = load_dataset("manifest", path)
    assert len(dataset.train) == 2
    with pytest.raises(UserError, match="have no test images"):
        check_records(dataset, DataConfig(), False)
