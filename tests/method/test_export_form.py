"""The dense form of the network has no step that depends on what is there: torch.export takes it as one graph."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmpt.extensions.lora import merge_lora
from small import redraw, seeded, small_images, small_network

CHANGES: list[dict[str, Any]] = [
    {},
    {"bind": {"layers": [0]}},
    {"prompts": "token"},
    {"missing": {"dropout": 0.3}},
    {"backbone": {"tune": "lora"}},
    {"backbone": {"tune": "lora"}, "lora": {"where": "all", "rank_per_modality": 2}},
    {"feature": "cls+bind", "neck": "after"},
    {"missing": {"absent": "learned"}},
]
PRESENT = torch.tensor([[True, True, False], [True, False, True], [False, True, True]])


class AtTest(nn.Module):
    """What will be exported: three batches of images and what is there of them, batch first."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.baked = network.bake()

    def forward(self, rgb: Tensor, nir: Tensor, tir: Tensor, present: Tensor) -> Tensor:
        out: Tensor = self.network.embed(torch.stack([rgb, nir, tir]), present.T, self.baked)
        return out


@pytest.mark.long
@pytest.mark.parametrize("change", CHANGES)
def test_the_dense_form_exports_with_a_dynamic_batch(change: dict[str, Any]) -> None:
    network = small_network(depth=3, **change).eval()
    redraw(network, seeded(3), 0.05)
    merge_lora(network.backbone)
    network.dense = True
    module = AtTest(network).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    rgb, nir, tir = small_images(network.backbone, batch=3)
    with torch.no_grad():
        program = torch.export.export(module, (rgb, nir, tir, PRESENT.T), dynamic_shapes=({0: batch},) * 4)
        for count in (1, 2, 3, 7):
            images = small_images(network.backbone, batch=count, seed=count)
            present = PRESENT.repeat(1, 3)[:, :count]
            poisoned = images.masked_fill(~present[..., None, None, None], torch.nan)
            network.dense = bool(network.exchanges)
            expected = network.embed(images, present)
            found = program.module()(*poisoned, present.T)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
