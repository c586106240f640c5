"""From records to batches, in this process or in workers: the result is the same."""

import math
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from mmap import mmap
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmpt.base.processes import IN_HAND, ahead
from dmpt.data.images import read_record
from dmpt.data.missing import drop
from dmpt.data.records import Record
from dmpt.data.transforms import TestTransform, TrainTransform
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES

_Key = tuple[int, Sequence[int]]  # epoch and indices
# How workers are started: forked they begin at once; elsewhere than on Linux that is not safe, or not possible.
_METHOD = "fork" if sys.platform == "linux" else "spawn"


class Batch(NamedTuple):
    """Samples on their way to the network. The first dimension of 3 is the modality, in the order of ``MODALITIES``."""

    images: Tensor  # float32 (3, B, 3, H, W); where a modality is absent there are zeros that nothing reads
    labels: Tensor  # int64 (B,), classes 0, 1, ... of the training identities; -1 where there are none (test)
    present: Tensor  # bool (3, B), which modalities a sample has, at least one
    subset: Tensor  # bool (3, B), those of them that modality dropout leaves; the same where it leaves out the images


class SampleDataset:
    """Decodes and transforms whole batches.

    Args:
        records: the samples.
        transform: from decoded images to the network's input.
        value_range: as for ``read_image``.
        labels: class of each record; None for a test set.
        dropout: probability of leaving out each modality of a sample (``missing.drop``).
        seed: of the dropout.
        whole: read the whole sample all the same, and say in ``subset`` what dropout leaves.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transform: TrainTransform | TestTransform,
        value_range: tuple[float, float],
        labels: Sequence[int] | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        whole: bool = False,
    ) -> None:
        self.records, self.transform, self.value_range = records, transform, value_range
        self.dropout, self.seed, self.whole = dropout, seed, whole
        self.labels = [-1] * len(records) if labels is None else labels

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, epoch: int, indices: Sequence[int], out: Tensor | None = None) -> Batch:
        """Decode and transform samples.

        Args:
            epoch: which epoch, for the augmentation.
            indices: of the samples; they may be the sampler's draws: modulo their number.
            out: where the images are put; None = in new memory.

        Raises:
            UserError: a file does not decode.
        """
        images = _zeros(len(MODALITIES), len(indices), 3, *self.transform.size) if out is None else out.zero_()
        present = torch.zeros(len(MODALITIES), len(indices), dtype=torch.bool)
        subset = torch.zeros_like(present)
        for number, index in enumerate(indices):
            record = self.records[index % len(self)]
            left = drop(record, self.dropout, self.seed, epoch, index)
            decoded = read_record(record if self.whole else left, self.value_range)
            rows = {modality: MODALITIES.index(modality) for modality in decoded}
            places = {modality: images[row, number] for modality, row in rows.items()}
            if isinstance(self.transform, TrainTransform):
                self.transform(decoded, epoch, index, places)
            else:
                self.transform(decoded, places)
            present[list(rows.values()), number] = True
            subset[[rows[modality] for modality in left.paths], number] = True
        return Batch(
            images=images,
            labels=torch.tensor([self.labels[index % len(self)] for index in indices]),
            present=present,
            subset=subset,
        )


def test_set(records: Sequence[Record], data: DataConfig) -> SampleDataset:
    """Records as they are tested, not augmented; ``data`` has mean and std set."""
    assert data.mean is not None
    assert data.std is not None
    return SampleDataset(records, TestTransform(data.size, data.mean, data.std), data.black_and_white)


test_set.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name


def _zeros(*shape: int) -> Tensor:
    # A batch is tens of megabytes of new memory. numpy asks Linux for it in huge pages, torch does not; the small ones
    # took longer than the augmentation.
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


def train_batches(
    dataset: SampleDataset, batches: Sequence[Sequence[int]], epoch: int, *, start: int = 0, workers: int
) -> Iterator[Batch]:
    """Batches of one epoch; a file that does not decode is a UserError.

    Args:
        dataset: the training set.
        batches: indices of each of the epoch's batches, or this process's shard of each.
        epoch: which epoch, for the augmentation.
        start: first batch to give; a resumed run passes the number of steps it has done in this epoch.
        workers: loader processes; 0 loads in this one.
    """
    return _load(dataset, [(epoch, indices) for indices in batches[start:]], workers)


def test_batches(dataset: SampleDataset, batch_size: int, *, workers: int) -> Iterator[Batch]:
    """All records once and in order, the last batch maybe smaller; otherwise as ``train_batches``."""
    indices = range(len(dataset))
    return _load(dataset, [(0, indices[i : i + batch_size]) for i in indices[::batch_size]], workers)


test_batches.__test__ = False  # type: ignore[attr-defined]


def _load(dataset: SampleDataset, keys: Sequence[_Key], workers: int) -> Generator[Batch, None, None]:
    workers = min(workers, len(keys))
    batches = _by_workers(dataset, keys, workers) if workers else (dataset.batch(*key) for key in keys)
    if torch.cuda.is_available():
        return _one_ahead(_kept(batches))
    return _kept(batches) if workers else batches


def _by_workers(dataset: SampleDataset, keys: Sequence[_Key], workers: int) -> Generator[Batch, None, None]:
    """Batches whose images are overwritten when the next one is asked for."""
    slots = workers * IN_HAND
    shared = _Shared(dataset, slots, max(len(indices) for _, indices in keys))
    parts = [(number % slots, key) for number, key in enumerate(keys)]
    one_thread = partial(torch.set_num_threads, 1)
    with closing(ahead(shared, parts, workers, method=_METHOD, window=slots, begin=one_thread)) as results:
        for (slot, (_, indices)), rest in zip(parts, results, strict=True):
            yield Batch(shared.images(slot, len(indices)), *map(torch.from_numpy, rest))


class _Shared:
    """Memory for so many batches (slots) of at most so many samples: workers write to it, this process reads.

    It is no file, so that neither the size of /dev/shm nor the number of open files limits it.
    """

    def __init__(self, dataset: SampleDataset, slots: int, samples: int) -> None:
        self.dataset, self.slots = dataset, slots
        size = slots * 4 * math.prod(self._shape(samples))
        # Who is forked inherits it; who is spawned is handed an array of multiprocessing's, which is a file somewhere.
        self.memory: Any = mmap(-1, size) if _METHOD == "fork" else get_context(_METHOD).RawArray("b", size)

    def _shape(self, samples: int) -> tuple[int, ...]:
        return len(MODALITIES), samples, 3, *self.dataset.transform.size

    def images(self, slot: int, samples: int) -> Tensor:
        values = np.frombuffer(self.memory, np.float32).reshape(self.slots, -1)[slot]
        shape = self._shape(samples)
        return torch.from_numpy(values[: math.prod(shape)].reshape(shape))

    def __call__(self, part: tuple[int, _Key]) -> list[NDArray[Any]]:
        """Put a batch into its slot; returns the rest of it, which is small."""
        slot, (epoch, indices) = part
        batch = self.dataset.batch(epoch, indices, self.images(slot, len(indices)))
        return [tensor.numpy() for tensor in batch[1:]]


def _kept(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Batches whose images are a copy, and where there is a GPU, one that it can fetch by itself."""
    with closing(batches):
        for batch in batches:
            if torch.cuda.is_available():
                images = torch.empty_like(batch.images, pin_memory=True)
            else:
                images = torch.from_numpy(np.empty(batch.images.shape, np.float32))
            np.copyto(images.numpy(), batch.images.numpy())
            yield batch._replace(images=images)


def _one_ahead(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The next batch is fetched while the caller works on this one."""
    with closing(batches), ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
