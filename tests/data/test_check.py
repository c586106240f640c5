"""`dmpt check`: each kind of mistake is found where it was made, and a clean set has none."""

import io
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import dmpt.data.check.looks as looks
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.check import check
from dmpt.data.check.findings import KINDS, Report
from dmpt.data.check.pictures import measure
from dmpt.data.images import Pixels
from dmpt.data.layouts import load_dataset
from dmpt.data.layouts.table import write_manifest
from dmpt.retrieval.metrics import count_valid, has_match
from dmpt.retrieval.protocols import PROTOCOLS, Labels
from dmpt.settings.config import DataConfig
from layouts import write_msvr310
from toy import write_toy_set

FOLDERS = ("RGB", "NI", "TI")
Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three identities to learn, 1 to 3, and two to test, 4 and 5; four samples of each by two cameras."""
    root = tmp_path_factory.mktemp("toy") / "set"
    write_toy_set(root, train_ids=3, test_ids=2, images=4)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "set"))


def found(report: Report) -> dict[str, int]:
    """Findings of each kind; the toy set has not the counts of RGBNT201, of course, nor do small tables name it all."""
    return Counter(finding.kind for finding in report.findings if finding.kind not in ("counts", "unlisted"))


def rename(root: Path, split: str, before: str, after: str) -> None:
    for folder in FOLDERS:
        path = root / split / folder / before
        path.rename(path.with_name(after))


def test_a_clean_set_has_no_findings(root: Path) -> None:
    report = check("rgbnt201", root)
    assert found(report) == {}
    write_manifest(root / "manifest.csv", load_dataset("rgbnt201", root))
    report = check("manifest", root)
    assert report.findings == ()
    assert report.counts["train"] == {"samples": 12, "ids": 3, "cameras": 2, "rgb": 12, "nir": 12, "tir": 12}
    assert report.counts["query"] == report.counts["gallery"]
    assert list(report.lines())[-1] == "nothing wrong found"


def test_images_that_are_passed_over_are_an_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the training images a level deeper: what is left is whole, and would train."""
    for folder in FOLDERS:
        (root / "train_3" / folder / "more").mkdir()
        for path in sorted((root / "train_3" / folder).glob("*.jpg"))[::2]:
            path.rename(path.parent / "more" / path.name)
    code, out, _ = run(capsys, root, "--layout", "rgbnt201")
    assert code == 1
    assert f"  files   42 taken, 0 left out, 0 ignored, 18 not understood, in {root}\n" in out
    assert f"{root}/train_3/NI: 6 images (more/000001_cam1_0_00.jpg, ...) lie where this layout reads none; move" in out
    assert "error: folders with images that are passed over (3)\n" in out
    assert "nothing wrong found" not in out


def test_images_that_a_table_does_not_name_are_a_warning(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(root / "manifest.csv", load_dataset("rgbnt201", root))
    rows = (root / "manifest.csv").read_text().splitlines()
    own(root, rows[:-1])
    code, out, _ = run(capsys, root, "--layout", "manifest")
    assert code == 0
    assert "  files   57 taken, 0 left out, 1 ignored, 3 not understood, in " in out
    assert "warning: folders with images that no row names (3)\n" in out
    assert f"{root}/test/TI: 1 images ({Path(rows[-1].split(',')[0]).name}) are in no row; add rows" in out
    assert "nothing wrong found" not in out


def test_published_counts(root: Path) -> None:
    messages = [finding.message for finding in check("rgbnt201", root).findings]
    assert len(messages) == 4
    assert messages[0].startswith("train has 3 ids (published: 171), 12 samples (published: 3951), 2 cameras (publ")
    assert messages[3].startswith("total has 5 ids (published: 201), 20 samples (published: 4787); fetch")


TRAIN, TEST = "000001_cam1_0_00.jpg", "000004_cam1_0_00.jpg"


def misname_and_lose(root: Path) -> None:
    (root / "train_3/NI" / TRAIN).unlink()
    (root / "test/TI" / TEST).rename(root / "test/TI/x.jpg")


def truncate(root: Path) -> None:
    for path in (root / "train_3/RGB" / TRAIN, root / "test/TI" / TEST):
        path.write_bytes(path.read_bytes()[:300])


def same_identity(root: Path) -> None:
    for number in range(4):
        rename(
            root, "test", f"000005_cam{number % 2 + 1}_0_{number:02d}.jpg", f"000003_cam{number % 2 + 1}_1_{number}.jpg"
        )


def copy_into_test(root: Path) -> None:
    """The same pixels in another format."""
    path = root / "test/TI" / TEST
    Image.open(root / "train_3/TI" / TRAIN).convert("RGB").save(path.with_suffix(".png"))
    path.unlink()


def copy_to_another_identity(root: Path) -> None:
    for folder in ("RGB", "TI"):
        shutil.copy(root / "test" / folder / TEST, root / "test" / folder / "000005_cam2_0_01.jpg")


def one_camera_in_test(root: Path) -> None:
    for number in (1, 3):
        rename(root, "test", f"000004_cam2_0_{number:02d}.jpg", f"000004_cam1_0_{number:02d}.jpg")


def one_camera_in_train(root: Path) -> None:
    for number in (1, 3):
        rename(root, "train_3", f"000002_cam2_0_{number:02d}.jpg", f"000002_cam1_0_{number:02d}.jpg")


def exchange(root: Path) -> None:
    rgb, tir = root / "train_3/RGB" / TRAIN, root / "train_3/TI" / TRAIN
    rgb.rename(root / "aside.jpg")
    tir.rename(rgb)
    (root / "aside.jpg").rename(tir)


def all_exchanged(root: Path) -> None:
    for split in ("train_3", "test"):
        (root / split / "RGB").rename(root / "aside")
        (root / split / "NI").rename(root / split / "RGB")
        (root / "aside").rename(root / split / "NI")


def copy_rgb_to_thermal(root: Path) -> None:
    shutil.copy(root / "train_3/RGB" / TRAIN, root / "train_3/TI" / TRAIN)


def another_rgb_in_thermal(root: Path) -> None:
    Image.open(root / "train_3/RGB" / TRAIN).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(
        root / "train_3/TI" / TRAIN
    )


def false_colour(root: Path) -> None:
    """Hot is red, cold is blue, the rest is green."""
    for path in root.glob("*/TI/*.jpg"):
        heat = np.asarray(Image.open(path), dtype=float)
        colour = np.stack([heat, 255 - abs(2 * heat - 255), 255 - heat], axis=2)
        Image.fromarray(colour.astype(np.uint8)).save(path, quality=95)


def resize(folder: str, size: tuple[int, int], pattern: str = f"train_3/{{}}/{TRAIN}") -> Damage:
    def damage(root: Path) -> None:
        for path in root.glob(pattern.format(folder)):
            Image.open(path).resize(size).save(path)

    return damage


def bright_grey(root: Path) -> None:
    path = root / "train_3/RGB" / TRAIN
    Image.open(path).convert("L").point(lambda value: 128 + value // 2).convert("RGB").save(path)


def dark_grey(root: Path) -> None:
    path = root / "train_3/RGB" / TRAIN
    Image.open(path).convert("L").point(lambda value: value // 8).convert("RGB").save(path)


def blank(root: Path) -> None:
    """Black frames in train and test, of two identities: alike, but no copies of each other."""
    for path in (root / "train_3/TI" / TRAIN, root / "test/TI" / TEST, root / "test/TI/000005_cam1_0_00.jpg"):
        Image.new("L", (32, 64)).save(path)


def deep(low: int, high: int) -> Damage:
    """Thermal pictures of 16 bits with all values from ``low`` up to ``high``."""

    def damage(root: Path) -> None:
        for path in root.glob("*/TI/*.jpg"):
            grey = np.asarray(Image.open(path), dtype=np.float64)
            grey = (grey - grey.min()) / np.ptp(grey)
            Image.fromarray((low + grey * (high - low)).astype(np.uint16)).save(path.with_suffix(".png"))
            path.unlink()

    return damage


@pytest.mark.parametrize(
    ("damage", "kinds", "words"),
    [
        (misname_and_lose, {"files": 3}, [f"NI/{TRAIN[:-4]}.* is missing; restore", "TI/x.jpg is not named PPPPPP"]),
        (truncate, {"unreadable": 2}, [f"RGB/{TRAIN} is truncated", f"TI/{TEST} is truncated", "restore or remove it"]),
        (same_identity, {"both_splits": 1}, ["identity 3 is in train", "test", "000003_cam1_0_00", "000003_cam1_1_0"]),
        (copy_into_test, {"duplicate": 1}, ["test/TI/000004_cam1_0_00.png (tir) of query", f"train_3/TI/{TRAIN}"]),
        (
            copy_to_another_identity,
            {"conflict": 1},
            ["RGB/000005_cam2_0_01.jpg (rgb, tir), identity 5, camera 2,", f"RGB/{TEST}, identity 4, camera 1"],
        ),
        (one_camera_in_test, {"no_match": 4}, [TEST, "identity 4 counts under protocol same_camera; add"]),
        (one_camera_in_train, {"one_camera": 1}, ["identity 2 is seen by camera 1 only (4 samples"]),
        (exchange, {"exchanged": 1}, [f"TI/{TRAIN}: its tir is in colour and its rgb is grey; exchange the two"]),
        (all_exchanged, {"exchanged": 20}, ["its nir is in colour and its rgb is grey"]),
        (copy_rgb_to_thermal, {"identical": 1, "colour": 1}, [f"TI/{TRAIN}: its tir has the same pixels as its rgb"]),
        (another_rgb_in_thermal, {"colour": 1}, [f"TI/{TRAIN}: its tir is a colour picture"]),
        (false_colour, {"pseudo_colour": 1}, ["20 of 20 tir pictures are in colour, the first is"]),
        (resize("NI", (32, 60)), {"sizes": 1}, [TRAIN, "rgb 32 x 64, nir 32 x 60, tir 32 x 64; crop"]),
        (resize("NI", (16, 32)), {"resolution": 1}, ["1 of 20 samples", "rgb 32 x 64, nir 16 x 32, tir 32 x 64"]),
        (resize("NI", (13, 25)), {"resolution": 1}, ["nir 13 x 25"]),  # 12.5 x 25, rounded
        (resize("TI", (64, 64), "*/{}/*.jpg"), {"resolution": 1}, ["20 of 20 samples have modalities of different"]),
        (bright_grey, {"grey_rgb": 1}, [f"RGB/{TRAIN}: its rgb is bright and has no colour"]),
        (dark_grey, {}, []),
        (blank, {"blank": 3}, [f"train_3/TI/{TRAIN}: its tir shows nothing but one value"]),
        (
            deep(30000, 31000),
            {"flat": 20},
            ["is left fewer than 8 of 256 levels; set data.value_range to auto, which is [300"],
        ),
        (deep(0, 65535), {}, []),
    ],
)
def test_each_mistake_is_found_and_nothing_else(
    root: Path, damage: Damage, kinds: dict[str, int], words: list[str]
) -> None:
    damage(root)
    report = check("rgbnt201", root)
    assert found(report) == kinds
    told = [finding.message for finding in report.findings if finding.kind != "counts"]
    assert all("\n" not in message and "; " in message for message in told)
    for word in words:
        assert any(word in message for message in told), (word, told)


def test_values_outside_of_the_range_are_clipped(root: Path) -> None:
    deep(7000, 9000)(root)
    assert found(check("rgbnt201", root, DataConfig(value_range=(7000, 9000)))) == {}
    report = check("rgbnt201", root, DataConfig(value_range=(7500, 9000)))
    assert set(found(report)) == {"clipped"}
    assert report.errors == 0
    path = root / "train_3/TI/000001_cam1_0_00.png"
    share = np.mean(np.asarray(Image.open(path)) < 7500)
    message = next(finding.message for finding in report.findings if finding.paths == (path,))
    assert f"about {share:.0%} of its pixels are clipped; set data.value_range, all such images" in message
    assert found(check("rgbnt201", root, DataConfig(value_range=(0, 100))))["flat"] == 20


@pytest.mark.parametrize(
    ("low", "spread", "kind"), [(7500, 0, "blank"), (7500, 6, "blank"), (20000, 0, "blank"), (20000, 1000, "clipped")]
)
def test_an_odd_frame_is_no_fault_of_the_range(root: Path, low: int, spread: int, kind: str) -> None:
    """A closed shutter, which is blank but for noise; and a frame that saw something else."""
    deep(7000, 9000)(root)
    path = root / "train_3/TI/000001_cam1_0_00.png"
    noise = np.random.default_rng(0).integers(0, spread + 1, (64, 32))
    Image.fromarray((low + noise).astype(np.uint16)).save(path)
    report = check("rgbnt201", root, DataConfig(value_range="auto"))
    assert found(report) == {kind: 1}
    assert next(finding.paths for finding in report.findings) == (path,)


def test_half_of_a_modality_in_colour_is_many_mistakes_and_more_is_a_rule(root: Path) -> None:
    false_colour(root)
    for folder in ("test", "train_3"):
        for path in sorted((root / folder / "TI").iterdir())[: 4 if folder == "test" else 6]:
            Image.open(path).convert("L").save(path)
    assert found(check("rgbnt201", root)) == {"colour": 10}


def own(root: Path, rows: list[str]) -> Path:
    (root / "manifest.csv").write_text("\n".join(rows))
    return root


def test_queries_that_find_themselves(root: Path) -> None:
    shutil.copy(root / "test/RGB" / TEST, root / "copy.jpg")
    head = [
        "rgb,pid,camera,split",
        *(f"train_3/RGB/00000{i}_cam{c}_0_0{c - 1}.jpg,{i},{c},train" for i in (1, 2) for c in (1, 2)),
    ]
    tail = [f"test/RGB/{TEST},4,1,query", "copy.jpg,4,1,gallery", "test/RGB/000004_cam2_0_01.jpg,4,2,gallery"]
    assert found(check("manifest", own(root, head + tail))) == {}
    report = check("manifest", root, DataConfig(protocol="none"))
    assert found(report) == {"leak": 1}
    assert "copy.jpg (rgb) of the gallery has the same pixels as" in report.findings[0].message
    # Every test record is both query and gallery: each finds itself.
    both = [row.replace(",gallery", ",test") for row in tail[1:]]
    assert found(check("manifest", own(root, head + both), DataConfig(protocol="none"))) == {"leak": 2}


def test_scenes_that_are_needed_and_absent(root: Path) -> None:
    report = check("rgbnt201", root, DataConfig(protocol="same_scene"))
    assert found(report) == {"no_match": 1}
    assert "have no scenes" in report.findings[0].message


def test_subsets_of_modalities_and_a_missing_split(root: Path) -> None:
    rows = ["rgb,nir,tir,pid,camera,split"]
    for camera, modality in ((1, 0), (2, 1)):
        cells = ["", "", ""]
        cells[modality] = f"train_3/{FOLDERS[modality]}/000001_cam{camera}_0_0{camera - 1}.jpg"
        rows.append(",".join([*cells, f"1,{camera},train"]))
    rows.append("gone.jpg,,,1,1,train")
    report = check("manifest", own(root, rows))
    assert found(report) == {"files": 1, "empty": 2, "incomplete": 1}
    assert "2 of 2 samples lack a modality, the first is " in next(
        finding.message for finding in report.findings if finding.kind == "incomplete"
    )
    assert "row 4, column rgb: there is no file gone.jpg" in report.findings[0].message
    assert report.counts["train"] == {"samples": 2, "ids": 1, "cameras": 2, "rgb": 1, "nir": 1, "tir": 0}


def test_modalities_side_by_side_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    names = {
        "bounding_box_train": "0001_c000{}_000.jpg",
        "query": "0002_c0001_000.jpg",
        "bounding_box_test": "0002_c0002_00{}.jpg",
    }
    for folder, name in names.items():
        (tmp_path / "rgbir" / folder).mkdir(parents=True)
        for number in (1,) if folder == "query" else (1, 2):
            grey = np.repeat(draw.integers(0, 256, (16, 96, 1)), 3, axis=2)
            grey[:, :32] = draw.integers(0, 256, (16, 32, 3))
            image = Image.fromarray(grey.astype(np.uint8)).resize((768, 128), Image.Resampling.NEAREST)
            image.save(tmp_path / "rgbir" / folder / name.format(number), quality=95)
    reads: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), read_bytes(path))[1])
    assert found(check("rgbnt100", tmp_path)) == {}
    assert Counter(path for path in reads if path.suffix == ".jpg") == dict.fromkeys(tmp_path.rglob("*.jpg"), 1)
    path = tmp_path / "rgbir/query/0002_c0001_000.jpg"
    image = Image.open(path)
    image.paste(image.crop((256, 0, 512, 128)), (512, 0))
    image.save(path.with_suffix(".png"))
    path.unlink()
    image.crop((0, 0, 512, 128)).save(tmp_path / "rgbir/bounding_box_test/0002_c0002_002.jpg")
    report = check("rgbnt100", tmp_path)
    assert found(report) == {"unreadable": 1, "identical": 1}
    assert "512 x 128 pixels" in report.findings[0].message
    assert report.findings[1].paths == (path.with_suffix(".png"),)


def test_every_file_is_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    decode = looks.decode
    monkeypatch.setattr(looks, "decode", lambda path, convert: (reads.append(path), decode(path, convert))[1])
    check("rgbnt201", root)
    assert Counter(reads) == dict.fromkeys(root.rglob("*.jpg"), 1)


def test_everything_at_once_whatever_the_number_of_workers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmpt.data.check.looks._CHUNK", 3)
    for damage in (misname_and_lose, blank, bright_grey, one_camera_in_train, copy_to_another_identity):
        damage(root)
    Image.new("RGB", (9, 9)).save(root / "train_3/TI/000002_cam1_0_00.jpg")
    (root / "train_3/RGB/000003_cam1_0_00.jpg").write_bytes(b"")
    reports = [check("rgbnt201", root, workers=workers) for workers in (1, 2)]
    assert reports[0] == reports[1]
    assert {"files", "unreadable", "conflict", "blank", "one_camera"} <= set(found(reports[0]))
    order = [list(KINDS).index(finding.kind) for finding in reports[0].findings]
    assert order == sorted(order)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        main(["check", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_exit_codes_and_texts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, root, "--layout", "rgbnt201")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "0 errors, 4 warnings"
    one_camera_in_test(root)
    same_identity(root)
    one_camera_in_train(root)
    rename(root, "test", "000003_cam1_1_0.jpg", "000003_cam2_1_0.jpg")
    rename(root, "test", "000003_cam1_1_2.jpg", "000003_cam2_1_2.jpg")
    code, out, _ = run(capsys, root, "--layout", "rgbnt201", "--workers", "2")
    assert code == 1
    assert "error: queries without a valid match in the gallery (8)" in out
    assert out.count("counts under protocol") == 5
    assert "  and 3 more; --json lists all" in out
    assert "warning: training identities seen by one camera only (under same_scene: in one scene) (1)" in out
    assert out.splitlines()[-1] == "9 errors, 5 warnings"


def test_under_the_scene_rule_one_scene_is_one_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_msvr310(tmp_path / "data")
    _, out, _ = run(capsys, tmp_path / "data", "--layout", "msvr310")
    assert "identity 1 is seen by scene 3 only (2 samples" in out  # by two cameras
    assert "of another, or accept it" in out


def test_json_is_complete(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_camera_in_test(root)
    truncate(root)
    (root / "test/RGB/000005_cam1_0_00.jpg").write_bytes(b"<html>")
    code, out, _ = run(capsys, root, "--layout", "rgbnt201", "--json")
    result = json.loads(out)
    assert code == 1
    assert set(result) == {
        *("layout", "root", "protocol", "value_range", "counts", "files"),
        *("errors", "warnings", "kinds", "findings"),
    }
    assert result["kinds"] == {"unreadable": 3, "no_match": 4, "counts": 4}
    assert (result["errors"], result["warnings"]) == (7, 4)
    counted = {"taken": 60, "left_out": 0, "ignored": 0, "not_understood": 0}
    assert result["files"] == {"folder": str(root), **counted}
    assert result["counts"]["train"]["samples"] == 12
    assert Counter(finding["kind"] for finding in result["findings"]) == result["kinds"]
    for finding in result["findings"]:
        assert set(finding) == {"kind", "level", "message", "paths"}
        assert finding["level"] == KINDS[finding["kind"]].level
        assert all(Path(path).exists() and path in finding["message"] for path in finding["paths"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--layout", "rgbnt201"], "there is no folder nowhere"),
        (["."], "required: --layout"),
        ([".", "--layout", "rgbnt20"], "rgbnt20"),
        ([".", "--layout", "rgbnt201"], "train_*"),
        ([".", "--layout", "rgbnt100"], "set DIR to the folder that does, or correct --layout"),
        (["data.root/x", "--layout", "folder"], "there is no folder data.root/x; set DIR to the folder"),
        ([".", "--layout", "manifest"], "holds neither manifest.csv nor manifest.parquet; write one"),
        ([".", "--layout", "rgbnt201", "--workers", "0"], "workers"),
        ([".", "--layout", "rgbnt201", "--data.value_range", "[5,5]"], "data.value_range is [5.0, 5.0]"),
    ],
)
def test_wrong_commands_and_paths(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def image_of(array: np.ndarray, quality: int | None = None) -> Pixels:
    """uint8 (H, W, 3) to (3, H, W), by way of JPEG where a quality is given."""
    image = Image.fromarray(array)
    if quality:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        image = Image.open(buffer)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.floats(0.3, 1.0)] * 3),
    st.tuples(*[st.integers(0, 60)] * 3),
    st.sampled_from([None, 95]),
)
def test_a_tint_is_no_colour(
    seed: int, gain: tuple[float, float, float], offset: tuple[int, int, int], quality: int | None
) -> None:
    """Grey seen through any coloured glass stays infrared; JPEG blurs colours, so it is as smooth as photos."""
    coarse = np.random.default_rng(seed).integers(0, 190, (8, 4), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(coarse).resize((64, 128), Image.Resampling.BICUBIC), dtype=float)
    tinted = grey[..., None] * gain + offset
    assert not measure(image_of(np.rint(tinted).astype(np.uint8), quality)).coloured


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0))
def test_hues_are_colour_however_dark(seed: int, light: float) -> None:
    coarse = np.random.default_rng(seed).integers(20, 230, (8, 4, 3), dtype=np.uint8)
    colour = np.asarray(Image.fromarray(coarse).resize((64, 128), Image.Resampling.BICUBIC), dtype=float)
    picture = measure(image_of(np.rint(colour * light).astype(np.uint8), 90))
    assert picture.coloured
    assert not picture.grey


def test_a_logo_on_a_thermal_picture_is_no_colour() -> None:
    grey = np.repeat(np.linspace(0, 255, 128, dtype=np.uint8)[:, None, None].repeat(64, axis=1), 3, axis=2)
    logo = grey.copy()
    logo[5:20, 5:25] = (255, 120, 0)  # 4 % of the pixels
    assert not measure(image_of(logo)).coloured


def test_digests_are_of_pixels_and_size() -> None:
    pixels = np.arange(96, dtype=np.uint8).reshape(3, 4, 8)
    assert measure(pixels).digest == measure(pixels.copy()).digest
    assert measure(pixels).digest != measure(pixels.reshape(3, 8, 4)).digest
    assert measure(pixels).digest != measure(pixels[:, ::-1].copy()).digest


label = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))


@settings(deadline=None)
@given(
    st.lists(label, min_size=1, max_size=12),
    st.lists(label, min_size=1, max_size=12),
    st.sampled_from(sorted(PROTOCOLS)),
)
def test_matches_agree_with_the_definition(
    query: list[tuple[int, int, int]], gallery: list[tuple[int, int, int]], protocol: str
) -> None:
    def labels(items: list[tuple[int, int, int]]) -> Labels:
        return Labels(*(np.array(column) for column in zip(*items, strict=True)))

    ignored = {
        "same_camera": lambda q, g: q[1] == g[1],
        "same_scene": lambda q, g: q[2] == g[2],
        "none": lambda q, g: False,
    }
    expected = [any(q[0] == g[0] and not ignored[protocol](q, g) for g in gallery) for q in query]
    assert has_match(labels(query), labels(gallery), protocol).tolist() == expected
    if any(expected):
        assert count_valid(labels(query), labels(gallery), protocol) == sum(expected)
    else:
        with pytest.raises(UserError):
            count_valid(labels(query), labels(gallery), protocol)
