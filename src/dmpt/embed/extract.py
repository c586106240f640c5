"""Features and labels of the test set."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from dmpt.base.terminal import track
from dmpt.data.loader import test_batches, test_set
from dmpt.data.records import Record, labels_of
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.protocols import Labels
from dmpt.runtime.torch import PRECISIONS, Encoder
from dmpt.settings.config import DataConfig

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
