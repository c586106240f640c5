"""The synthetic world: repeatable, aligned, as hard as it claims, and without shortcuts."""

import hashlib
import re
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.retrieval.metrics import evaluate
from dmpt.retrieval.protocols import Labels
from dmpt.synthetic.canvas import COLDEST, KELVIN_STEP, PATTERNS, Canvas
from dmpt.synthetic.scene import Weather
from dmpt.synthetic.world import World
from dmpt.synthetic.write import jpeg, plan, write_world

KINDS = ("person", "vehicle")


def digest(root: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        total.update(str(path.relative_to(root)).encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


# --- the canvas


def test_a_canvas_renders_each_spectrum_from_one_map():
    canvas = Canvas((8, 4))
    wall = canvas.add((0.2, 0.4, 0.6), 0.8, 10.0)
    thing = canvas.add((1.0, 0.0, 0.0), 0.2, 30.0)
    canvas.box(0, 0, 1, 1, wall)
    canvas.box(0, 0.5, 1, 1, thing)
    rgb, nir, tir = (canvas.render(spectrum) for spectrum in ("rgb", "nir", "tir"))
    assert rgb.shape == (8, 4, 3)
    assert nir.shape == tir.shape == (8, 4)
    np.testing.assert_allclose(rgb[0, 0], [0.2, 0.4, 0.6], atol=1 / 255)
    np.testing.assert_allclose(rgb[7, 3], [1, 0, 0], atol=1 / 255)
    np.testing.assert_allclose([nir[0, 0], nir[7, 3]], [0.8, 0.2], atol=1 / 255)
    np.testing.assert_allclose([tir[0, 0], tir[7, 3]], [10, 30], atol=KELVIN_STEP)


def test_temperatures_beyond_the_scale_are_clipped():
    canvas = Canvas((8, 4))
    canvas.box(0, 0, 1, 1, canvas.add((0, 0, 0), 0, -100.0))
    assert (canvas.render("tir") == COLDEST).all()


@pytest.mark.parametrize("spectrum", ["rgb", "nir", "tir"])
def test_a_texture_shows_in_its_spectrum_alone(spectrum):
    canvas = Canvas((32, 32))
    cloth = canvas.add((0.5, 0.5, 0.5), 0.5, 20.0)
    canvas.box(0, 0, 1, 1, cloth)
    before = {s: canvas.render(s) for s in ("rgb", "nir", "tir")}
    canvas.texture(spectrum, cloth, (0, 0, 1, 1), "block", (1.0, 0, 0) if spectrum == "rgb" else 1.0)
    for other, pixels in before.items():
        same = (canvas.render(other) == pixels).all()
        assert same == (other != spectrum)
    changed = canvas.render(spectrum) != before[spectrum]
    assert not changed[:15].any()
    assert changed[17:].any()


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_pattern_covers_some_of_a_garment_and_not_all(kind):
    u, v = np.linspace(-1, 1, 60)[None], np.linspace(0, 1, 80)[:, None]
    share = np.broadcast_to(PATTERNS[kind](u, v), (80, 60)).mean()
    assert 0.03 < share < 0.9


def test_a_texture_outside_of_the_picture_does_nothing():
    canvas = Canvas((16, 8))
    cloth = canvas.add((0.5, 0.5, 0.5), 0.5, 20.0)
    canvas.texture("nir", cloth, (2, 2, 3, 3), "block", 1.0)
    assert canvas.textures == []


# --- a world


@pytest.mark.parametrize("kind", KINDS)
def test_a_shot_follows_from_its_arguments_alone(kind):
    one, other = World(kind, seed=5), World(kind, seed=5)
    other.shoot(3, 1, 0)
    first, second = one.shoot(7, 2, 1), other.shoot(7, 2, 1)
    for spectrum in ("rgb", "nir", "tir"):
        assert (getattr(first, spectrum) == getattr(second, spectrum)).all()
    assert (World(kind, seed=6).shoot(7, 2, 1).nir != first.nir).any()
    assert (one.shoot(7, 2, 2).nir != first.nir).any()
    assert (one.shoot(7, 1, 1).nir != first.nir).any()
    assert (one.shoot(8, 2, 1).nir != first.nir).any()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_a_shot(kind):
    shape = (128, 64) if kind == "person" else (64, 128)
    shot = World(kind).shoot(1, 1, 0)
    assert shot.rgb.shape == (*shape, 3)
    assert shot.nir.shape == shot.tir.shape == shape
    assert World(kind, size=(96, 80)).shoot(1, 1, 0).rgb.shape == (96, 80, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_shares_hour_and_weather(kind):
    world = World(kind, seed=2)
    mean = [world.shoot(pid, 1, 0, scene=1).rgb.mean() for pid in range(1, 12)]
    free = [world.shoot(pid, 1, 0).rgb.mean() for pid in range(1, 12)]
    assert np.std(mean) < np.std(free) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_night_darkens_rgb_and_not_tir(kind):
    """Same moment, another light: RGB loses contrast, TIR keeps it."""
    world = World(kind, seed=1)
    from dmpt.synthetic.spectra import see_rgb, see_tir

    contrast = {}
    for hour, light in (("day", 1.0), ("night", 0.06)):
        weather = Weather(hour, light, (1.0, 1.0, 1.0), 0.5, 12.0, 0.0, 0.0)
        deviations = []
        for pid in range(1, 9):
            canvas = world.paint(pid, 1, weather, np.random.default_rng(pid))
            draw = np.random.default_rng(pid)
            deviations.append([see(canvas, world.cameras[0], weather, draw).std() for see in (see_rgb, see_tir)])
        contrast[hour] = np.mean(deviations, axis=0)
    assert contrast["night"][0] < contrast["day"][0] * 0.6
    assert contrast["night"][1] > contrast["day"][1] * 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_captions_say_what_a_spectrum_shows(kind):
    world = World(kind, seed=4)
    captions = {m: [world.caption(pid, m) for pid in range(1, 41)] for m in ("rgb", "nir", "tir")}
    for texts in captions.values():
        assert all(kind in text for text in texts)
        assert len(set(texts)) > 10
    pid = 9
    assert world.subject(pid).caption("rgb") == captions["rgb"][pid - 1]


# --- on disk


def small(root: Path, kind: str, **changes: object) -> Path:
    arguments = {"object": kind, "train_ids": 3, "test_ids": 2, "images": 6, "cameras": 3, "seed": 1, "workers": 1}
    write_world(root, **(arguments | changes))  # type: ignore[arg-type]
    return root


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bytes_whatever_the_number_of_workers(kind, tmp_path):
    one = small(tmp_path / "one", kind, images=14)
    two = small(tmp_path / "two", kind, images=14, workers=2)
    assert digest(one) == digest(two)
    assert digest(one) != digest(small(tmp_path / "three", kind, images=14, seed=2))


def test_persons_are_written_as_rgbnt201(tmp_path):
    dataset = load_dataset("rgbnt201", small(tmp_path / "w", "person"))
    assert len(dataset.train) == 3 * 6
    assert len(dataset.query) == len(dataset.gallery) == 2 * 6
    assert {record.pid for record in dataset.train} == {1, 2, 3}
    assert {record.camera for record in dataset.query} == {1, 2, 3}
    assert (tmp_path / "w" / "train_3").is_dir()
    assert (tmp_path / "w" / "contact_sheet.png").is_file()
    assert dataset.files.passed_over == ()


def test_vehicles_are_written_as_msvr310(tmp_path):
    root = small(tmp_path / "w", "vehicle", images=8, test_ids=6)
    names = {folder: sorted(root.glob(f"{folder}/*/vis/*.jpg")) for folder in ("bounding_box_train", "query3")}
    gallery = sorted(root.glob("bounding_box_test/*/vis/*.jpg"))
    assert len(names["bounding_box_train"]) == 3 * 8
    assert len(gallery) == 6 * 8
    assert 0 < len(names["query3"]) < len(gallery)
    for path in (*names["bounding_box_train"], *names["query3"], *gallery):
        assert re.fullmatch(r"\d{4}_s\d{3}_v[0-7]_\d{3}\.jpg", path.name)
        assert path.name[:4] == path.parent.parent.name
        for other in ("ni", "th"):
            assert (path.parent.parent / other / path.name).is_file()
    for path in names["query3"]:  # a query picture is the gallery's, to the byte
        twin = root / "bounding_box_test" / path.relative_to(root / "query3")
        assert path.read_bytes() == twin.read_bytes()


def test_pictures_on_disk_are_the_worlds(tmp_path):
    small(tmp_path / "w", "person")
    shot = World("person", 1, 3).shoot(1, 2, 0)
    with Image.open(tmp_path / "w/train_3/TI/000001_cam2_0_01.jpg") as image:
        assert image.mode == "L"
        assert abs(np.asarray(image, dtype=float) - shot.tir).mean() < 6


def test_vehicles_meet_several_scenes():
    takes = [take for take in plan("vehicle", 20, 20, 8, 4, 0) if take.pid == 5]
    assert len({take.scene for take in takes}) >= 3


def test_a_contact_sheet_and_captions_are_written(tmp_path):
    root = small(tmp_path / "w", "person")
    with Image.open(root / "contact_sheet.png") as image:
        assert image.width > image.height > 500
    lines = (root / "captions.csv").read_text().splitlines()
    assert lines[0] == "pid,rgb,nir,tir"
    assert len(lines) == 6


def test_every_file_is_filled_up_to_a_size_drawn_at_random():
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (32, 16, 3), dtype=np.uint8)
    flat = np.zeros((32, 16, 3), dtype=np.uint8)
    sizes = [[len(jpeg(p, 40, np.random.default_rng(n))) for n in range(20)] for p in (noise // 8, flat)]
    assert sizes[0] == sizes[1]
    assert len(set(sizes[0])) > 5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cameras": 9}, "cameras is 9; it must lie between 1 and 8"),
        ({"images": 0}, "images is 0"),
        ({"object": "vehicle", "train_ids": 9999}, "at most 9999"),
        ({"size": (0, 64)}, r"size is \[0, 64\]; height and width must lie between 16 and 4096"),
    ],
)
def test_numbers_out_of_range(changes, says, tmp_path):
    with pytest.raises(UserError, match=says):
        small(tmp_path / "w", "person", **changes)
    assert not (tmp_path / "w").exists()


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is in use"):
        small(tmp_path, "person")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_empty_folder_is_replaced_or_refused_before_anything_is_drawn(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    small(tmp_path / "empty", "person")
    assert (tmp_path / "empty" / "captions.csv").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setattr("dmpt.synthetic.write.spread", lambda *_: pytest.fail("drawn in vain"))
    for place in (Path(), tmp_path / "link"):  # what cannot be put in another's place
        with pytest.raises(UserError, match="cannot write"):
            small(place, "person")


def test_a_world_that_was_stopped_leaves_nothing(tmp_path, monkeypatch):
    def stop(drawn, what, total):
        next(drawn)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dmpt.synthetic.write.track", stop)
        with pytest.raises(KeyboardInterrupt):
            small(tmp_path / "w", "person")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*w: "):
        small(tmp_path / "file" / "w", "person")


def test_the_verb(tmp_path, capsys):
    main(["synth", str(tmp_path / "w"), "--ids=3", "--test-ids=1", "--images=4", "--cameras=2", "--workers=1"])
    assert "contact_sheet.png" in capsys.readouterr().err
    assert len(load_dataset("rgbnt201", tmp_path / "w").train) == 8
    with pytest.raises(SystemExit) as stop:
        main(["synth", str(tmp_path / "x"), "--ids=3", "--test-ids=3"])
    assert stop.value.code == 2
    assert "leave some for training" in capsys.readouterr().err


# --- hard, and honestly so

TRAIN, TEST, CAMERAS, IMAGES, SEED = 150, 100, 4, 8, 7
SPECTRA = ("rgb", "nir", "tir")


def _observe(kind: str, pids: list[int]) -> list[dict[str, np.ndarray]]:
    world, rows = World(kind, SEED, CAMERAS), []
    small_size = (16, 32) if kind == "person" else (32, 16)
    takes = [take for take in plan(kind, TRAIN, TEST, IMAGES, CAMERAS, SEED) if take.pid in set(pids)]
    for take in takes:
        shot = world.shoot(take.pid, take.camera, take.number, take.scene)
        pictures = dict(zip(SPECTRA, (shot.rgb, shot.nir, shot.tir), strict=True))
        draw = np.random.default_rng([SEED, take.pid, take.camera, take.number])
        row = {
            m: np.asarray(Image.fromarray(p).resize(small_size, Image.Resampling.BOX), dtype=np.float32) / 255
            for m, p in pictures.items()
        }
        row["size"] = np.array(
            [len(jpeg(p, q, draw)) for p, q in zip(pictures.values(), shot.quality, strict=True)], dtype=np.float32
        )
        row["border"] = np.concatenate(
            [edge.ravel() for p in pictures.values() for edge in (p[:2], p[-1:], p[:, :2], p[:, -2:])]
        ).astype(np.float32)
        row["histogram"] = np.concatenate(
            [
                np.histogramdd(part.reshape(-1, 3), bins=6, range=[(0, 256)] * 3)[0].ravel()
                for part in np.array_split(shot.rgb, 4)
            ]
        ).astype(np.float32)
        row["camera"] = np.eye(CAMERAS, dtype=np.float32)[take.camera - 1]
        row["label"] = np.array([take.pid, take.camera, -1 if take.scene is None else take.scene])
        rows.append(row)
    return rows


@cache
def observe(kind: str) -> dict[str, np.ndarray]:
    """Everything that a probe may look at, for 100 test identities and 150 to learn from."""
    pids = list(range(1, TRAIN + TEST + 1))
    chunks = [pids[i::4] for i in range(4)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        rows = [row for part in pool.map(_observe, [kind] * 4, chunks) for row in part]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def retrieval(kind: str, features: np.ndarray) -> float:
    """MAP of the test identities, in percent, under the layout's protocol."""
    pid, camera, scene = observe(kind)["label"].T
    test = pid > TRAIN
    features = features.reshape(len(features), -1).astype(np.float32)
    features = features - features[~test].mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True).clip(1e-9)
    labels = Labels(pid[test], camera[test], scene[test])
    protocol = "same_camera" if kind == "person" else "same_scene"
    return evaluate(features[test], features[test], labels, labels, protocol).to_dict()["mAP"]


def chance(kind: str) -> float:
    """Highest mAP of twenty random features."""
    count = len(observe(kind)["label"])
    return max(retrieval(kind, np.random.default_rng(n).standard_normal((count, 16))) for n in range(20))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_and_colours_do_not_solve_it(kind):
    seen = observe(kind)
    pixels = np.concatenate([(p := seen[m].reshape(len(seen[m]), -1)) - p.mean(1, keepdims=True) for m in SPECTRA], 1)
    assert retrieval(kind, pixels) < 35
    assert retrieval(kind, np.sqrt(seen["histogram"])) < 35


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shortcut", ["size", "border", "camera"])
def test_no_shortcut_is_above_chance(kind, shortcut):
    clue = observe(kind)[shortcut].astype(float)
    clue = (clue - clue.mean(axis=0)) / clue.std(axis=0).clip(1e-9)
    assert retrieval(kind, clue) < chance(kind) + 0.2


def probe(kind: str, spectra: tuple[str, ...]) -> float:
    """A supervised probe: principal components of small pictures, then discriminants of the training identities."""
    seen = observe(kind)
    pid = seen["label"][:, 0]
    train, parts = pid <= TRAIN, []
    for m in spectra:
        x = seen[m]
        over = tuple(range(1, x.ndim))
        x = x - x.mean(axis=(1, 2), keepdims=True)
        x = (x / (x.std(axis=over, keepdims=True) + 0.05)).reshape(len(x), -1)
        parts.append(PCA(120, random_state=0).fit(x[train]).transform(x))
    features = np.concatenate(parts, axis=1)
    learned = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1, n_components=60)
    return retrieval(kind, learned.fit(features[train], pid[train]).transform(features))


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_each_spectrum_knows_what_the_others_do_not(kind):
    alone = {m: probe(kind, (m,)) for m in SPECTRA}
    pairs = {m: probe(kind, tuple(other for other in SPECTRA if other != m)) for m in SPECTRA}
    together = probe(kind, SPECTRA)
    print(alone, pairs, together)
    assert together > max(alone.values()) + 10
    assert together > max(pairs.values())
