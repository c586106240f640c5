"""Semantic prompts that start as patch tokens of training images."""

from pathlib import Path

import pytest
import torch

from dmpt.base.errors import UserError
from dmpt.extensions.prompts_from_data import _start_from_data
from dmpt.method.network import DMPT
from dmpt.method.prompts import SemanticPrompts
from dmpt.training.trainer import Trainer
from runs import dying, fit, same_state, settings, toy, with_
from small import NO_TEXT, seeded, small_images, small_network


def semantic_of(network: DMPT) -> SemanticPrompts:
    assert network.prompts is not None
    assert network.prompts.semantic is not None
    return network.prompts.semantic


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("share", [False, True])
@torch.no_grad()
def test_prompts_start_as_patch_tokens_of_their_layer_and_modality(first: int, share: bool) -> None:
    network = small_network("registers", 3, semantic={"first_layer": first, "share": share}, **NO_TEXT)
    backbone, vit = network.backbone, network.backbone.vit
    own = semantic_of(network)
    images, present = small_images(backbone, batch=4), torch.ones(3, 4, dtype=torch.bool)
    present[1, :2] = False
    _start_from_data(own, backbone, images, present, seeded(5))
    x = [vit.norm_pre(vit._pos_embed(vit.patch_embed(stream))) for stream in images]
    for layer in range(3):
        patches = [tokens[there, backbone.leading :].flatten(0, 1) for tokens, there in zip(x, present, strict=True)]
        if layer >= first:
            for m, prompts in enumerate(own.tokens[layer - first]):
                pool = torch.cat(patches) if share else patches[m]
                nearest = torch.cdist(prompts, pool, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
                assert nearest.values.max() < 1e-4
                assert len(set(nearest.indices.tolist())) == len(prompts)
        x = [vit.blocks[layer](tokens) for tokens in x]
    before = own.tokens.clone()
    _start_from_data(own, backbone, images, present, seeded(5))
    assert torch.equal(own.tokens, before)
    _start_from_data(own, backbone, images, present, seeded(6))
    assert not torch.equal(own.tokens, before)


@torch.no_grad()
def test_a_modality_that_no_image_shows_keeps_its_values() -> None:
    network = small_network(**NO_TEXT)
    own = semantic_of(network)
    before, present = own.tokens.clone(), torch.tensor([[True], [False], [True]])
    _start_from_data(own, network.backbone, small_images(network.backbone, batch=1), present, seeded())
    assert torch.equal(own.tokens[:, 1], before[:, 1])
    assert not torch.equal(own.tokens[:, 0], before[:, 0])
    assert (own.tokens.std(dim=(2, 3)) > 0).all()


def test_too_few_patches_are_said() -> None:
    network = small_network(semantic={"length": 7}, **NO_TEXT)
    images, present = small_images(network.backbone, batch=1), torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(UserError, match=r"draws semantic\.length 7 different patches.* have 6"):
        _start_from_data(semantic_of(network), network.backbone, images, present, seeded())


def test_a_run_starts_from_its_data_and_is_repeatable(tmp_path: Path) -> None:
    config = settings(toy(tmp_path / "data"), epochs=2)
    data = with_(config, semantic={"init": "data"})
    name = "prompts.semantic.tokens"
    uniform, one = (Trainer(c, tmp_path / n).network for c, n in ((config, "uniform"), (data, "one")))
    assert not torch.equal(uniform.get_parameter(name), one.get_parameter(name))
    for key, value in uniform.own_state().items():  # nothing else is drawn otherwise
        assert key == name or torch.equal(value, one.own_state()[key])
    fit(data, tmp_path / "two")
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(data, tmp_path / "three"), 3).fit()
    fit(data, tmp_path / "three", resume=True)
    assert same_state(tmp_path / "two", tmp_path / "three")
