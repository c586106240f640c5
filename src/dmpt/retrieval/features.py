"""Test features of a list of triplets."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from dmpt.config import DataConfig
from dmpt.data.loader import test_batches, test_set
from dmpt.data.manifest import Record
from dmpt.model.network import DMPT, test_feature
from dmpt.progress import track
from dmpt.retrieval.embeddings import Embeddings, join


def extract(
    network: DMPT,
    records: Sequence[Record],
    data: DataConfig,
    *,
    precision: torch.dtype = torch.float32,
    batch_size: int = 64,
) -> Embeddings:
    """Test features, in the order of ``records``.

    Args:
        network: on its device; left in evaluation mode, its prompts baked.
        records: triplets, which may lack modalities.
        data: size, mean and std (both set), value range and workers are used.
        precision: compute precision.
        batch_size: triplets per pass.

    Raises:
        UserError: a file does not decode.
    """
    network.eval()
    device = next(network.parameters()).device
    cast = partial(torch.autocast, device.type, precision, enabled=precision != torch.float32)
    # Once, so in full precision; but LoRA's updates stay in float32, and only autocast lets a tower in bf16 meet them.
    with cast() if network.config.backbone.tune == "lora" else nullcontext():
        network.bake()
    batches = test_batches(test_set(records, data), batch_size, workers=data.workers)
    calibration = None if network.shared is None else network.shared.calibration().numpy()
    parts = []
    with torch.inference_mode(), cast():
        for batch in track(batches, "features", -(-len(records) // batch_size)):
            images = batch.images.to(device, non_blocking=True)
            output = network(images, None if batch.present.all() else batch.present)
            slots = test_feature(output).view(len(batch.labels), len(images), -1).cpu().numpy()
            shared = None if output.shared is None else F.normalize(output.shared, dim=-1).cpu().numpy()
            parts.append(Embeddings(slots, batch.present.T.numpy(), shared, calibration))
    return join(*parts)
