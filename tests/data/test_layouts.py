"""Every layout on a small copy with its quirks, record by record."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.base.yaml import load
from dmpt.data.check.looks import look_at
from dmpt.data.images import Pixels, read_image, read_record
from dmpt.data.layouts import DATASETS, list_dataset, load_dataset
from dmpt.data.loader import SampleDataset, test_batches
from dmpt.data.records import Record, fingerprint, labels_of
from dmpt.data.transforms import TestTransform
from dmpt.evaluation.evaluate import evaluate as evaluate_run
from dmpt.retrieval.metrics import evaluate
from dmpt.retrieval.protocols import PROTOCOLS
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.rules import check
from dmpt.settings.shipped import read_config
from dmpt.towers.phrases import OBJECTS
from layouts import (
    WMVEID863_LOST,
    Facts,
    facts_of,
    write_manifest_csv,
    write_market1501_mm,
    write_msvr310,
    write_own_folder,
    write_rgbn300,
    write_rgbnt100,
    write_rgbnt201,
    write_wmveid863,
)
from runs import fit, with_

FULL = (0.0, 65535.0)
CONFIGS = Path(__file__).parents[2] / "configs"
BENCHMARKS: dict[str, tuple[Callable[[Path], Facts], str, str]] = {
    "rgbnt201": (write_rgbnt201, "person", "same_camera"),
    "market1501_mm": (write_market1501_mm, "person", "same_camera"),
    "rgbnt100": (write_rgbnt100, "vehicle", "same_camera"),
    "msvr310": (write_msvr310, "vehicle", "same_scene"),
    "wmveid863": (write_wmveid863, "vehicle", "same_camera"),
    "rgbn300": (write_rgbn300, "vehicle", "same_camera"),
}
LACKING = {"rgbn300": ("rgb", "nir")}
WRITERS = {name: entry[0] for name, entry in BENCHMARKS.items()} | {
    "manifest": write_manifest_csv,
    "folder": write_own_folder,
}


def error_of(layout: str, root: Path, settings: DataConfig | None = None) -> str:
    with pytest.raises(UserError) as error:
        load_dataset(layout, root, settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("layout", WRITERS)
def test_every_record(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "vis" / "RGB_ni_th"  # a loader that replaces folder names in the whole path would go astray
    expected = WRITERS[layout](root)
    dataset = load_dataset(layout, root)
    found = facts_of(dataset, root)
    for split, records, facts in zip(Facts._fields, found, expected, strict=True):
        assert records == facts, split
    files = {file for facts in expected for fact in facts for file in fact.files.values()}
    assert (dataset.files.taken, dataset.files.passed_over) == (len(files), ())  # every file once, and nothing else


@pytest.mark.parametrize("layout", BENCHMARKS)
def test_the_benchmarks_object_protocol_and_modalities(layout: str, tmp_path: Path) -> None:
    writer, word, protocol = BENCHMARKS[layout]
    writer(tmp_path)
    dataset = load_dataset(layout, tmp_path)
    assert (dataset.name, dataset.object, dataset.protocol) == (layout, word, protocol)
    assert {tuple(record.paths) for record in dataset.train} == {LACKING.get(layout, MODALITIES)}
    changed = load_dataset(layout, tmp_path, DataConfig(object="person", protocol="same_camera"))
    assert (changed.object, changed.protocol) == ("person", "same_camera")


@pytest.mark.parametrize("layout", BENCHMARKS)
def test_test_images_alone_are_a_data_set(layout: str, tmp_path: Path) -> None:
    BENCHMARKS[layout][0](tmp_path)
    whole = load_dataset(layout, tmp_path)
    train = next(folder for folder in whole.train[0].file.parents if "train" in folder.name)
    shutil.rmtree(train)
    alone = load_dataset(layout, tmp_path)
    assert (alone.train, alone.query, alone.gallery) == ((), whole.query, whole.gallery)
    (train.parent / "trian").mkdir()
    with pytest.raises(UserError, match="holds"):  # the training images by a name that nobody reads
        load_dataset(layout, tmp_path)


@pytest.mark.parametrize("layout", WRITERS)
def test_the_order_of_the_file_system_is_of_no_effect(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[layout](tmp_path)
    before, iterdir, rng = load_dataset(layout, tmp_path), Path.iterdir, random.Random(0)

    def shuffled(path: Path) -> list[Path]:
        listed = list(iterdir(path))
        return rng.sample(listed, len(listed))

    monkeypatch.setattr(Path, "iterdir", shuffled)
    assert load_dataset(layout, tmp_path) == before


@pytest.mark.parametrize("layout", BENCHMARKS)
def test_the_root_may_be_any_of_the_folders_above(layout: str, tmp_path: Path) -> None:
    """And the other data sets may lie beside it."""
    for other, (writer, _, _) in BENCHMARKS.items():
        if other != layout:
            writer(tmp_path)
    writer = BENCHMARKS[layout][0]
    home = min((tmp_path / file for file in writer(tmp_path).query[0].files.values()), key=str)
    dataset = load_dataset(layout, tmp_path)
    inner = home.relative_to(tmp_path).parts
    depth = 2 if "rgbir" in inner else 1
    for parts in range(1, depth + 1):
        assert load_dataset(layout, tmp_path.joinpath(*inner[:parts])) == dataset


@pytest.mark.parametrize("name", ["Market-1501-RGBNT", "market1501_to_RGBNT201_dark", "Market-MM", "my own name"])
def test_market_by_any_name(name: str, tmp_path: Path) -> None:
    expected = write_market1501_mm(tmp_path, name)
    assert facts_of(load_dataset("market1501_mm", tmp_path), tmp_path) == expected


def test_rgbnt100_without_the_folder_between(tmp_path: Path) -> None:
    expected = write_rgbnt100(tmp_path, "RGBNT100")
    assert facts_of(load_dataset("rgbnt100", tmp_path / "RGBNT100"), tmp_path) == expected


def test_msvr310_in_lower_case(tmp_path: Path) -> None:
    expected = write_msvr310(tmp_path, "msvr310")
    write_rgbnt100(tmp_path)
    assert facts_of(load_dataset("msvr310", tmp_path), tmp_path) == expected


def test_wmveid863_pairs_by_name_and_reports_what_is_missing(tmp_path: Path) -> None:
    expected = write_wmveid863(tmp_path, damaged=True)
    message = error_of("wmveid863", tmp_path)
    lost = [str((tmp_path / file).with_suffix("")) for file in WMVEID863_LOST]
    assert message.startswith(f"{lost[0]}.* is missing; restore it")
    assert "1 more" in message
    skipped: list[str] = []
    dataset = load_dataset("wmveid863", tmp_path, skipped=skipped)
    assert facts_of(dataset, tmp_path) == expected
    assert [line.partition(".*")[0] for line in skipped] == lost
    assert list_dataset("wmveid863", tmp_path) == (dataset, skipped)
    for record in dataset.train:
        assert len({path.name for path in record.paths.values()}) == 1


def test_two_sets_that_fit_are_told_apart_or_refused(tmp_path: Path) -> None:
    write_market1501_mm(tmp_path, "one")
    write_market1501_mm(tmp_path, "two")
    assert "more than one folder holds train, query and gallery" in error_of("market1501_mm", tmp_path)
    write_market1501_mm(tmp_path, "Market-1501-RGBNT")
    assert {r.paths["rgb"].parts[-4] for r in load_dataset("market1501_mm", tmp_path).train} == {"Market-1501-RGBNT"}


def touch(path: str) -> Callable[[Path], None]:
    return lambda root: (root / path).touch()


def remove(path: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / path).rename(root.parent / "gone")

    return act


@pytest.mark.parametrize(
    ("layout", "damage", "words"),
    [
        ("market1501_mm", remove("Market1501-MM/query"), ["holds train, query and gallery", "data.root"]),
        ("market1501_mm", remove("Market1501-MM/query/NI"), ["query holds no folder NI", "it holds RGB, TI"]),
        ("market1501_mm", touch("Market1501-MM/query/RGB/x.jpg"), ["x.jpg is not named PPPP_cCsS_FFFFFF_NN"]),
        (
            "market1501_mm",
            remove("Market1501-MM/query/TI/0001_c1s1_001051_00.jpg"),
            ["TI/0001_c1s1_001051_00.* is mis"],
        ),
        ("rgbnt100", remove("RGBNT100"), ["bounding_box_train, query and bounding_box_test", "it is empty"]),
        ("rgbnt100", touch("RGBNT100/rgbir/query/0502_c1.png.jpg"), ["0502_c1.png.jpg is not named PPPP_cCCCC_NNN"]),
        ("rgbnt100", touch("RGBNT100/rgbir/query/0502_c0001_000.png"), ["0502_c0001_000.png", "twice"]),
        ("msvr310", remove("MSVR310/query3"), ["bounding_box_train, query3 and bounding_box_test"]),
        ("msvr310", remove("MSVR310/query3/0019"), ["query3 holds no images"]),
        ("msvr310", remove("MSVR310/query3/0019/th"), ["0019/th/0019_s012_v0_000.* is missing", "2 more"]),
        ("msvr310", touch("MSVR310/query3/0019/th/0019_s12_v0_000.jpg"), ["is not named PPPP_sSSS_vV_NNN"]),
        ("wmveid863", remove("WMVEID863/test"), ["train, query and test"]),
        ("wmveid863", lambda root: (root / "WMVEID863/test/new").mkdir(), ["test/new is not named with the number"]),
        ("wmveid863", touch("WMVEID863/query/0021/vis/x.jpg"), ["x.jpg is not named with the camera behind a v"]),
    ],
)
def test_errors_are_one_line_and_name_the_place(
    layout: str, damage: Callable[[Path], None], words: list[str], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    WRITERS[layout](root)
    damage(root)
    message = error_of(layout, root)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("layout", "copy"),
    [
        ("rgbnt100", "RGBNT100/rgbir/query/0502_c0001_000.png"),
        ("msvr310", "MSVR310/query3/0019/th/0019_s012_v0_000.png"),
    ],
)
def test_a_sample_whose_image_is_there_twice_is_left_out(layout: str, copy: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path)
    before = load_dataset(layout, tmp_path)
    (tmp_path / copy).touch()
    problems: list[str] = []
    after = load_dataset(layout, tmp_path, skipped=problems)
    assert len(problems) == 1
    assert [record.file.stem for record in before.query if record not in after.query] == [Path(copy).stem]


def test_columns_are_cut_where_the_layout_says(tmp_path: Path) -> None:
    """Red, green and blue columns; the third is 256 wide, not the 512 that HTT reads."""
    write_rgbnt100(tmp_path)
    record = load_dataset("rgbnt100", tmp_path).gallery[0]
    pixels = np.zeros((128, 768, 3), np.uint8)
    for channel in range(3):
        pixels[:, 256 * channel : 256 * (channel + 1), channel] = 200
    Image.fromarray(pixels).save(record.paths["rgb"], "PNG")
    images = read_record(record, FULL)
    assert list(images) == list(MODALITIES)
    for channel, modality in enumerate(MODALITIES):
        image = images[modality]
        assert image.dtype == np.uint8
        assert image.shape == (3, 128, 256)
        assert image.flags.c_contiguous
        assert np.unique(image).tolist() == [0, 200]
        assert (image[channel] == 200).all()


def test_read_record_equals_reading_each_file(tmp_path: Path) -> None:
    write_own_folder(tmp_path)
    for record in load_dataset("folder", tmp_path).train:
        images = read_record(record, FULL)
        assert list(images) == list(record.paths)
        assert all(np.array_equal(images[m], read_image(path, FULL)) for m, path in record.paths.items())


def test_a_shared_file_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rgbn300(tmp_path)
    read: list[Path] = []

    def counted(path: Path, value_range: tuple[float, float], data: bytes | None = None) -> Pixels:
        read.append(path)
        return read_image(path, value_range)

    monkeypatch.setattr("dmpt.data.images.read_image", counted)
    record = load_dataset("rgbn300", tmp_path).train[0]
    assert list(read_record(record, FULL)) == ["rgb", "nir"]
    assert read == [record.paths["rgb"]]


def test_a_picture_of_another_width_is_named(tmp_path: Path) -> None:
    write_rgbn300(tmp_path)
    dataset = load_dataset("rgbnt100", tmp_path)  # the folders fit, the pictures do not
    with pytest.raises(UserError) as error:
        read_record(dataset.train[0], FULL)
    message = str(error.value)
    assert message.startswith(f"{dataset.train[0].paths['rgb']} is 512 x 128 pixels")
    assert "3 modalities side by side in 768" in message
    looks = look_at(dataset, dataset.train)
    assert [len(looks.broken(record)) for record in dataset.train] == [1, 1, 1]  # once per file, not per modality
    assert looks.broken(dataset.train[0]) == [message]


def test_a_picture_that_is_too_wide_is_not_cut(tmp_path: Path) -> None:
    write_rgbnt100(tmp_path)
    record = load_dataset("rgbn300", tmp_path).train[0]
    with pytest.raises(UserError, match="is 768 x 128 pixels, but the layout puts 2 modalities side by side in 512"):
        read_record(record, FULL)


def test_columns_reach_the_batches(tmp_path: Path) -> None:
    write_rgbnt100(tmp_path)
    records = load_dataset("rgbnt100", tmp_path).gallery
    half = (0.5, 0.5, 0.5)
    transform = TestTransform((128, 256), half, half)
    (batch,) = test_batches(SampleDataset(records, transform, FULL), 8, workers=0)
    whole = torch.from_numpy(read_image(records[1].paths["rgb"], FULL)) / 255 * 2 - 1
    torch.testing.assert_close(batch.images[2, 1], whole[..., 512:], atol=1e-5, rtol=0)


def test_columns_travel_in_the_fingerprint() -> None:
    path = Path("a/0501_c0001_000.jpg")
    columns = {"rgb": (0, 256), "nir": (256, 512)}
    plain = Record(dict.fromkeys(columns, path), 501, 1)
    cut = Record(dict.fromkeys(columns, path), 501, 1, columns=columns)
    other = Record(dict.fromkeys(columns, path), 501, 1, columns=columns | {"nir": (256, 768)})
    assert len({fingerprint([record]) for record in (plain, cut, other)}) == 3


def test_the_scene_rule_of_msvr310_is_not_the_camera_rule(tmp_path: Path) -> None:
    """Views 0 of two scenes, and view 3 of the first: the rules leave each query another match.

    Query 0 (scene 12, view 0): the scene rule leaves item 2 (scene 20), the camera rule leaves item 1 (view 3).
    Query 1 (scene 12, view 3): the scene rule leaves item 2, the camera rule items 0 and 2.
    Query 2 (scene 20, view 0): the scene rule leaves items 0 and 1, the camera rule item 1.
    """
    write_msvr310(tmp_path)
    dataset = load_dataset("msvr310", tmp_path)
    directions = np.deg2rad([0, 10, 90, 50])  # item 3 is another vehicle
    gallery = np.stack([np.cos(directions), np.sin(directions)], axis=1).astype(np.float32)
    query = gallery[:3]

    def score(protocol: str) -> tuple[float, float]:
        metrics = evaluate(query, gallery, labels_of(dataset.query), labels_of(dataset.gallery), protocol).to_dict()
        return metrics["mAP"], metrics["rank1"]

    # Ranked by angle. Scene: [3, 2] -> 1/2; [3, 2] -> 1/2; [3, 1, 0] -> (1/2 + 2/3) / 2.
    assert score(dataset.protocol) == pytest.approx((100 * (1 / 2 + 1 / 2 + 7 / 12) / 3, 0))
    # Camera: [1, 3] -> 1; [0, 3, 2] -> (1 + 2/3) / 2; [3, 1] -> 1/2.
    assert score("same_camera") == pytest.approx((100 * (1 + 5 / 6 + 1 / 2) / 3, 100 * 2 / 3))


def test_protocols_that_would_mean_nothing_are_refused(tmp_path: Path) -> None:
    write_rgbnt201(tmp_path)
    message = error_of("rgbnt201", tmp_path, DataConfig(protocol="same_scene"))
    assert "4 test images have no scene" in message
    message = error_of("rgbnt201", tmp_path, DataConfig(protocol="none"))
    assert "4 files are in both query and gallery" in message
    write_market1501_mm(tmp_path)
    assert load_dataset("market1501_mm", tmp_path, DataConfig(protocol="none")).protocol == "none"


def test_the_published_counts() -> None:
    """Counts of one set agree with each other."""
    for layout in DATASETS.values():
        assert layout.protocol in PROTOCOLS
        assert layout.object in OBJECTS
        assert layout.licence
        if "train" in layout.known:
            train, gallery = layout.known["train"], layout.known["gallery"]
            if total := layout.known.get("total"):
                assert (total.ids, total.samples) == (train.ids + gallery.ids, train.samples + gallery.samples)
    found = {
        name: {split: tuple(vars(count).values()) for split, count in layout.known.items()}
        for name, layout in DATASETS.items()
        if layout.known
    }
    assert found == {  # identities, samples, cameras, scenes
        "rgbnt201": {
            "train": (171, 3951, 4, None),
            "query": (30, 836, 2, None),
            "gallery": (30, 836, 2, None),
            "total": (201, 4787, None, None),
        },
        "market1501_mm": {
            "train": (751, 12936, 6, None),
            "query": (750, 3368, 6, None),
            "gallery": (751, 15913, 6, None),
        },
        "rgbnt100": {
            "train": (50, 8675, 8, None),
            "query": (50, 1715, None, None),
            "gallery": (50, 8575, 8, None),
            "total": (100, 17250, None, None),
        },
        "msvr310": {
            "train": (155, 1032, 8, 30),
            "query": (52, 591, None, None),
            "gallery": (155, 1055, None, 30),
            "total": (310, 2087, None, None),
        },
        "rgbn300": {"total": (300, 50125, 8, None)},
    }


def test_settings_name_every_layout_protocol_and_object() -> None:
    hints = DataConfig.__annotations__
    assert set(get_args(hints["layout"])) == set(DATASETS)
    assert set(get_args(get_args(hints["protocol"])[0])) == set(PROTOCOLS)
    assert set(get_args(get_args(hints["object"])[0])) == set(OBJECTS)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"test_share": 0.0}, "data.test_share is 0.0; it must be a number between 0 and 1"),
        ({"test_share": 1.0}, "data.test_share is 1.0"),
        ({"split_seed": -1}, "data.split_seed is -1; it must be a whole number from 0"),
    ],
)
def test_settings_of_own_data_are_checked(data: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(Config(data=DataConfig(**data)))  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", BENCHMARKS)
def test_the_shipped_settings_of_a_benchmark(layout: str) -> None:
    """They are RGBNT201's, with the layout; peers take vehicles lying down and batches and epochs of their own."""
    vehicle = DATASETS[layout].object == "vehicle"
    for kind in ("", "_vit", "_peer"):
        check(read_config(f"{layout}{kind}"))
        own = load((CONFIGS / f"{layout}{kind}.yaml").read_text(encoding="utf-8"))
        base = load((CONFIGS / f"rgbnt201{kind}.yaml").read_text(encoding="utf-8"))
        assert own["data"].pop("layout") == layout
        assert own["data"].pop("size") == ([128, 256] if vehicle and kind == "_peer" else [256, 128])
        assert own["data"].pop("modalities", list(MODALITIES)) == list(LACKING.get(layout, MODALITIES))
        del base["data"]["layout"], base["data"]["size"]
        if kind == "_peer":
            recipe = tuple(own["train"].pop(name) for name in ("epochs", "ids", "instances"))
            assert recipe == PEER_RECIPES[layout]
            del base["train"]["epochs"], base["train"]["ids"], base["train"]["instances"]
        assert own == base


#: Epochs, identities and instances: MambaPro's and its peers' (section 3.2 of the notes on peers); WMVeID863 and
#: RGBN300 as RGBNT100.
PEER_RECIPES = {
    "rgbnt201": (60, 8, 8),
    "market1501_mm": (60, 16, 4),
    "rgbnt100": (30, 8, 16),
    "msvr310": (60, 16, 4),
    "wmveid863": (120, 16, 4),
    "rgbn300": (30, 8, 16),
}


def test_a_name_that_contradicts_its_folder_is_a_problem(tmp_path: Path) -> None:
    facts = write_msvr310(tmp_path)
    folder = tmp_path / "MSVR310/bounding_box_test/0044"
    for below in ("vis", "ni", "th"):
        (folder / below / "0044_s001_v2_000.jpg").rename(folder / below / "0045_s001_v2_000.jpg")
    dataset, problems = list_dataset("msvr310", tmp_path)
    assert len(dataset.gallery) == len(facts.gallery) - 1
    assert problems == [
        f"{folder}/vis/0045_s001_v2_000.jpg is named after identity 0045, not its folder 0044; rename or move it"
    ]


@pytest.mark.parametrize("kind", ["", "_vit", "_peer"])
@pytest.mark.parametrize("layout", BENCHMARKS)
def test_the_shipped_settings_train_on_a_stand_in(tmp_path: Path, layout: str, kind: str) -> None:
    """As they are, but for a tiny tower without text and small batches."""
    WRITERS[layout](tmp_path)
    config = read_config(f"{layout}{kind}")
    config = with_(
        config,
        data={"root": str(tmp_path), "workers": 0},
        backbone={
            "name": "vit_small_patch16_224",
            "weights": "random",
            "projection": "trained",
            "overrides": {"embed_dim": 48, "depth": 1, "num_heads": 3},
        },
        modality={"source": "learned"},
        text={"loss": "off"},
        train={"epochs": 1, "ids": 2, "instances": 2},
    )
    fit(config, tmp_path / "run")
    assert evaluate_run(tmp_path / "run").metrics.protocol == DATASETS[layout].protocol


def test_the_shipped_settings_for_own_data() -> None:
    config = read_config("own")
    check(config)
    assert config.data.layout == "manifest"
    assert (config.data.object, config.data.protocol) == ("person", "same_camera")
