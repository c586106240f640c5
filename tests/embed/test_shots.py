"""A file, or a folder of shots: which pictures are found, of which modality, and which belong to one shot."""

from pathlib import Path
from typing import Any

import pytest

from dmpt.base.errors import UserError
from dmpt.embed.shots import find_shots


def lay(root: Path, *names: str) -> Path:
    """Files that nobody opens."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(place: Path, modality: str | None = None) -> dict[str, list[str | None]]:
    found = find_shots(place, modality)
    return {name: [None if path is None else path.name for path in paths] for name, paths in found.items()}


@pytest.mark.parametrize(
    ("files", "place", "modality", "expected"),
    [
        (["NI/7.png"], "NI/7.png", None, {"nir": ["7.png"]}),
        (["x/7.png"], "x/7.png", "tir", {"tir": ["7.png"]}),
        (["NI/7.png"], "NI/7.png", "rgb", {"rgb": ["7.png"]}),
        (["a/rgb.jpg", "a/Thermal.TIF"], "a", None, {"rgb": ["rgb.jpg"], "tir": ["Thermal.TIF"]}),
        (["rgb/2.jpg", "rgb/1.jpg", "rgb/notes.txt"], "rgb", None, {"rgb": ["1.jpg", "2.jpg"]}),
        (["a/2.jpg", "a/1.jpg"], "a", "nir", {"nir": ["1.jpg", "2.jpg"]}),
        (["a/2.jpg", "a/tir/1.jpg"], "a", "nir", {"nir": ["2.jpg"]}),
        (["a/NI/2.jpg", "a/tir/1.jpg"], "a", "nir", {"nir": ["2.jpg"]}),
        (
            ["a/RGB/2.jpg", "a/RGB/1.jpg", "a/ti/2.png", "a/ti/3.png", "a/.git/x", "a/notes.txt"],
            "a",
            None,
            {"rgb": ["1.jpg", "2.jpg", None], "tir": [None, "2.png", "3.png"]},
        ),
    ],
)
def test_what_is_found(tmp_path: Path, files: list[str], place: str, modality: str | None, expected: Any) -> None:
    assert names(lay(tmp_path, *files) / place, modality) == expected


def test_a_folder_is_called_by_its_name_from_inside_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(lay(tmp_path, "nir/1.png") / "nir")
    assert names(Path()) == names(Path("1.png")) == {"nir": ["1.png"]}


@pytest.mark.parametrize(
    ("files", "place", "said"),
    [
        (["a/x"], "b", "b does not exist; give a picture, or a folder of shots of one"),
        (["a/7.png"], "a/7.png", "a/7.png: nothing says which modality it is of; give --modality rgb, nir or tir, or"),
        (["a/7.png"], "a", "a: nothing says which modality it is of"),
        (["a/7.png", "a/rgb.png"], "a", "a: nothing says which modality it is of"),
        (["a/notes.txt"], "a", r"a holds no pictures, nor folders rgb, nir, tir that do \(it holds notes.txt\)"),
        (["a/.hidden"], "a", "a holds no pictures, .* \\(it is empty\\)"),
        (["a/12/7.png"], "a", r"a holds no pictures, .* \(it holds 12\)"),
        (["a/rgb/1.png", "a/nir/x.txt"], "a", r"nir holds no pictures \(it holds x.txt\); fill it, or take it away"),
        (["a/rgb/1.png", "a/lidar/1.png"], "a", "a holds a folder lidar, which is none of rgb, nir, tir; rename it"),
        (["a/rgb/1.png", "a/2.png"], "a", "a holds pictures beside folders of modalities; move 2.png into one"),
        (["a/rgb/1.png", "a/visible/1.png"], "a", "a holds rgb and visible, both rgb; leave one of them"),
        (["a/rgb.png", "a/rgb.jpg"], "a", "a holds rgb.jpg and rgb.png, both rgb; leave one of them"),
        (["rgb/1.png", "rgb/1.jpg"], "rgb", r"rgb holds 1 twice \(1.png is one of them\); leave one"),
    ],
)
def test_what_is_refused(tmp_path: Path, files: list[str], place: str, said: str) -> None:
    lay(tmp_path, *files)
    with pytest.raises(UserError, match=said):
        find_shots(tmp_path / place)
