"""``semantic.init: data``: semantic prompts begin as patch tokens of training images.

A prompt of layer l stands among the tokens that enter layer l. Uniform noise is far from all of these; here a prompt
starts as one of them, drawn at random from the plain tower's pass over some images of its modality. The idea is
Self-Prompt Tuning's (Wang et al. 2024), who begin with prototypes of such tokens; a draw needs no clustering.
"""

import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.method.backbone import Backbone
from dmpt.method.prompts import SemanticPrompts


@torch.no_grad()
def start_from_data(
    prompts: SemanticPrompts, backbone: Backbone, images: Tensor, present: Tensor, generator: torch.Generator
) -> None:
    """Replace the initial values; those of a modality that no image shows stay.

    Args:
        prompts: of the last layers of the tower.
        backbone: the pretrained tower, on the device of ``images``.
        images: normalised, ``(3, B, 3, H, W)``.
        present: bool ``(3, B)``, which of them exist.
        generator: on the CPU, for the draws.

    Raises:
        UserError: the images have fewer patches than there are prompts.
    """
    layers, sets, length, _ = prompts.tokens.shape
    shared = sets == 1
    for layer, tokens in enumerate(backbone.entering(images), start=layers - backbone.depth):
        if layer < 0:
            continue
        patches = tokens[:, :, backbone.leading :]
        seen = [patches[present]] if shared else [own[there] for own, there in zip(patches, present, strict=True)]
        for target, own in zip(prompts.tokens[layer], seen, strict=True):
            pool = own.flatten(0, 1)
            if 0 < len(pool) < length:
                raise UserError(
                    f"semantic.init data draws semantic.length {length} different patches, but the images that it "
                    f"looked at have {len(pool)}; set semantic.init uniform or a smaller length"
                )
            if len(pool):
                chosen = torch.randperm(len(pool), generator=generator)[:length]
                target.copy_(pool[chosen.to(pool.device)])
