"""From decoded images to the network's input, for training and for testing."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dmpt.data.images import Pixels
from dmpt.data.seeds import seed_for
from dmpt.settings.config import DataConfig

_Images = Mapping[str, Pixels | Tensor]
_Prepared = dict[str, Tensor]
# Of random erasing: the box's share of the picture, its height / width, and how often a box is drawn that may not fit.
_AREA, _RATIO, _TRIES = (0.02, 1 / 3), (0.3, 3.3), 10


class _Prepare:
    """What training and testing share: from uint8 ``(3, H, W)`` to normalised float32 ``(3, *size)``."""

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.size = size
        # Scaled to 0..255 instead of the pixels to 0..1: a pass less.
        self._mean, self._std = (
            torch.tensor([255 * value for value in values]).view(3, 1, 1) for values in (mean, std)
        )

    def _memory(self, images: _Images, out: _Prepared | None) -> _Prepared:
        """Where to write: what was given, or new."""
        return {modality: torch.zeros(3, *self.size) for modality in images} if out is None else out

    def _resize(self, image: Pixels | Tensor) -> Tensor:
        resized: Tensor = resize(torch.as_tensor(image), list(self.size), InterpolationMode.BICUBIC, antialias=True)
        return resized

    def _normalise(self, pixels: Tensor) -> None:
        pixels.sub_(self._mean).div_(self._std)


class _Draw(NamedTuple):
    """What happens to an image: where its crop begins, negative in the border; box and corner of the erased noise."""

    flip: bool
    top: int
    left: int
    noise: Tensor | None
    corner: tuple[int, int]


class TrainTransform(_Prepare):
    """The field's augmentation: resize, flip, black border and crop, normalise, random erasing with noise.

    What happens to a sample depends on the seed, the epoch and the sample's index alone, so neither the number of
    workers nor a resumed run changes it. The global random state is left as it was.

    The draws are those of torchvision's transforms v2 and so are the results; but each image is copied once, from bytes
    to where it will lie in the batch (``benchmarks/loading.py``).

    Args:
        data: ``size``, ``augmentation``, ``flip``, ``pad`` and ``erasing`` are used.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation.
        seed: of all draws.
    """

    def __init__(self, data: DataConfig, mean: Sequence[float], std: Sequence[float], seed: int) -> None:
        super().__init__(data.size, mean, std)
        self._data, self._seed = data, seed

    def __call__(self, images: _Images, epoch: int, index: int, out: _Prepared | None = None) -> _Prepared:
        """Augment one sample.

        Args:
            images: uint8 ``(3, H, W)`` per modality; sizes may differ.
            epoch: current epoch.
            index: the sample's index in the training set, or the sampler's draw of it.
            out: float32 zeros ``(3, *size)`` to write to, for each modality in ``images``; None = new memory.

        Returns:
            Normalised float32 ``(3, *size)`` per modality: ``out``, if given.
        """
        out = self._memory(images, out)
        shared = self._draw(epoch, index, "") if self._data.augmentation == "shared" else None
        for modality, image in images.items():
            self._augment(image, shared or self._draw(epoch, index, modality), out[modality])
        return out

    def _draw(self, epoch: int, index: int, modality: str) -> _Draw:
        chance = torch.Generator().manual_seed(seed_for("augmentation", self._seed, epoch, index, modality))

        def uniform(low: float, high: float) -> float:
            return torch.empty(1).uniform_(low, high, generator=chance).item()

        def integer(most: int) -> int:
            return int(torch.randint(most + 1, (1,), generator=chance)) if most else 0

        (height, width), pad = self._data.size, self._data.pad
        flip = uniform(0, 1) < self._data.flip
        top, left = integer(2 * pad) - pad, integer(2 * pad) - pad
        if uniform(0, 1) < self._data.erasing:
            for _ in range(_TRIES):
                area = height * width * uniform(*_AREA)
                ratio = math.exp(uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if h < height and w < width:
                    noise = torch.empty(3, h, w).normal_(generator=chance)
                    return _Draw(flip, top, left, noise, (integer(height - h), integer(width - w)))
        return _Draw(flip, top, left, None, (0, 0))

    def _augment(self, image: Pixels | Tensor, draw: _Draw, out: Tensor) -> None:
        resized = self._resize(image)
        if draw.flip:
            resized = resized.flip(-1)
        to_rows, rows = _overlap(draw.top, self.size[0])
        to_columns, columns = _overlap(draw.left, self.size[1])
        out[:, to_rows, to_columns] = resized[:, rows, columns]  # the rest is zero: black
        self._normalise(out)
        if draw.noise is not None:
            (top, left), (h, w) = draw.corner, draw.noise.shape[1:]
            out[:, top : top + h, left : left + w] = draw.noise


def _overlap(start: int, length: int) -> tuple[slice, slice]:
    """Where a crop that begins at ``start``, maybe outside, shows the picture, and which part of it."""
    return slice(max(0, -start), length - max(0, start)), slice(max(0, start), length + min(0, start))


class TestTransform(_Prepare):
    """Resize as in training, and normalise.

    Args:
        size: height and width.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __call__(self, images: _Images, out: _Prepared | None = None) -> _Prepared:
        """Prepare one sample; images, ``out`` and what is returned are as of ``TrainTransform``."""
        out = self._memory(images, out)
        for modality, image in images.items():
            out[modality].copy_(self._resize(image))
            self._normalise(out[modality])
        return out
