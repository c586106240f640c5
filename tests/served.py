"""Answers of a service, and the pictures that it is asked with."""

from pathlib import Path
from typing import Any

NAME = "000002_cam1_0_00.jpg"
"""Of a sample of the test gallery."""
KEY = f"RGB/{NAME}"
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-3}
"""In bf16 a batch of another size rounds otherwise."""


def ok(answer: Any) -> Any:
    """What an answer holds that is none of an error."""
    assert answer.status_code == 200, answer.text
    return answer.json()


def paths(home: Path, *spectra: str, name: str = NAME) -> dict[str, Path]:
    """A sample's pictures by modality."""
    return {spectrum: home / "data" / "test" / FOLDERS[spectrum] / name for spectrum in spectra or FOLDERS}


def fields(home: Path, *spectra: str, name: str = NAME, prefix: str = "") -> list[Any]:
    """The same as parts of a multipart body."""
    return [(prefix + own, (name, path.read_bytes())) for own, path in paths(home, *spectra, name=name).items()]
