"""``dmpt compare``: what it says, what it exits with, and what it refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dmpt.adapter.files import adapter_folder
from dmpt.cli import main
from dmpt.synthetic.world import World

WORLD = World(seed=3, cameras=4)


def shots(folder: Path, pid: int, cameras: tuple[int, ...], spectra: tuple[str, ...] = ("rgb", "nir", "tir")) -> Path:
    """A folder of shots of one person."""
    for camera in cameras:
        shot = WORLD.shoot(pid, camera, 0)
        for name in spectra:
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(getattr(shot, name)).save(folder / name / f"{camera}.png")
    return folder


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    shots(root / "anna", 1, (1, 2))
    shots(root / "ben", 2, (1,))
    shots(root / "dark", 1, (3,), ("tir",))
    return root


def compare(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as end:
        main(["compare", *map(str, arguments)])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_the_same_and_not_the_same(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ("--model", "package:tiny")
    code, out, _ = compare(capsys, people / "anna", people / "anna", *tiny)
    assert code == 0
    assert out.startswith("the same: score 1.0000 over rgb, nir, tir; of strangers, with 2 and 2 shots, at most ")
    assert out.endswith(" % score as high, and 1 % may (FMR)\n")
    code, out, _ = compare(capsys, people / "anna", people / "ben", *tiny)
    assert code == 1
    assert out.startswith("not the same: score 0.")
    # Whoever lets every other stranger pass lets this one pass too, or not: the exit code is what the JSON says.
    code, out, _ = compare(capsys, people / "anna", people / "ben", *tiny, "--fmr", "0.9", "--json")
    found = json.loads(out)
    assert code == int(not found["same"]) == int(found["fmr"] > 0.9)
    assert (found["modalities"], found["shots"], found["fmr_asked"]) == (["rgb", "nir", "tir"], [2, 1], 0.9)
    assert found.keys() >= {"score", "adapter", "precision"}


def test_one_picture_of_a_modality(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compare(
        capsys, people / "dark" / "tir" / "3.png", people / "anna", "--model", "package:tiny", "--json"
    )
    assert code in (0, 1)
    assert json.loads(out)["modalities"] == ["tir"]


def test_without_calibration_there_is_no_verdict_that_a_script_could_take_for_one(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = shutil.copytree(adapter_folder(Path("package:tiny")), tmp_path / "bare")
    (bare / "calibration.json").unlink()
    code, out, _ = compare(capsys, people / "anna", people / "anna", "--model", bare)
    assert code == 3
    assert out.startswith("no verdict: score 1.0000 over rgb, nir, tir; in ")
    assert out.endswith(" that is not calibrated, so no more can be said (dmpt calibrate)\n")
    code, out, _ = compare(capsys, people / "anna", people / "ben", "--model", bare, "--json")
    assert (code, json.loads(out)["same"], json.loads(out)["fmr"]) == (3, None, None)


def test_too_few_were_calibrated_on_to_deny_it(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compare(capsys, people / "anna", people / "ben", "--model", "package:tiny", "--fmr", "1e-9")
    assert code == 3
    assert out.startswith("no verdict: score 0.")
    assert "1e-07 % may (FMR): too few identities were calibrated on for that; allow more, or give fewer shots" in out


def test_nothing_in_common(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No shared part was trained, so there is no table of rates for it."""
    code, out, _ = compare(capsys, people / "ben" / "rgb", people / "dark", "--model", "package:tiny")
    assert code == 3
    assert out.startswith("no verdict: nothing in common; score ")
    assert out.endswith(" over the mean of their features, which nothing was trained to align, so no rate is known\n")


def test_what_cannot_be_compared(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rgb").mkdir()
    text = tmp_path / "rgb" / "text.jpg"
    text.write_text("this is no picture")
    (tmp_path / "empty").mkdir()
    picture = shutil.copy(people / "anna" / "rgb" / "1.png", tmp_path / "1.png")
    mistakes = [
        (text, [], "rgb/text.jpg is damaged or no image (JPEG, PNG, BMP, TIFF, WEBP are read); restore or remove it"),
        (tmp_path / "empty", [], "empty holds no pictures"),
        (tmp_path / "nobody", [], "nobody does not exist"),
        (picture, [], "1.png: nothing says which modality it is of; give --modality rgb, nir or tir"),
        (picture, ["--modality", "uv"], '--modality is "uv"; it must be rgb, nir, tir or null'),
        (people / "ben", ["--model", "package:none"], "package:none: no such adapter comes with dmpt"),
        (people / "ben", ["--fmr", "1"], "--fmr is 1; it must be a number between 0 and 1, both excluded"),
    ]
    for place, more, said in mistakes:
        code, out, err = compare(capsys, place, people / "anna", "--model", "package:tiny", *more)
        assert (code, out) == (2, "")
        assert said in err
        assert err.startswith("dmpt compare: error: ")
        assert err.count("\n") == 1
