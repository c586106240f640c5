"""Pictures in, vectors out: whatever form they come in, the vectors are those of an evaluation."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dmpt
from dmpt.base.errors import UserError
from dmpt.data.images import read_image
from dmpt.embed.embedder import Embedder
from dmpt.embed.pictures import cropped, pixels_of
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from runs import fit, settings, toy, with_, with_shared_part

NAMES = ("rgb", "nir", "tir")
RANGE = (0.0, 65535.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_shared_part(tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def model(run: Path) -> Embedder:
    return dmpt.load(run, precision="fp32")


@pytest.fixture(scope="module")
def paths(run: Path) -> dict[str, list[Path]]:
    """Seven test samples."""
    gallery = evaluate(run, Conditions(precision="fp32")).gallery[:7]
    return {name: [record.paths[name] for record in gallery] for name in NAMES}


def test_vectors_are_those_of_an_evaluation(run: Path, model: Embedder, paths: dict[str, list[Path]]) -> None:
    expected = evaluate(run, Conditions(precision="fp32")).seen.gallery[slice(0, 7)]
    found = model.embed(**paths)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.flat, expected.flat, atol=1e-6)
    assert expected.shared is not None
    assert found.shared is not None
    np.testing.assert_allclose(found.shared, expected.shared, atol=1e-6)
    np.testing.assert_allclose(found.standardisation, expected.standardisation)  # type: ignore[arg-type]
    assert found.flat.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.flat, axis=1), 1, atol=1e-6)
    assert found.present.all()


@pytest.mark.parametrize(("precision", "apart"), [("fp32", 1e-5), ("bf16", 5e-3)])
def test_the_batch_size_changes_less_than_the_docs_say(
    run: Path, paths: dict[str, list[Path]], precision: Any, apart: float
) -> None:
    """docs/api.md; what sums in another order rounds otherwise."""
    model = dmpt.load(run, precision=precision)
    whole = model.embed(**paths).flat  # type: ignore[arg-type]
    for size in (1, 3, 64):
        np.testing.assert_allclose(model.embed(**paths, batch_size=size).flat, whole, atol=apart)  # type: ignore[arg-type]


def test_every_form_of_a_picture_gives_the_same_vector(model: Embedder, paths: dict[str, list[Path]]) -> None:
    path = paths["rgb"][0]
    expected = model.embed(rgb=path).flat
    pixels = read_image(path, RANGE).transpose(1, 2, 0)
    forms: list[Any] = [
        str(path),
        [path],
        Image.open(path),
        pixels,
        pixels[None],
        pixels.astype(np.float32) / 255,
        pixels.astype(np.uint16) * 257,
        torch.from_numpy(pixels.copy()).movedim(-1, 0),
        torch.from_numpy(pixels.copy()).movedim(-1, 0).double() / 255,
    ]
    for form in forms:
        assert (model.embed(rgb=form).flat == expected).all(), type(form)
    assert (model.embed(rgb=pixels[..., ::-1], order="bgr").flat == expected).all()
    assert np.abs(model.embed(rgb=pixels[..., ::-1]).flat - expected).max() > 1e-6


def test_any_subset_of_modalities(model: Embedder, paths: dict[str, list[Path]]) -> None:
    rgb, tir = paths["rgb"][:2], paths["tir"][:2]
    mixed = model.embed(rgb=[*rgb, None], tir=[tir[0], None, tir[1]])
    assert mixed.present.tolist() == [[True, False, True], [True, False, False], [False, False, True]]
    for row, own in enumerate([{"rgb": rgb[0], "tir": tir[0]}, {"rgb": rgb[1]}, {"tir": tir[1]}]):
        np.testing.assert_allclose(mixed.flat[row], model.embed(**own).flat[0], atol=1e-5)
    verdict = model.compare(model.embed(rgb=rgb[1]), model.embed(tir=tir[1]))
    assert (verdict.modalities, verdict.same, verdict.fmr) == ((), None, None)
    both = model.compare(model.embed(rgb=rgb[0], tir=tir[0]), model.embed(rgb=rgb[0]))
    assert both.modalities == ("rgb",)
    assert both.score == pytest.approx(model.similarity(mixed, model.embed(rgb=rgb[0]))[0, 0], abs=1e-5)


def test_boxes_cut_samples_from_a_frame(model: Embedder, paths: dict[str, list[Path]]) -> None:
    rgb, nir = (read_image(paths[name][0], RANGE).transpose(1, 2, 0) for name in ("rgb", "nir"))
    height, width = rgb.shape[:2]
    boxes = [(0, 0, width, height), (2, 3, width - 1, height - 2), (-9, -9, width - 2, 999)]
    found = model.embed(rgb=rgb, nir=nir, boxes=boxes)
    assert (model.embed(rgb=rgb, nir=nir, boxes=np.array(boxes)).flat == found.flat).all()  # as a detector has them
    cuts = [(slice(0, height), slice(0, width)), (slice(3, height - 2), slice(2, width - 1))]
    cuts.append((slice(0, height), slice(0, width - 2)))
    for row, cut in enumerate(cuts):
        np.testing.assert_allclose(found.flat[row], model.embed(rgb=rgb[cut], nir=nir[cut]).flat[0], atol=1e-5)
    apart = model.embed(rgb=rgb, nir=nir, boxes={"rgb": boxes[:1], "nir": boxes[1:2]})
    np.testing.assert_allclose(apart.flat[0], model.embed(rgb=rgb, nir=nir[cuts[1]]).flat[0], atol=1e-5)
    swapped = model.embed(rgb=rgb[..., ::-1], boxes=boxes, order="bgr")
    np.testing.assert_allclose(swapped.flat, model.embed(rgb=rgb, boxes=boxes).flat, atol=1e-6)


def test_threads_share_a_model(model: Embedder, paths: dict[str, list[Path]]) -> None:
    expected = model.embed(**paths).flat  # type: ignore[arg-type]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: model.embed(**paths).flat, range(8)))  # type: ignore[arg-type]
    assert all(np.abs(one - expected).max() < 1e-5 for one in found)


def test_similarity_does_not_depend_on_who_else_is_there(model: Embedder, paths: dict[str, list[Path]]) -> None:
    complete = model.embed(**paths)  # type: ignore[arg-type]
    lacking = model.embed(rgb=paths["rgb"], nir=[*paths["nir"][:6], None], tir=paths["tir"])
    scores = model.similarity(complete, complete)
    assert scores.shape == (7, 7)
    np.testing.assert_allclose(model.similarity(complete, lacking)[:, :6], scores[:, :6], atol=3e-6)
    assert np.diag(scores) == pytest.approx(np.diag(scores)[0])


def test_precision_is_said_and_bf16_where_it_is_native(run: Path, paths: dict[str, list[Path]]) -> None:
    exact, coarse, chosen = (dmpt.load(run, precision=p) for p in ("fp32", "bf16", None))  # type: ignore[arg-type]
    assert (exact.precision, coarse.precision) == ("fp32", "bf16")
    assert chosen.precision in ("fp32", "bf16")
    one, other = (each.embed(**paths).flat for each in (exact, coarse))  # type: ignore[arg-type]
    assert 0 < np.abs(one - other).max() < 0.05


ARRAY = np.zeros((8, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "pictures given: none; give as many of each modality, at least one"),
        ({"rgb": []}, r"pictures given: \{'rgb': 0\}"),
        ({"rgb": [ARRAY, ARRAY], "nir": ARRAY}, r"pictures given: \{'rgb': 2, 'nir': 1\}; give as many of each"),
        ({"rgb": [ARRAY, None]}, "sample 1 has no picture; give it one at least"),
        ({"rgb": [[1, 2]]}, r"rgb\[0\] is list; give a path"),
        ({"rgb": ARRAY.astype(np.int64)}, r"rgb\[0\] holds int64; give uint8, uint16, or floats"),
        ({"rgb": ARRAY + 2.0}, r"rgb\[0\] holds floats from 2 to 2; give floats in \[0, 1\], or uint8"),
        ({"rgb": np.full((8, 4), np.nan)}, r"rgb\[0\] holds floats from nan to nan"),
        ({"rgb": np.zeros((3, 8, 4), np.uint8)}, r"rgb\[0\] is an array of shape \(3, 8, 4\); give \(H, W, 3\)"),
        ({"rgb": np.zeros((0, 4, 3), np.uint8)}, r"rgb\[0\] is an array of shape \(0, 4, 3\)"),
        ({"rgb": torch.zeros(8, 4, 3)}, r"rgb\[0\] is a tensor of shape \(8, 4, 3\); give \(3, H, W\)"),
        ({"rgb": "nowhere.png"}, "cannot read nowhere.png"),
        ({"rgb": ARRAY, "boxes": []}, "no boxes are given; leave boxes out"),
        ({"rgb": ARRAY, "order": "BGR"}, "order is 'BGR'; give rgb or bgr"),
        ({"rgb": ARRAY, "order": "BGR", "boxes": [(0, 0, 1, 1)]}, "order is 'BGR'; give rgb or bgr"),
        ({"rgb": ARRAY, "batch_size": 0}, "batch_size is 0; it must be a whole number of at least 1"),
        ({"rgb": ARRAY, "batch_size": -1}, "batch_size is -1; it must be a whole number of at least 1"),
        ({"rgb": ARRAY, "batch_size": 1.5}, "batch_size is 1.5; it must be a whole number of at least 1"),
        ({"rgb": ARRAY, "boxes": [("a", 0, 1, 1)]}, r"box 0 of rgb is \['a', 0, 1, 1\]; give left, top, right and"),
        ({"rgb": ARRAY, "boxes": (0, 0, 1, 1)}, "box 0 of rgb is 0; give left, top, right and bottom"),
        ({"rgb": ARRAY, "boxes": [(0, 0, 1)]}, r"box 0 of rgb is \[0, 0, 1\]; give left, top, right and bottom"),
        (
            {"rgb": ARRAY, "boxes": [(5, 0, 9, 9)]},
            r"box 0 of rgb is \[5, 0, 9, 9\]: nothing of it lies in a frame of 4 x 8",
        ),
        ({"rgb": ARRAY, "boxes": [(-5, -5, -1, -1)]}, "nothing of it lies in a frame of 4 x 8"),
        ({"rgb": [ARRAY] * 2, "boxes": [(0, 0, 1, 1)]}, "boxes cut samples from one frame of each modality"),
        ({"rgb": ARRAY, "boxes": {"nir": [(0, 0, 1, 1)]}}, r"boxes are for \{'nir': 1\}, frames for rgb"),
    ],
)
def test_what_cannot_be_embedded(model: Embedder, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model.embed(**given)


def test_a_modality_that_the_model_does_not_read(tmp_path: Path) -> None:
    config = with_(settings(toy(tmp_path / "data"), epochs=0), data={"modalities": ("rgb", "nir")})
    fit(config, tmp_path / "run")
    with pytest.raises(UserError, match="tir is given, but the model reads rgb, nir"):
        dmpt.load(tmp_path / "run").embed(tir=ARRAY)


def test_compare_takes_shots_of_both(model: Embedder, paths: dict[str, list[Path]]) -> None:
    two, one = model.embed(rgb=paths["rgb"][:2]), model.embed(rgb=paths["rgb"][2])
    assert model.compare(two, one).score == pytest.approx(model.similarity(two, one).max(), abs=1e-6)
    with pytest.raises(UserError, match="compare takes shots of one and of another; these are 2 and 0"):
        model.compare(two, one[:0])
    for fmr in (0, 1, 1.5, -1, float("nan")):
        with pytest.raises(UserError, match=f"fmr is {fmr}; it must be a number between 0 and 1, both excluded"):
            model.compare(two, one, fmr=fmr)


def test_nothing_to_load(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no trained adapter"):
        dmpt.load(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        dmpt.load(run, precision="fp16")


def test_deep_grey_is_scaled_by_the_models_range() -> None:
    deep = np.array([[1000, 2000], [3000, 4000]], np.uint16)
    found = pixels_of(deep, "x", (1000.0, 4000.0))
    assert found.shape == (3, 2, 2)
    assert found[0].tolist() == [[0, 85], [170, 255]]
    assert (pixels_of(Image.fromarray(deep), "x", (1000.0, 4000.0)) == found).all()


def test_a_camera_that_was_held_sideways(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "x.png", exif=exif)
    assert (pixels_of(Image.open(tmp_path / "x.png"), "x", RANGE) == read_image(tmp_path / "x.png", RANGE)).all()
    assert pixels_of(tmp_path / "x.png", "x", RANGE).shape == (3, 4, 2)
    assert cropped(np.zeros((3, 4, 6), np.uint8), (1.4, 0.6, 4.5, 3.2), "x").shape == (3, 2, 3)
