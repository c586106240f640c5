"""Samples that lack a modality: cut down to a subset, or by modality dropout in training."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dmpt.data.records import Record
from dmpt.data.seeds import seed_for
from dmpt.settings.modalities import MODALITIES

Subset = tuple[str, ...]
"""Some of ``MODALITIES``, in their order."""


def restrict(records: Sequence[Record], modalities: Subset) -> Sequence[Record]:
    """The records with images of these modalities alone; those left without any are left out.

    Returns:
        ``records`` itself when nothing changes, so that a query set that is the gallery stays it.
    """
    if all(modality in modalities for record in records for modality in record.paths):
        return records
    cut = ({m: path for m, path in record.paths.items() if m in modalities} for record in records)
    return [replace(record, paths=paths) for record, paths in zip(records, cut, strict=True) if paths]


def incomplete(records: Sequence[Record]) -> list[Record]:
    """Those that lack a modality which another of them has."""
    used = {modality for record in records for modality in record.paths}
    return [record for record in records if len(record.paths) < len(used)]


def drop(record: Record, probability: float, seed: int, epoch: int, index: int) -> Record:
    """Modality dropout: leave each modality out with a probability in [0, 1]; when all would go, a random one stays.

    A pure function of seed, epoch and index, like the augmentation. The sample may lack modalities already.
    """
    if not probability:
        return record
    generator = torch.Generator().manual_seed(seed_for("dropout", seed, epoch, index))
    drawn = dict(zip(MODALITIES, torch.rand(len(MODALITIES), generator=generator).tolist(), strict=True))
    luckiest = max(record.paths, key=lambda modality: drawn[modality])
    kept = {m: path for m, path in record.paths.items() if drawn[m] >= probability or m == luckiest}
    return replace(record, paths=kept)
