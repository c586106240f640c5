"""Augmentation: what is drawn, for which modalities, from what."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dmpt.data.seeds import seed_for
from dmpt.data.transforms import TestTransform, TrainTransform
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES

HALF = (0.5, 0.5, 0.5)
DATA = DataConfig(size=(64, 32), pad=5)
PLAIN = replace(DATA, flip=0.0, pad=0, erasing=0.0)


def sample(size: tuple[int, int] = (64, 32)) -> dict[str, Tensor]:
    """The same random picture for all modalities, so that equal draws give equal results."""
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {modality: image.clone() for modality in MODALITIES}


def train(data: DataConfig, seed: int = 0) -> TrainTransform:
    return TrainTransform(data, HALF, HALF, seed)


def at(transform: TrainTransform) -> partial[dict[str, Tensor]]:
    """As it is for one sample in one epoch."""
    return partial(transform, epoch=0, index=4)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[modality], b[modality]) for modality in a)


@pytest.mark.parametrize("augmentation", ["independent", "shared"])
def test_output_is_plain_float_of_the_asked_size(augmentation: str) -> None:
    images = {"rgb": sample((50, 20))["rgb"], "nir": sample((128, 64))["nir"], "tir": sample()["tir"]}
    out = train(replace(DATA, augmentation=augmentation))(images, 0, 0)  # type: ignore[arg-type]
    for image in out.values():
        assert type(image) is Tensor
        assert image.dtype == torch.float32
        assert image.shape == (3, 64, 32)
    assert list(out) == list(MODALITIES)


def test_normalisation_is_per_channel_and_exact() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    image = sample()["rgb"]
    expected = (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    for transform in (TestTransform((64, 32), mean, std), at(TrainTransform(PLAIN, mean, std, 0))):
        torch.testing.assert_close(transform({"rgb": image})["rgb"], expected)


def test_input_is_left_alone() -> None:
    images = sample()
    for augmentation in ("independent", "shared"):
        train(replace(DATA, augmentation=augmentation, erasing=1.0))(images, 0, 0)  # type: ignore[arg-type]
        TestTransform((64, 32), HALF, HALF)(images)
    assert equal(images, sample())


def test_resize_is_bicubic_and_antialiased_in_both() -> None:
    image = sample((128, 128))["rgb"]
    expected = torch.nn.functional.interpolate(
        image[None].float(), (64, 32), mode="bicubic", antialias=True, align_corners=False
    )[0].clamp(0, 255)
    for transform in (TestTransform((64, 32), HALF, HALF), at(train(PLAIN))):
        out = (transform({"rgb": image})["rgb"] + 1) * 127.5
        assert (out - expected).abs().max() <= 1.01  # one grey level of rounding


def test_flip() -> None:
    images = sample()
    plain, flipped = train(PLAIN)(images, 0, 0), train(replace(PLAIN, flip=1.0))(images, 0, 0)
    for modality in MODALITIES:
        torch.testing.assert_close(flipped[modality], plain[modality].flip(-1))


def test_border_is_black_and_at_most_the_pad_wide() -> None:
    white = {modality: torch.full((3, 64, 32), 255, dtype=torch.uint8) for modality in MODALITIES}
    transform = train(replace(DATA, flip=0.0, erasing=0.0))
    offsets = set()
    for index in range(60):
        rgb = transform(white, 0, index)["rgb"]
        assert set(rgb.unique().tolist()) <= {-1.0, 1.0}  # black becomes -1: it is laid before normalisation
        offsets.add(int((rgb[0, 32] == 1).nonzero()[0]))
        assert (rgb[0] == 1).sum() >= (64 - 5) * (32 - 5)
    assert min(offsets) == 0
    assert max(offsets) == 5


def test_erasing_is_one_box_of_noise_within_its_bounds() -> None:
    black = {modality: torch.zeros(3, 256, 128, dtype=torch.uint8) for modality in MODALITIES}
    transform = train(replace(PLAIN, size=(256, 128), erasing=1.0))
    noise = []
    for index in range(40):
        for image in transform(black, 0, index).values():
            rows, columns = (image != -1).any(0).nonzero(as_tuple=True)
            if not len(rows):
                continue
            top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            box = image[:, top:bottom, left:right]
            assert torch.equal((image != -1).any(0).sum(), (bottom - top) * (right - left))
            assert 0.015 < box[0].numel() / (256 * 128) < 0.34
            assert 0.28 < (bottom - top) / (right - left) < 3.5
            noise.append(box.flatten())
    values = torch.cat(noise)
    assert len(noise) > 100
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02


def test_erasing_probability() -> None:
    black = {"rgb": torch.zeros(3, 64, 32, dtype=torch.uint8)}
    transform = train(replace(PLAIN, erasing=0.5))
    erased = sum(bool((transform(black, 0, index)["rgb"] != -1).any()) for index in range(200))
    assert 70 < erased < 130
    assert equal(train(PLAIN)(black, 0, 0), TestTransform((64, 32), HALF, HALF)(black))


def test_shared_draws_hit_every_modality_alike() -> None:
    transform = train(replace(DATA, augmentation="shared"))
    seen = []
    for index in range(20):
        out = transform(sample(), 0, index)
        assert torch.equal(out["rgb"], out["nir"])
        assert torch.equal(out["rgb"], out["tir"])
        seen.append(out["rgb"])
    assert any(not torch.equal(seen[0], other) for other in seen[1:])


def test_shared_draws_hit_modalities_of_different_sizes_alike() -> None:
    white = {m: torch.full((3, h, 32), 255, dtype=torch.uint8) for m, h in zip(MODALITIES, (64, 50, 90), strict=True)}
    out = train(replace(DATA, augmentation="shared", erasing=0.0))(white, 0, 3)
    assert torch.equal(out["rgb"], out["nir"])
    assert torch.equal(out["rgb"], out["tir"])
    assert (out["rgb"] == -1).any()


def test_independent_draws_differ() -> None:
    transform = train(DATA)
    outs = [transform(sample(), 0, index) for index in range(20)]
    assert sum(torch.equal(out["rgb"], out["nir"]) for out in outs) <= 2


@pytest.mark.parametrize("augmentation", ["independent", "shared"])
def test_draws_depend_on_seed_epoch_and_index_alone(augmentation: str) -> None:
    data = replace(DATA, augmentation=augmentation)  # type: ignore[arg-type]
    reference = train(data)(sample(), 3, 7)
    torch.manual_seed(99)
    other = train(data)
    other(sample(), 1, 1)
    assert equal(other(sample(), 3, 7), reference)
    for changed in (train(data, seed=1)(sample(), 3, 7), other(sample(), 4, 7), other(sample(), 3, 8)):
        assert not equal(changed, reference)


@pytest.mark.parametrize("augmentation", ["independent", "shared"])
def test_global_random_state_is_untouched(augmentation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("torch.manual_seed reseeds accelerators, whose state is not restored")

    monkeypatch.setattr(torch, "manual_seed", refuse)
    before = torch.get_rng_state()
    train(replace(DATA, augmentation=augmentation))(sample(), 0, 0)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), before)


def by_torchvision(data: DataConfig, images: dict[str, Tensor], epoch: int, index: int) -> dict[str, Tensor]:
    """The same augmentation as torchvision's transforms v2 do it, from the global random state."""
    bytes_per_unit = [255 * value for value in HALF]
    compose = v2.Compose(
        [
            v2.Resize(data.size, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(data.flip),
            v2.RandomCrop(data.size, padding=data.pad),
            v2.ToDtype(torch.float32),
            v2.Normalize(bytes_per_unit, bytes_per_unit),
            v2.RandomErasing(data.erasing, scale=(0.02, 1 / 3), ratio=(0.3, 3.3), value="random"),
        ]
    )
    groups = [images] if data.augmentation == "shared" else [{modality: images[modality]} for modality in images]
    out = {}
    for group in groups:
        name = "" if data.augmentation == "shared" else next(iter(group))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for("augmentation", 0, epoch, index, name))
            out |= compose({modality: tv_tensors.Image(image) for modality, image in group.items()})
    return {modality: image.as_subclass(Tensor) for modality, image in out.items()}


@pytest.mark.parametrize("augmentation", ["independent", "shared"])
@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("size", [(64, 32), (50, 77)], ids=str)
def test_draws_and_results_are_torchvisions(augmentation: str, pad: int, size: tuple[int, int]) -> None:
    data = replace(DATA, augmentation=augmentation, pad=pad)  # type: ignore[arg-type]
    transform = train(data)
    for index in range(30):
        ours, theirs = transform(sample(size), 2, index), by_torchvision(data, sample(size), 2, index)
        for modality in MODALITIES:
            torch.testing.assert_close(ours[modality], theirs[modality], rtol=0, atol=1e-6)


def test_results_are_written_where_asked() -> None:
    images = sample()
    for transform in (at(train(DATA)), TestTransform((64, 32), HALF, HALF)):
        batch = torch.zeros(3, 2, 3, 64, 32)
        out = dict(zip(MODALITIES, batch[:, 1], strict=True))
        assert equal(transform(images, out=out), transform(images))
        assert equal(out, transform(images))
        assert not batch[:, 0].any()
