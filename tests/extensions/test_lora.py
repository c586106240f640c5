"""LoRA: it starts as the frozen tower, and trains updates of queries and values alone."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dmpt.evaluation.evaluate import evaluate
from dmpt.evaluation.opened import Conditions
from dmpt.extensions.lora import LoRA
from runs import adapter_gives_what_was_trained, fit, settings, toy, with_
from small import (
    BARE,
    Small,
    error_of,
    redraw,
    seeded,
    small_backbone,
    small_images,
    small_model,
    small_network,
    train_steps,
)

WIDTH, BLOCKS = 32, 2


def bare(tune: str) -> Small:
    return small_model(backbone={"tune": tune, "lora_rank": 3}, text={"loss": "off"}, **BARE)


@torch.no_grad()
def test_it_starts_as_the_frozen_tower() -> None:
    frozen, tuned = bare("frozen").network, bare("lora").network
    images = small_images(frozen.backbone)
    assert error_of(tuned(images).features.x, frozen(images).features.x) < 1e-6


def test_its_updates_learn_and_the_tower_does_not() -> None:
    model = bare("lora")
    network = model.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    own = {n for n in network.trained() if not n.startswith("heads.")}
    assert len(own) == 4 * BLOCKS
    assert all(".qkv.query." in n or ".qkv.value." in n for n in own)
    assert train_steps(model) == set(network.trained())
    for name, value in network.state_dict().items():
        moved = name in network.trained() or "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) is not moved, name


@torch.no_grad()
def test_lora_adds_b_a_x_to_queries_and_values_alone() -> None:
    """Against the same tower with the updates merged into its weights."""
    network = bare("lora").network
    redraw(network.backbone, seeded(3), 0.3)
    network.double()
    merged = small_backbone().double()
    for block, tuned in zip(merged.vit.blocks, network.backbone.vit.blocks, strict=True):
        qkv, lora = block.attn.qkv, tuned.attn.qkv
        assert isinstance(lora, LoRA)
        query, value = (part.up.weight @ part.down.weight for part in (lora.query, lora.value))
        assert query.shape == (WIDTH, WIDTH)
        qkv.weight += torch.cat([query, torch.zeros_like(query), value])
    images = small_images(merged).flatten(0, 1)
    assert error_of(network.backbone(images), merged(images)) < 1e-12
    assert error_of(network.backbone(images), small_backbone().double()(images)) > 1e-3


@torch.no_grad()
def test_lora_is_pefts() -> None:
    peft = pytest.importorskip("peft")
    network = bare("lora").network
    redraw(network.backbone, seeded(3), 0.3)
    vit = small_backbone().vit
    # peft updates the joint map, of which B's rows for keys are zeros and A's are those of queries and values.
    theirs = peft.get_peft_model(
        copy.deepcopy(vit), peft.LoraConfig(r=6, lora_alpha=6, target_modules=["qkv"], lora_dropout=0.0)
    )
    wrapped = [module for name, module in theirs.named_modules() if name.endswith("attn.qkv")]
    for layer, block in zip(wrapped, network.backbone.vit.blocks, strict=True):
        query, value = block.attn.qkv.query, block.attn.qkv.value
        layer.lora_A["default"].weight.copy_(torch.cat([query.down.weight, value.down.weight]))
        up = torch.zeros(3 * WIDTH, 6)
        up[:WIDTH, :3], up[2 * WIDTH :, 3:] = query.up.weight, value.up.weight
        layer.lora_B["default"].weight.copy_(up)
    images = small_images(network.backbone)
    for modality, stream in enumerate(images):
        own = theirs.forward_features(stream)[:, 0]
        assert error_of(network(images).features.x[modality], own) < 1e-5


@pytest.mark.parametrize("form", ["prefix", "token"])
def test_lora_takes_prompts_too(form: str) -> None:
    """Prefixes see the updated values; both forms agree."""
    one, other = (small_network(backbone={"tune": "lora"}, prompts=p).double() for p in ("prefix", "token"))
    for network in (one, other):
        redraw(network, seeded(3), 0.1)
    images = small_images(one.backbone)
    assert error_of(one(images).features.x, other(images).features.x) < 1e-10
    assert train_steps(small_model(backbone={"tune": "lora"}, prompts=form)) >= {
        "backbone.vit.blocks.1.attn.qkv.value.down.weight",
        "prompts.semantic.tokens",
    }


def test_updates_stay_in_float32_beside_half_precision_weights() -> None:
    network = bare("lora").network
    redraw(network.backbone, seeded(3), 0.3)
    before = {n: p.detach().clone() for n, p in network.trained().items()}
    network.backbone.keep_in(torch.bfloat16)
    assert all(torch.equal(p, before[n]) for n, p in network.trained().items())
    assert network.get_parameter("backbone.vit.blocks.0.attn.qkv.frozen.weight").dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        network(small_images(network.backbone)).features.x.sum().backward()
    gradient = network.get_parameter("backbone.vit.blocks.0.attn.qkv.query.down.weight").grad
    assert gradient is not None
    assert gradient.dtype == torch.float32


# --- runs and adapters ------------------------------------------------------------------------------------------------


def test_an_adapter_gives_the_trained_features(tmp_path: Path) -> None:
    config = with_(settings(toy(tmp_path / "data"), epochs=1), **BARE, backbone={"tune": "lora", "lora_rank": 2})
    adapter_gives_what_was_trained(config, tmp_path / "run")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_with_prompts_is_evaluated_in_the_precision_asked_for(tmp_path: Path, precision: Any) -> None:
    config = settings(toy(tmp_path / "data"), epochs=1, precision="bf16")
    fit(with_(config, backbone={"tune": "lora", "lora_rank": 2}), tmp_path / "run")
    as_tokens = tmp_path / "tokens"
    shutil.copytree(tmp_path / "run" / "last", as_tokens)
    card = json.loads((as_tokens / "config.json").read_text())
    card["config"]["prompts"] = "token"
    (as_tokens / "config.json").write_text(json.dumps(card))
    root = str(tmp_path / "data")  # which an adapter that left its run does not know
    found = [
        evaluate(place, Conditions({"root": root}, precision=precision)).metrics.mAP
        for place in (tmp_path / "run", as_tokens)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01 if precision == "fp32" else 5)
