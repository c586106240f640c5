"""Towers in wrappers and under transformers' names: the same features, and true reasons where there are none."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_files import SIZE, backbone, clip, one_line, save, save_config, smooth
from dmpt.base.errors import UserError
from dmpt.settings.config import BackboneConfig, TextConfig
from dmpt.towers.image import build_vit
from dmpt.towers.names import find_tower
from dmpt.towers.tensors import read_tensors
from dmpt.towers.text import load_text_tower, tokenizer_of

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def under(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def vit(name: str, size: int = 64, **overrides: Any) -> Any:
    """A tower of timm's far from its initial values, whose table shows its grid."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, img_size=size, **{**SMALL, **overrides}).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
        model.pos_embed[:, -16:] = smooth(4, 4, 32)
    return model


def config(name: str, path: Path) -> BackboneConfig:
    return BackboneConfig(name=name, weights=str(path), overrides=SMALL)


# --- wrappers


def twice(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * 2 for name, tensor in tensors.items()}


REST = {"bottleneck.weight": torch.ones(2), "classifier.weight": torch.ones(3)}
ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}}
WRAPPERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "module.": under("module."),
    "_orig_mod.": under("_orig_mod."),
    "_orig_mod.module.": under("_orig_mod.module."),
    "backbone.": lambda t: {**under("backbone.")(t), **REST},
    "state_dict.model.": lambda t: {"state_dict": under("model.")(t), "epoch": 3, "optimizer": ADAM},
    "model_state_dict.": lambda t: {"model_state_dict": t, "args": argparse.Namespace(lr=1), "best": np.float32(0.5)},
    "model.": lambda t: {"model": t, "model_ema": twice(t)},
    "state_dict.": lambda t: {"model": twice(t), "state_dict": t},
    "teacher.backbone.": lambda t: {"student": {"backbone": twice(t)}, "teacher": {"backbone": t}},
    "base.": lambda t: {**under("base.")(t), **under("alias.")(t)},  # one network under two names
    "net.0.body.": lambda t: {"net": [{"body": t}]},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(wrapper: str, tmp_path: Path) -> None:
    name = "vit_small_patch16_224"
    model = vit(name)
    tensors = dict(model.state_dict())
    torch.save(WRAPPERS[wrapper](tensors), tmp_path / "x.pt")
    tower, info = build_vit(config(name, tmp_path / "x.pt"), (64, 64))
    expected = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    assert all(torch.equal(tensor, expected.pop(name)) for name, tensor in tower.state_dict().items())
    assert not expected
    (done, grid) = info.done
    assert done.startswith(f"weights file: taken from {wrapper}*")
    assert grid.startswith("positions: a table of 4x4 (by its neighbours")
    assert ("argparse.Namespace" in done) is (wrapper == "model_state_dict.")


@pytest.mark.parametrize(
    ("wrapper", "other"),
    [
        ("backbone.", ("bottleneck", "classifier")),
        ("state_dict.model.", ("optimizer",)),
        ("teacher.backbone.", ("student",)),
    ],
)
def test_what_stands_outside_is_listed(wrapper: str, other: tuple[str, ...], tmp_path: Path) -> None:
    name = "vit_small_patch16_224"
    torch.save(WRAPPERS[wrapper](dict(vit(name).state_dict())), tmp_path / "x.pt")
    assert build_vit(config(name, tmp_path / "x.pt"), (64, 64))[1].unused == ("head", *other)


def test_a_file_without_a_wrapper_is_as_it_was(tmp_path: Path) -> None:
    name = "vit_small_patch16_224"
    save_file(vit(name).state_dict(), tmp_path / "x")
    info = build_vit(config(name, tmp_path / "x"), (64, 64))[1]
    assert info.unused == ("head",)
    assert len(info.done) == 1  # the grid


@pytest.mark.parametrize("kind", ["safetensors", "archive"])
@pytest.mark.parametrize("change", ["module.", "model.clip.", "alone", "encoder"])
@torch.no_grad()
def test_a_wrapped_clip(change: str, kind: str, tmp_path: Path) -> None:
    """Whole, its image tower by itself, or that under another name."""
    plain, _ = read_tensors(save(clip(), tmp_path, kind))
    image = {name.removeprefix("visual."): tensor for name, tensor in plain.items() if name.startswith("visual.")}
    tensors = under({"alone": "", "encoder": "image_encoder."}.get(change, change))(
        image if change in ("alone", "encoder") else plain
    )
    torch.save(tensors, tmp_path / "wrapped.pt")
    expected, known = build_vit(backbone(tmp_path / f"clip-{kind}"), SIZE)
    tower, info = build_vit(backbone(tmp_path / "wrapped.pt"), SIZE)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in tower.state_dict().items())
    assert info.projection is not None
    assert known.projection is not None
    assert torch.equal(info.projection, known.projection)
    assert info.unused == ()


@torch.no_grad()
def test_open_clips_towers_of_timm(tmp_path: Path) -> None:
    """Their projection stands outside the trunk."""
    timm_names = load_file(save(clip(), tmp_path, "timm"))
    vision = {f"visual.trunk.{name}": t for name, t in timm_names.items() if not name.startswith("head.")}
    vision["visual.head.proj.weight"] = timm_names["head.weight"]
    rest = {"text.token_embedding.weight": torch.ones(3, 2), "logit_scale": torch.ones(())}
    expected = build_vit(backbone(tmp_path / "clip-timm"), SIZE)[0].state_dict()
    for prefix in ("", "module."):
        save_file(under(prefix)({**vision, **rest}), tmp_path / "x")
        tower, info = build_vit(backbone(tmp_path / "x"), SIZE)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())
        assert info.projection is not None
        assert torch.equal(info.projection, timm_names["head.weight"])


@torch.no_grad()
def test_a_wrapped_text_tower(tmp_path: Path) -> None:
    model = clip()
    torch.save({"model_state_dict": under("_orig_mod.")(dict(model.state_dict()))}, tmp_path / "x.pt")
    tower = load_text_tower(TextConfig(tower=save_config(tmp_path), weights=str(tmp_path / "x.pt")))
    ids = tokenizer_of(tower)(["a thermal photo of a person"])
    torch.testing.assert_close(tower.encode_text(ids), model.encode_text(ids))


# --- transformers' names, compared with the library itself (4.57) by hand when this was written


def as_transformers_vit(tensors: dict[str, Tensor], dino: bool = False) -> dict[str, Tensor]:
    found = {}
    plain = {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    inside = {"attn.proj": "attention.output.dense", "ls1.gamma": "layer_scale1.lambda1"}
    inside["ls2.gamma"] = "layer_scale2.lambda1"
    if not dino:
        inside |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
        inside |= {"mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                found[f"encoder.layer.{match[1]}.attention.attention.{part}.{match[2]}"] = third.contiguous()
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.*?)(\.weight|\.bias)?", name):
            found[f"encoder.layer.{match[1]}.{inside.get(match[2], match[2])}{match[3] or ''}"] = tensor
        elif name in plain:
            found[plain[name]] = tensor
    return found


@pytest.mark.parametrize("prefix", ["", "vit.", "model.vit."])
@torch.no_grad()
def test_transformers_vit(prefix: str, tmp_path: Path) -> None:
    name = "vit_base_patch16_224.augreg_in21k"
    model = vit(name)
    tensors = under(prefix)(as_transformers_vit(dict(model.state_dict())))
    assert f"{prefix}encoder.layer.1.attention.attention.key.weight" in tensors
    assert len(tensors) == 4 + 2 * 16 + 2
    beside = {f"{prefix}pooler.dense.weight": torch.ones(2)}
    if prefix:
        beside["classifier.weight"] = torch.ones(3)
    save_file({**tensors, **beside}, tmp_path / "x")
    tower, info = build_vit(config(name, tmp_path / "x"), (64, 64))
    assert all(torch.equal(tensor, model.state_dict()[n]) for n, tensor in tower.state_dict().items())
    assert set(info.unused) == {name.split(".dense")[0].removesuffix(".weight") for name in beside}
    assert "transformers' names translated" in info.done[0]


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_transformers_dinov2(name: str, tmp_path: Path) -> None:
    model = vit(name, 56)
    tensors = as_transformers_vit(dict(model.state_dict()), dino=True)
    tensors["embeddings.mask_token"] = torch.zeros(1, 32)
    if "reg4" in name:  # the class token has a position there
        tensors["embeddings.position_embeddings"] = torch.cat([torch.full((1, 1, 32), 0.5), model.pos_embed], 1)
        tensors["embeddings.cls_token"] = model.cls_token - 0.5
    save_file(tensors, tmp_path / "x")
    tower, info = build_vit(config(name, tmp_path / "x"), (56, 56))
    for key, tensor in tower.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[key])
    assert info.unused == ()


def as_transformers_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    inside["attn.out_proj"] = "self_attn.out_proj"
    plain = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "logit_scale": "logit_scale",
    }
    norms = {"visual.ln_pre": "vision_model.pre_layrnorm", "visual.ln_post": "vision_model.post_layernorm"}
    norms["ln_final"] = "text_model.final_layer_norm"
    found = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if match := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.*)", name):
            layer = f"{'vision' if match[1] else 'text'}_model.encoder.layers.{match[2]}."
            if match[3].startswith("attn.in_proj_"):
                for part, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{layer}self_attn.{part}_proj.{match[3].removeprefix('attn.in_proj_')}"] = third.clone()
            else:
                of, _, kind = match[3].rpartition(".")
                found[f"{layer}{inside[of]}.{kind}"] = tensor
        elif name in ("visual.proj", "text_projection"):
            found[f"{name.removesuffix('.proj').removesuffix('_projection')}_projection.weight"] = tensor.T.contiguous()
        else:
            found[plain[name] if name in plain else f"{norms[stem]}.{kind}"] = tensor
    found["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    found["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    return found


@torch.no_grad()
def test_transformers_clip(tmp_path: Path) -> None:
    model = clip()
    tensors = as_transformers_clip(dict(model.state_dict()))
    assert "vision_model.encoder.layers.2.self_attn.q_proj.weight" in tensors
    expected = build_vit(backbone(save(model, tmp_path, "safetensors")), SIZE)[0].state_dict()
    for prefix in ("", "clip."):
        save_file(under(prefix)(tensors), tmp_path / "x")
        tower, info = build_vit(backbone(tmp_path / "x"), SIZE)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())
        assert info.projection is not None
        assert torch.equal(info.projection, model.visual.proj.T)
        assert info.unused == ()
        text = load_text_tower(TextConfig(tower=save_config(tmp_path), weights=str(tmp_path / "x")))
        ids = tokenizer_of(text)(["an infrared photo of a vehicle"])
        torch.testing.assert_close(text.encode_text(ids), model.encode_text(ids))


# --- refusals


def test_several_towers(tmp_path: Path) -> None:
    tensors = dict(vit("vit_small_patch16_224").state_dict())
    other = {name: tensor + 1 for name, tensor in tensors.items()}
    torch.save({"query": tensors, "key": other}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"holds several towers \(query\.\*, key\.\*\); save the one") as error:
        build_vit(config("vit_small_patch16_224", tmp_path / "x.pt"), (64, 64))
    one_line(error)


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        (["token_embedding.weight", "transformer.resblocks.0.ln_1.weight"], "image", "holds a tower for text alone"),
        (["text_model.embeddings.token_embedding.weight"], "image", "holds a tower for text alone"),
        (["visual.conv1.weight", "visual.class_embedding"], "text", "holds a tower for images alone"),
        (["optimizer.state.0.exp_avg", "optimizer.state.0.exp_avg_sq"], "image", "the state of an optimiser"),
    ],
)
def test_files_of_something_else(names: list[str], kind: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        find_tower({name: torch.ones(2) for name in names}, kind, tmp_path / "x")
    one_line(error)


def test_a_convolutional_network_is_another_architecture(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(1), "layer1.0.bn1.weight": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(UserError, match=r"another architecture .*lacks cls_token.*has unknown conv1"):
        build_vit(config("vit_small_patch16_224", tmp_path / "x"), (64, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    tensors = {name: tensor.double() for name, tensor in vit("vit_small_patch16_224").state_dict().items()}
    tensors["blocks.1.mlp.fc1.weight"][3, 4] = value
    torch.save({"state_dict": tensors}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt: state_dict\.blocks\.1\.mlp\.fc1\.weight holds NaN or inf") as error:
        build_vit(config("vit_small_patch16_224", tmp_path / "x.pt"), (64, 64))
    one_line(error)


def test_a_text_tower_that_is_no_numbers(tmp_path: Path) -> None:
    """A causal mask may be infinite."""
    tensors = {**clip().state_dict(), "attn_mask": torch.full((77, 77), -torch.inf)}
    tower = TextConfig(tower=save_config(tmp_path), weights=str(tmp_path / "x"))
    save_file(tensors, tmp_path / "x")
    load_text_tower(tower)
    tensors["ln_final.bias"][0] = float("nan")
    save_file(tensors, tmp_path / "x")
    with pytest.raises(UserError, match=r"ln_final\.bias holds NaN"):
        load_text_tower(tower)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    tensors = dict(vit("vit_small_patch16_224").state_dict())
    tensors["blocks.0.attn.qkv.weight"] = (tensors["blocks.0.attn.qkv.weight"] * 100).to(torch.int8)
    save_file(tensors, tmp_path / "x")
    with pytest.raises(UserError, match=r"whole numbers \(is it quantised\?\) for blocks\.0\.attn\.qkv\.weight"):
        build_vit(config("vit_small_patch16_224", tmp_path / "x"), (64, 64))
