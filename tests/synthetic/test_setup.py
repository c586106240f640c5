"""What each spectrum of a drawn world knows, and what its cameras spoil."""

import csv
from dataclasses import fields, is_dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.data.records import fingerprint
from dmpt.synthetic.canvas import SPECTRA
from dmpt.synthetic.scene import Weather
from dmpt.synthetic.setup import PLAIN, SHAPE, Setup
from dmpt.synthetic.spectra import see_nir, see_rgb, see_tir
from dmpt.synthetic.world import World
from dmpt.synthetic.write import write_world

KINDS = ("person", "vehicle")
SEE = {"rgb": see_rgb, "nir": see_nir, "tir": see_tir}
FIVE = Setup(rgb_alike=5, nir_alike=0, tir_alike=5, shape="tir")


def moment(world: World, pid: int, spectrum: str, camera: int = 1, seed: int = 0) -> Any:
    """A picture of the same moment, whoever is in it."""
    draw, weather = np.random.default_rng(seed), Weather("day", 1.0, (1.0, 1.0, 1.0), 0.5, 12.0, 0.0, 0.0)
    canvas = world.paint(pid, camera, weather, draw, spectrum)
    return SEE[spectrum](canvas, world.cameras[camera - 1], weather, draw)


@pytest.mark.parametrize("alike", [(5, 0, 5), (5, 5, 5), (1, 1, 4), (2, 6, 3), (7, 1, 1), (2, 4, 0), (1, 1, 1)])
def test_no_two_spectra_confuse_the_same(alike: tuple[int, int, int]) -> None:
    setup = Setup(**dict(zip(("rgb_alike", "nir_alike", "tir_alike"), alike, strict=True)))
    twins = {s: [setup.twin(pid, s) for pid in range(1, 505)] for s in SPECTRA}
    for count, found in zip(alike, twins.values(), strict=True):
        groups = [[pid for pid, twin in enumerate(found, 1) if twin == first] for first in set(found)]
        if count == 0:
            assert set(found) == {0}
            continue
        assert all(
            setup.twin(min(group), s) == min(group) for s, own in twins.items() if own is found for group in groups
        )
        sizes = [len(group) for group in groups if max(group) <= 400]
        assert max(sizes) == count
        assert np.mean(sizes) > 0.8 * count
    for one, other in combinations([s for s, count in zip(SPECTRA, alike, strict=True) if count], 2):
        assert len({*zip(twins[one], twins[other], strict=True)}) == 504


@pytest.mark.parametrize("kind", KINDS)
def test_those_who_are_alike_in_a_spectrum_look_the_same_in_it_to_the_bit(kind: Any) -> None:
    world = World(kind, seed=3, setup=FIVE)
    same = {s: [(moment(world, 1, s) == moment(world, pid, s)).all() for pid in range(2, 8)] for s in SPECTRA}
    assert same["rgb"] == [True] * 4 + [False] * 2  # 1 to 5 are a row
    assert same["tir"] == [False] * 4 + [True] + [False]  # 6 is below 1
    assert same["nir"] == [True] * 6  # which shows nobody from another


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_shows_where_it_is_said_to(kind: Any) -> None:
    everywhere, nowhere = World(kind, seed=3), World(kind, seed=3, setup=Setup(shape="tir"))
    outline = {
        s: {tuple(getattr(nowhere.seen(pid, s), t) for t in nowhere.subject(1).SHOWN[SHAPE]) for pid in range(1, 9)}
        for s in SPECTRA
    }
    assert [len(outline[s]) for s in SPECTRA] == [1, 1, 8]
    for pid in range(1, 9):
        for s in SPECTRA:  # what is of the spectrum itself stays each one's own
            assert nowhere.caption(pid, "tir") == everywhere.caption(pid, "tir")
            own = everywhere.subject(pid).SHOWN[s]
            assert all(getattr(nowhere.seen(pid, s), t) == getattr(everywhere.subject(pid), t) for t in own)


def test_every_trait_is_shown_in_one_place() -> None:
    def named(subject: Any) -> list[str]:
        return [own.name for own in fields(subject) if not is_dataclass(getattr(subject, own.name))]

    person, vehicle = World("person").subject(1), World("vehicle").subject(1)
    for subject in (person, person.upper_cloth, vehicle):  # type: ignore[union-attr]
        assert sorted(t for shown in subject.SHOWN.values() for t in shown) == sorted(named(subject))
        assert {*subject.SHOWN} == {*SPECTRA, SHAPE}


@pytest.mark.parametrize("kind", KINDS)
def test_a_setup_that_hides_nothing_changes_no_picture_but_those_it_spoils(kind: Any) -> None:
    plain, spoilt = World(kind, seed=4), World(kind, seed=4, setup=Setup(dark_cameras=1, drifting_cameras=1))
    for camera, number in product((1, 2, 3, 4), range(3)):
        before, after = plain.shoot(5, camera, number), spoilt.shoot(5, camera, number)
        assert (before.rgb == after.rgb).all() == (camera != 1)
        assert (before.nir == after.nir).all()
        assert (before.tir == after.tir).all() == (camera != 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_moment_is_one_in_all_spectra(kind: Any) -> None:
    """Painting draws as much whoever is painted: else the spectra of a shot would show different moments."""
    world, states = World(kind, seed=1, setup=FIVE), []
    for pid, spectrum in product((1, 2, 7, 30), SPECTRA):
        draw = np.random.default_rng(8)
        world.paint(pid, 2, Weather("day", 1.0, (1.0, 1.0, 1.0), 0.5, 12.0, 0.0, 0.0), draw, spectrum)
        states.append(draw.random())
    assert len(set(states)) == 1


def test_a_dark_camera_sees_next_to_nothing_in_rgb() -> None:
    world = World("person", seed=2, setup=Setup(dark_cameras=2))
    spread = {}
    for camera in (1, 2, 3, 4):  # of pictures of one moment, over persons: what a picture says of who is in it
        seen = np.stack(
            [
                np.asarray(
                    Image.fromarray(moment(world, pid, "rgb", camera)).resize((8, 16), Image.Resampling.BOX),
                    dtype=float,
                )
                for pid in range(1, 13)
            ]
        )
        spread[camera] = seen.std(axis=0).mean()
    assert max(spread[1], spread[2]) < 0.2 * min(spread[3], spread[4])


def test_a_thermal_camera_drifts_from_frame_to_frame() -> None:
    setup = Setup(drifting_cameras=1, hour="day")
    levels = {}
    for camera in (3, 4):
        shots = [World("person", seed=2, setup=setup).shoot(1, camera, number, scene=1).tir for number in range(24)]
        levels[camera] = [np.std([shot.mean() for shot in shots]), np.std([shot.std() for shot in shots])]
    assert levels[4][0] > 3 * levels[3][0]  # offset
    assert levels[4][1] > 2 * levels[3][1]  # gain


def test_an_hour_for_all_pictures() -> None:
    light = {
        hour: np.mean(
            [World("person", seed=6, setup=Setup(hour=hour)).shoot(pid, 1, 0).rgb.mean() for pid in range(1, 13)]
        )
        for hour in ("day", "dusk", "night")
    }
    assert light["day"] > light["dusk"] > light["night"]


def test_other_cameras_see_the_same_persons() -> None:
    one, other = World("person", seed=6), World("person", seed=6, setup=Setup(camera_seed=7))
    assert other.cameras == World("person", seed=7).cameras != one.cameras
    assert [one.subject(pid) for pid in (1, 2)] == [other.subject(pid) for pid in (1, 2)]
    assert one.caption(1, "rgb") == other.caption(1, "rgb")


def test_captions_say_what_a_spectrum_shows_of_those_it_confuses() -> None:
    world = World("person", seed=3, setup=FIVE)
    captions = {s: {world.caption(pid, s) for pid in range(1, 51)} for s in SPECTRA}
    assert len(captions["nir"]) == 1
    assert 1 < len(captions["rgb"]) <= 10
    assert 1 < len(captions["tir"]) <= 10


# --- on disk


def small(root: Path, **setup: Any) -> Path:
    whole = {"train_ids": 3, "test_ids": 2, "images": 4, "cameras": 2, "seed": 1, "workers": 1}
    write_world(root, setup=Setup(**setup), **whole)  # type: ignore[arg-type]
    return root


def test_worlds_of_different_setups_are_different_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of files say nothing of the content, and so nothing of the setup: they are drawn with it."""
    prints = set()
    for number, setup in enumerate([{}, {"hour": "day"}, {"hour": "dusk"}, {"rgb_alike": 2}]):
        dataset = load_dataset("rgbnt201", small(tmp_path / str(number), **setup))
        prints.add(fingerprint([*dataset.train, *dataset.gallery]))
    assert len(prints) == 4
    from dmpt.synthetic import cached

    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cached, "write_world", lambda folder, **_: folder.mkdir(parents=True))
    found = [cached.world(train_ids=3, test_ids=2, setup=setup) for setup in (PLAIN, Setup(), FIVE, Setup(hour="day"))]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_the_flags_of_synth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["--ids=3", "--test-ids=1", "--images=2", "--cameras=2", "--workers=1"]
    main(["synth", str(tmp_path / "w"), *shared, "--rgb-alike=3", "--nir-alike=0", "--shape=tir", "--hour=dusk"])
    with (tmp_path / "w" / "captions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [len({row[spectrum] for row in rows}) for spectrum in SPECTRA] == [1, 1, 3]
    with pytest.raises(SystemExit):
        main(["synth", str(tmp_path / "x"), *shared, "--dark-cameras=3"])
    assert "dark_cameras is 3; there are 2 cameras" in capsys.readouterr().err
    with pytest.raises(UserError, match="drifting_cameras is 9; there are 2 cameras"):
        small(tmp_path / "x", drifting_cameras=9)
    assert not (tmp_path / "x").exists()


# --- as hard as the setting says


def found_by(setup: Setup, *spectra: str) -> float:
    """Rank-1 in percent of nearest neighbours among 50 persons, each seen twice in one pose: all that could be known.

    Pictures of a moment differ by the sensors' noise alone, and of two that are equally near the one is as good as the
    other. So nothing is learned, and nothing that a spectrum shows is lost.
    """
    world, hits = World("person", 11, 4, setup=setup), []
    weather, pids = Weather("day", 1.0, (1.0, 1.0, 1.0), 0.5, 12.0, 0.0, 0.0), range(1, 51)
    for camera, seed in ((1, 5), (2, 6)):
        sides = [[], []]
        for pid, side in product(pids, range(2)):
            parts = []
            for spectrum in spectra:
                canvas = world.paint(pid, camera, weather, np.random.default_rng(seed), spectrum)
                draw = np.random.default_rng(seed)
                picture = SEE[spectrum](canvas, world.cameras[camera - 1], weather, draw).astype(float)
                parts.append(picture + np.random.default_rng([pid, side, seed]).normal(0, 1, picture.shape))
            sides[side].append(np.concatenate([part.ravel() for part in parts]))
        one, other = map(np.stack, sides)
        distances = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)[None] - 2 * one @ other.T
        hits += (distances.argmin(axis=1) == np.arange(50)).tolist()
    return 100 * float(np.mean(hits))


@pytest.mark.parametrize(
    ("setup", "knows"),
    [
        (PLAIN, {"rgb": 100, "nir": 100, "tir": 100, "rgb tir": 100}),
        (FIVE, {"rgb": 20, "nir": 2, "tir": 20, "rgb tir": 100, "rgb nir": 20}),
        (Setup(rgb_alike=2, nir_alike=2, tir_alike=2, shape="tir"), {"rgb": 50, "nir": 50, "tir": 50, "nir tir": 100}),
    ],
)
def test_what_a_spectrum_knows_is_what_the_setting_says(setup: Setup, knows: dict[str, float]) -> None:
    """With five alike one in five is right by chance; two spectra that confuse others know everyone."""
    for spectra, share in knows.items():
        assert found_by(setup, *spectra.split()) == pytest.approx(share, abs=12 if 10 < share < 100 else 4), spectra
