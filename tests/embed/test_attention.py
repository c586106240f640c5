"""The attention that is written out, for looking at."""

import pytest
import torch

from dmpt.embed.attention import attention
from dmpt.method.network import DMPT
from dmpt.method.prompts import Prompts, SemanticPrompts
from small import KINDS, error_of, redraw, seeded, small_backbone, small_images, through


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompted", [True, False])
def test_attention_gives_the_model_s_own_tokens(kind: str, prompted: bool) -> None:
    prompts = Prompts(SemanticPrompts(2, 4, 32, 16), None, 2) if prompted else None
    network = DMPT(small_backbone(kind), prompts)
    redraw(network, seeded(3), 1.0)
    network.double()
    backbone, images = network.backbone, small_images(network.backbone)
    tokens, looked = attention(network, images)
    own = None if prompts is None else prompts()
    assert error_of(tokens, through(backbone, images, own, keep_prompts=True)) < 1e-12
    assert error_of(tokens, through(backbone, images, own, form="token", keep_prompts=True)) < 1e-12
    assert looked.shape == (3, 2, 4, tokens.shape[2], tokens.shape[2])
    assert error_of(looked.sum(-1), torch.ones(looked.shape[:-1])) < 1e-12
    assert float(looked.detach().std()) > 1e-3  # not the even look, which would hide a wrong order
