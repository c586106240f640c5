"""From decoded images to the network's input, for training and for testing."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dmpt.config import DataConfig
from dmpt.data.sampler import seed_for

Images = dict[str, Tensor]


def _resize(size: tuple[int, int]) -> v2.Transform:
    return v2.Resize(size, v2.InterpolationMode.BICUBIC, antialias=True)


def _normalise(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    """Float and normalised in one pass: mean and std are scaled to 0..255 instead of the pixels to 0..1."""
    return [
        v2.ToDtype(torch.float32),
        v2.Normalize([255 * value for value in mean], [255 * value for value in std], inplace=True),
    ]


class TrainTransform:
    """The field's augmentation: resize, flip, black border and crop, normalise, random erasing with noise.

    What happens to a sample depends on the seed, the epoch and the sample's index alone, so neither the number of
    workers nor a resumed run changes it. The global random state is left as it was.

    Args:
        data: ``size``, ``augmentation``, ``flip``, ``pad`` and ``erasing`` are used.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation.
        seed: of all draws.
    """

    def __init__(self, data: DataConfig, mean: Sequence[float], std: Sequence[float], seed: int) -> None:
        self.seed = seed
        self.shared = data.augmentation == "shared"
        self.resize = _resize(data.size)
        self.augment = v2.Compose(
            [
                v2.RandomHorizontalFlip(data.flip),
                v2.RandomCrop(data.size, padding=data.pad),
                *_normalise(mean, std),
                # At most one box per image, of normal noise; the share of its sides is log-uniform.
                v2.RandomErasing(data.erasing, scale=(0.02, 1 / 3), ratio=(0.3, 3.3), value="random", inplace=True),
            ]
        )

    def __call__(self, images: Images, epoch: int, index: int) -> Images:
        """Augment one triplet.

        Args:
            images: uint8 ``(3, H, W)`` per modality; sizes may differ.
            epoch: current epoch.
            index: the sample's index in the training set.

        Returns:
            Normalised float32 ``(3, *size)`` per modality.
        """
        resized = {modality: self.resize(image) for modality, image in images.items()}
        with torch.random.fork_rng(devices=[]):
            if self.shared:
                self._seed(epoch, index, "")
                # Of several plain tensors v2 would transform the first alone.
                wrapped = self.augment({modality: tv_tensors.Image(image) for modality, image in resized.items()})
                return {modality: image.as_subclass(Tensor) for modality, image in wrapped.items()}
            augmented = {}
            for modality, image in resized.items():
                self._seed(epoch, index, modality)
                augmented[modality] = self.augment(image)
            return augmented

    def _seed(self, epoch: int, index: int, modality: str) -> None:
        # torch.manual_seed would reseed the accelerators too, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed_for("augmentation", self.seed, epoch, index, modality))


class TestTransform:
    """Resize as in training, and normalise.

    Args:
        size: height and width.
        mean: per-channel mean in [0, 1].
        std: per-channel standard deviation.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]) -> None:
        self.transform = v2.Compose([_resize(size), *_normalise(mean, std)])

    def __call__(self, images: Images, epoch: int = 0, index: int = 0) -> Images:
        """Prepare one triplet.

        Args:
            images: uint8 ``(3, H, W)`` per modality; sizes may differ.
            epoch: of no effect; here so that both transforms are called alike.
            index: of no effect, likewise.

        Returns:
            Normalised float32 ``(3, *size)`` per modality.
        """
        return {modality: self.transform(image) for modality, image in images.items()}
