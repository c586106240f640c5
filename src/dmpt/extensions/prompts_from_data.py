"""``semantic.init: data``: semantic prompts begin as patch tokens of training images.

A prompt of layer l stands among the tokens that enter layer l. Uniform noise is far from all of these; here a prompt
starts as one of them, drawn at random from the plain tower's pass over some images of its modality. The idea is
Self-Prompt Tuning's (Wang et al. 2024), who begin with prototypes of such tokens; a draw needs no clustering.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.data.loader import test_set
from dmpt.data.records import Record
from dmpt.method.backbone import Backbone
from dmpt.method.network import DMPT
from dmpt.method.prompts import SemanticPrompts
from dmpt.settings.config import Config

_LOOKED_AT = 64  # training samples from whose patches prompts are drawn


@torch.no_grad()
def _start_from_data(
    prompts: SemanticPrompts, backbone: Backbone, images: Tensor, present: Tensor, generator: torch.Generator
) -> None:
    """Draw from images ``(3, B, 3, H, W)``, where present ``(3, B)``; prompts of a modality that none shows stay."""
    layers, sets, length, _ = prompts.tokens.shape
    first = backbone.depth - layers

    def draw(layer: int, tokens: Tensor) -> None:
        if layer < first:
            return
        patches = tokens.view(*present.shape, *tokens.shape[1:])[:, :, backbone.leading :]
        shared = sets == 1
        seen = [patches[present]] if shared else [own[there] for own, there in zip(patches, present, strict=True)]
        for target, own in zip(prompts.tokens[layer - first], seen, strict=True):
            pool = own.flatten(0, 1)
            if 0 < len(pool) < length:
                raise UserError(
                    f"semantic.init data draws semantic.length {length} different patches, but the images that it "
                    f"looked at have {len(pool)}; set semantic.init uniform or a smaller length"
                )
            if len(pool):
                chosen = torch.randperm(len(pool), generator=generator)[:length]
                target.copy_(pool[chosen.to(pool.device)])

    backbone(images.flatten(0, 1), watch=draw)


def start_prompts(network: DMPT, records: Sequence[Record], config: Config) -> None:
    """Semantic prompts from some training images, not augmented; the same in every process.

    The network is on its device, and the settings' ``data`` have mean and std.

    Raises:
        UserError: a file does not decode, or the images have too few patches.
    """
    data, generator = config.data, torch.Generator().manual_seed(config.train.seed)
    assert network.prompts is not None
    assert network.prompts.semantic is not None
    batch = test_set(records, data).batch(0, torch.randperm(len(records), generator=generator)[:_LOOKED_AT].tolist())
    device = network.prompts.semantic.tokens.device
    images, present = batch.images.to(device), batch.present.to(device)
    _start_from_data(network.prompts.semantic, network.backbone, images, present, generator)
