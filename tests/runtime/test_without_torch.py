"""An exported file where torch is not installed: everything that a user does with it."""

from pathlib import Path

import numpy as np
from PIL import Image

from graphs import toy_file
from without_torch import run_without_torch


def test_pictures_to_a_verdict_and_to_a_search(tmp_path: Path) -> None:
    toy_file(tmp_path / "model.onnx")
    draw = np.random.default_rng(0)
    for pid in ("ada", "bob"):
        for spectrum in ("rgb", "tir"):
            (tmp_path / "photos" / spectrum / pid).mkdir(parents=True)
        colour = draw.integers(0, 256, 3)
        for number in range(3):
            noise = draw.integers(-9, 10, (48, 24, 3))
            for spectrum in ("rgb", "tir"):
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / spectrum / pid / f"{number}.png")
    code = """
import json, dmpt
from dmpt.cli import main
model = dmpt.load("model.onnx")
one, two = (model.embed(rgb=f"photos/rgb/{pid}/0.png", tir=f"photos/tir/{pid}/1.png") for pid in ("ada", "bob"))
assert model.similarity(one, two).shape == (1, 1)
assert model.compare(one, one).score > 0.999
main(["embed", "photos", "--model", "model.onnx", "--out", "g.lance"])
there = ["--gallery", "g.lance", "--model", "model.onnx"]
main(["search", "photos/rgb/bob/2.png", "--modality", "rgb", "--page", "found.html", *there])
try:
    main(["compare", "photos/rgb/ada", "photos/rgb/bob", "--modality", "rgb", "--model", "model.onnx"])
except SystemExit as end:
    print("code", end.code)
"""
    out = run_without_torch(code, tmp_path)
    assert "g.lance, version 2: 6 samples added" in out
    assert "no verdict: score" in out
    assert "code 3" in out
    first = next(line for line in out.splitlines() if " bob " in line or " ada " in line)
    assert " bob " in first
    assert (tmp_path / "found.html").stat().st_size > 1000
