"""From records to batches, in this process or in workers: the result is the same."""

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dmpt.base.errors import UserError
from dmpt.data.images import Pixels, read_record
from dmpt.data.missing import drop
from dmpt.data.records import Record
from dmpt.data.transforms import TestTransform
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES

Key = tuple[int, Sequence[int]]


class Transform(Protocol):
    """What happens to a decoded sample.

    Attributes:
        size: height and width of the result.
    """

    size: tuple[int, int]

    def __call__(
        self, images: dict[str, Pixels], epoch: int, index: int, out: dict[str, Tensor] | None = None, /
    ) -> object:
        """Fill ``out``, which has a zero float32 ``(3, *size)`` for each modality in ``images``."""


class Batch(NamedTuple):
    """Samples on their way to the network.

    Attributes:
        images: float32 ``(3, B, 3, H, W)``; the first dimension is the modality, in the order of ``MODALITIES``. Where
            a modality is absent there are zeros that nothing reads.
        labels: int64 ``(B,)``, classes 0, 1, ... of the training identities; -1 where there are none (test).
        present: bool ``(3, B)``, which modalities a sample has, at least one.
        subset: bool ``(3, B)``, those of them that modality dropout leaves; the same where it leaves out the images.
    """

    images: Tensor
    labels: Tensor
    present: Tensor
    subset: Tensor


class SampleDataset(Dataset[Batch | UserError]):
    """Decodes and transforms whole batches: an item's key is ``(epoch, indices)``.

    Args:
        records: the samples.
        transform: from decoded images to the network's input.
        value_range: as for ``read_image``.
        labels: class of each record; None for a test set.
        dropout: probability of leaving out each modality of a sample (``subset.drop``).
        seed: of the dropout.
        whole: read the whole sample all the same, and say in ``subset`` what dropout leaves.
    """

    def __init__(
        self,
        records: Sequence[Record],
        transform: Transform,
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

    def __getitem__(self, key: Key) -> Batch | UserError:
        """A batch, or the error that prevented it: raised in a worker it would arrive wrapped in a traceback."""
        try:
            return self.batch(*key)
        except UserError as error:
            return error

    def batch(self, epoch: int, indices: Sequence[int]) -> Batch:
        """Decode and transform the samples of ``indices``, which may be the sampler's draws: modulo their number.

        Raises:
            UserError: a file does not decode.
        """
        images = _zeros(len(MODALITIES), len(indices), 3, *self.transform.size)
        present = torch.zeros(len(MODALITIES), len(indices), dtype=torch.bool)
        subset = torch.zeros_like(present)
        for number, index in enumerate(indices):
            record = self.records[index % len(self)]
            left = drop(record, self.dropout, self.seed, epoch, index)
            decoded = read_record(record if self.whole else left, self.value_range)
            rows = {modality: MODALITIES.index(modality) for modality in decoded}
            self.transform(decoded, epoch, index, {modality: images[row, number] for modality, row in rows.items()})
            present[list(rows.values()), number] = True
            subset[[rows[modality] for modality in left.paths], number] = True
        return Batch(
            images=images,
            labels=torch.tensor([self.labels[index % len(self)] for index in indices]),
            present=present,
            subset=subset,
        )


def test_set(records: Sequence[Record], data: DataConfig) -> SampleDataset:
    """Records as they are tested, not augmented.

    Args:
        records: samples.
        data: with mean and std set.
    """
    assert data.mean is not None
    assert data.std is not None
    return SampleDataset(records, TestTransform(data.size, data.mean, data.std), data.value_range)


test_set.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name


def _zeros(*shape: int) -> Tensor:
    # A batch is tens of megabytes of new memory. numpy asks Linux for it in huge pages, torch does not; the small ones
    # took longer than the augmentation.
    return torch.from_numpy(np.zeros(shape, dtype=np.float32))


def train_batches(
    dataset: SampleDataset, batches: Sequence[Sequence[int]], epoch: int, *, start: int = 0, workers: int
) -> Iterator[Batch]:
    """Batches of one epoch.

    Args:
        dataset: the training set.
        batches: indices of each of the epoch's batches, or this process's shard of each.
        epoch: which epoch, for the augmentation.
        start: first batch to give; a resumed run passes the number of steps it has done in this epoch.
        workers: loader processes; 0 loads in this one.

    Raises:
        UserError: a file does not decode, or a worker was killed.
    """
    return _load(dataset, [(epoch, indices) for indices in batches[start:]], workers)


def test_batches(dataset: SampleDataset, batch_size: int, *, workers: int) -> Iterator[Batch]:
    """All records once and in order; the last batch may be smaller.

    Args:
        dataset: the query or gallery set.
        batch_size: samples per batch.
        workers: loader processes; 0 loads in this one.

    Raises:
        UserError: a file does not decode, or a worker was killed.
    """
    indices = range(len(dataset))
    return _load(dataset, [(0, indices[i : i + batch_size]) for i in indices[::batch_size]], workers)


test_batches.__test__ = False  # type: ignore[attr-defined]


def _leave_stopping(_: int) -> None:
    """In a worker: Ctrl-C is for the parent alone, which saves first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _load(dataset: SampleDataset, keys: list[Key], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        batch_size=None,  # an item is a batch already
        sampler=keys,
        num_workers=workers,
        worker_init_fn=_leave_stopping,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # DataLoader draws a seed; not from the global state
    )
    iterator = iter(loader)
    try:
        while (batch := next(iterator, None)) is not None:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    except RuntimeError as error:
        # "(pid": it was killed. An exception of its own reads "Caught ... in DataLoader worker process".
        if "DataLoader worker (pid" not in str(error):
            raise
        raise UserError(
            "a loader process was killed, mostly for lack of memory (in a container: shared memory, --shm-size); "
            "give it more, or set data.workers 0"
        ) from error
    finally:
        # End the workers now: a traceback may keep the iterator, which would end them, alive for long.
        getattr(iterator, "_shutdown_workers", lambda: None)()
