"""Test features of a list of triplets."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dmpt.config import DataConfig
from dmpt.data.loader import TripletDataset, test_batches
from dmpt.data.manifest import Record
from dmpt.data.transforms import TestTransform
from dmpt.model.network import DMPT
from dmpt.progress import track


def extract(
    network: DMPT,
    records: Sequence[Record],
    data: DataConfig,
    *,
    precision: torch.dtype = torch.float32,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """L2-normalised test features ``(N, 3 D)``, in the order of ``records``.

    Args:
        network: on its device; left in evaluation mode, its prompts baked.
        records: triplets.
        data: size, mean and std (both set), value range and workers are used.
        precision: compute precision.
        batch_size: triplets per pass.

    Raises:
        UserError: a file does not decode.
    """
    assert data.mean is not None
    assert data.std is not None
    network.eval()
    network.bake()
    device = next(network.parameters()).device
    dataset = TripletDataset(records, TestTransform(data.size, data.mean, data.std), data.value_range)
    batches = test_batches(dataset, batch_size, workers=data.workers)
    parts = []
    with torch.inference_mode(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        for batch in track(batches, "features", -(-len(records) // batch_size)):
            parts.append(network.embed(batch.images.to(device, non_blocking=True)).cpu().numpy())
    return np.concatenate(parts)
