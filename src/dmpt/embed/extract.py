"""Features and labels of the test set."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from dmpt.base.terminal import track
from dmpt.data.loader import test_batches, test_set
from dmpt.data.missing import Subset, restrict
from dmpt.data.records import Record, labels_of
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.protocols import Labels
from dmpt.runtime.torch import PRECISIONS, Encoder
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES

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
    return look_in_views(network, data, records, [MODALITIES], precision, batch_size)[MODALITIES]


def look_in_views(
    network: DMPT, data: DataConfig, records: Pair, views: Sequence[Subset], precision: str, batch_size: int = 64
) -> dict[Subset, Seen]:
    """As ``look``, with each of some sets of modalities: both sides cut down to the samples that have any of them."""
    query, gallery = records
    of = partial(extract_views, network, data=data, views=views, precision=PRECISIONS[precision], batch_size=batch_size)
    found = of(gallery)
    asked = found if query is gallery else of(query)
    labels = {kept: tuple(labels_of(restrict(side, kept)) for side in records) for kept in views}
    return {kept: Seen(asked[kept], found[kept], *labels[kept]) for kept in views}


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
    return extract_views(network, records, data, [MODALITIES], precision=precision, batch_size=batch_size)[MODALITIES]


def extract_views(
    network: DMPT,
    records: Sequence[Record],
    data: DataConfig,
    views: Sequence[Subset],
    *,
    precision: torch.dtype = torch.float32,
    batch_size: int = 64,
) -> dict[Subset, Embeddings]:
    """As ``extract``, with each of some sets of modalities: of the samples that have any of them, in their order.

    Every image is read once. It equals ``extract`` of the records cut down to the set, up to rounding.
    """
    encode = Encoder(network, precision)
    batches = test_batches(test_set(records, data), batch_size, workers=data.workers)
    parts: dict[Subset, list[Embeddings]] = {kept: [] for kept in views}
    kept_in = [torch.tensor([[name in kept] for name in MODALITIES]) for kept in views]
    for batch in track(batches, "features", -(-len(records) // batch_size)):
        masks = [batch.present & kept for kept in kept_in]
        found = encode.views(batch.images, batch.present, masks)
        for own, mask, items in zip(parts.values(), masks, found, strict=True):
            rows = mask.any(dim=0)
            own.append(items if rows.all() else items[rows.nonzero()[:, 0].numpy()])
    return {kept: join(*own) for kept, own in parts.items()}
