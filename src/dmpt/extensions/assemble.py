"""From settings to a network on its pretrained backbone, with what the text side brings."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dmpt.data.loader import test_set
from dmpt.data.records import Record
from dmpt.extensions.prompts_from_data import start_from_data
from dmpt.method.backbone import Backbone
from dmpt.method.losses import TextTargets
from dmpt.method.modalities import MODALITY_COUNT
from dmpt.method.network import DMPT
from dmpt.method.prompts import modality_words
from dmpt.settings.config import Config
from dmpt.towers.image import build_vit
from dmpt.towers.phrases import OBJECTS, IdentityText, check_matches, text_file

LOOKED_AT = 64
"""Training triplets from whose patches ``semantic.init: data`` draws."""


def build(config: Config, ids: int, object_word: str) -> tuple[DMPT, TextTargets | None, str | None]:
    """The network on its pretrained backbone, what the fixed prompts give the text loss, the text weights' sha256.

    Raises:
        UserError: weights or words are missing, or do not fit.
    """
    torch.manual_seed(config.train.seed)
    vit, info = build_vit(config.backbone, config.data.size)
    backbone = Backbone(vit, info, config.backbone.tune, config.backbone.lora_rank)
    worded, with_text = config.modality.worded, config.text.loss != "off"
    file = text_file(config.text) if worded or with_text else None
    # A ready file says nothing of the tower that ``identity`` trains through.
    said = text_file(replace(config.text, file=None)) if config.text.loss == "identity" else file
    words = None
    if config.modality.length:
        chosen = None
        if worded:
            assert file is not None
            chosen = list((file.attributes if config.modality.source == "attribute" else file.words).values())
        words = modality_words(config.modality, chosen)
    network = DMPT(config, backbone, ids, words)
    targets = None
    if with_text:
        assert said is not None
        assert network.projection is not None
        check_matches(said, info, config.backbone.projection, network.projection.out_features)
        positive = torch.tensor([m * len(OBJECTS) + OBJECTS.index(object_word) for m in range(MODALITY_COUNT)])
        targets = TextTargets(said.features, positive, said.logit_scale)
        if config.text.loss == "identity":
            network.identity_text = IdentityText(config.text, ids, object_word)
    return network, targets, None if said is None else said.sha256


def start_prompts(network: DMPT, records: Sequence[Record], config: Config) -> None:
    """Semantic prompts from some training images, not augmented; the same in every process.

    Args:
        network: on its device.
        records: training triplets.
        config: its ``data`` with mean and std set.

    Raises:
        UserError: a file does not decode, or the images have too few patches.
    """
    data, generator = config.data, torch.Generator().manual_seed(config.train.seed)
    assert network.prompts is not None
    assert network.prompts.semantic is not None
    batch = test_set(records, data).batch(0, torch.randperm(len(records), generator=generator)[:LOOKED_AT].tolist())
    device = network.prompts.semantic.tokens.device
    images, present = batch.images.to(device), batch.present.to(device)
    start_from_data(network.prompts.semantic, network.backbone, images, present, generator)
