"""Features and labels of the test set."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.base.terminal import track
from dmpt.data.loader import test_batches, test_set
from dmpt.data.records import Record, labels_of
from dmpt.extensions.shared import shared_part
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.protocols import Labels
from dmpt.settings.config import DataConfig

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Pair = tuple[Sequence[Record], Sequence[Record]]
"""Query and gallery; one list for both where they are one."""


class Seen(NamedTuple):
    """What the network says of query and gallery, in one subset of modalities; in the order that metrics ask for."""

    query: Embeddings
    gallery: Embeddings
    query_labels: Labels
    gallery_labels: Labels


def look(network: DMPT, data: DataConfig, records: Pair, precision: str, batch_size: int = 64) -> Seen:
    """Features and labels of both sides, one pass where they are one list.

    Args:
        network: on its device; left in evaluation mode.
        data: as for ``extract``.
        records: query and gallery.
        precision: a key of ``PRECISIONS``.
        batch_size: samples per pass.

    Raises:
        UserError: an image does not decode.
    """
    query, gallery = records
    of = partial(extract, network, data=data, precision=PRECISIONS[precision], batch_size=batch_size)
    features = of(gallery)
    return Seen(features if query is gallery else of(query), features, labels_of(query), labels_of(gallery))


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
        network: on its device; left in evaluation mode.
        records: samples, which may lack modalities.
        data: size, mean and std (both set), value range and workers are used.
        precision: compute precision.
        batch_size: samples per pass.

    Raises:
        UserError: a file does not decode.
    """
    encode = Encoder(network, precision)
    batches = test_batches(test_set(records, data), batch_size, workers=data.workers)
    return join(
        *(encode(batch.images, batch.present) for batch in track(batches, "features", -(-len(records) // batch_size)))
    )


class Encoder:
    """A network whose prompts are constants: images in, embeddings out.

    Args:
        network: on its device; left in evaluation mode.
        precision: compute precision.
    """

    def __init__(self, network: DMPT, precision: torch.dtype = torch.float32):
        self.network, self._precision = network.eval(), precision
        with torch.inference_mode():
            # In the tower's precision, without autocast: norms in it, where training has them in float32, so the last
            # digits differ.
            self._baked = network.bake()
        self._part = shared_part(network)
        self._standardisation = None if self._part is None else self._part.standardisation().numpy()

    def __call__(self, images: Tensor, present: Tensor) -> Embeddings:
        """Normalised images ``(3, B, 3, H, W)`` and bool ``(3, B)``, which are there, to B embeddings."""
        device = next(self.network.parameters()).device
        with torch.inference_mode(), torch.autocast(device.type, self._precision, self._precision != torch.float32):
            here = None if present.all() else present.to(device)
            output = self.network(images.to(device, non_blocking=True), here, self._baked)
            features = self.network.test_feature(output.features).view(images.shape[1], len(images), -1).cpu().numpy()
            shared = None if self._part is None else F.normalize(output.also["shared"], dim=-1).cpu().numpy()
        return Embeddings(features, present.T.numpy(), shared, self._standardisation)
