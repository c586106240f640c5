"""Every setting that trains exports, and the file says what torch says, whatever is missing."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dmpt
from dmpt.base.errors import UserError
from dmpt.export import graph as graphs
from dmpt.export.graph import Graph, write_onnx
from dmpt.export.parity import LIMIT, difference, drawn
from dmpt.extensions.lora import MapPerModality, ProductPerModality, fold_lora, merge_lora
from dmpt.extensions.shared import shared_part
from dmpt.method.network import DMPT
from dmpt.runtime.exported import Exported, Input, load, write
from dmpt.runtime.torch import Encoder
from dmpt.settings.config import DataConfig, LoraConfig
from small import BARE, NO_TEXT, error_of, redraw, seeded, small_backbone, small_images, small_network

ALL = ("rgb", "nir", "tir")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "the paper": ("clip", {"heads": "paper"}),
    "tokens, cls+bind, neck after": ("clip", {"prompts": "token", "feature": "cls+bind", "neck": "after", **NO_TEXT}),
    "exchanges, shared part, learned tokens": (
        "clip",
        {"bind": {"layers": [0]}, "missing": {"dropout": 0.3, "absent": "learned"}},
    ),
    "advised": (
        "clip",
        {
            "backbone": {"tune": "lora"},
            "lora": {"where": "all", "rank": 3, "rank_per_modality": 2, "first_layer": 1},
            "semantic": {"length": 0},
            "modality": {"length": 0},
            "bind": {"external": False, "rank": 4, "share": True},
            **NO_TEXT,
        },
    ),
    "updates of modalities alone beside prompts": (
        "clip",
        {"backbone": {"tune": "lora"}, "lora": {"rank": 0, "rank_per_modality": 2, "scale": 3.0}, "bind": {"depth": 2}},
    ),
    "full, q and k normed, neck after of each": (
        "qk_norm",
        {"backbone": {"tune": "full"}, "neck": "after", "heads": "modality"},
    ),
    "registers, common prompts from layer 1": (
        "registers",
        {"semantic": {"share": True, "first_layer": 1}, "missing": {"dropout": 0.3, "view": "both"}},
    ),
    "linear probe of two modalities, layer scale": (
        "dino",
        {**BARE, **NO_TEXT, "backbone": {"tune": "linear"}, "data": {"modalities": ["rgb", "tir"]}},
    ),
}


def trained(kind: str, settings: dict[str, Any]) -> DMPT:
    network = small_network(kind, depth=3, **settings).eval()
    redraw(network, seeded(3), 0.05)
    for name, value in network.named_buffers():  # batch norms have seen something
        if "running" in name:
            value.copy_(torch.rand(value.shape, generator=seeded(len(name))) + 0.5)
    return network


def exported(
    network: DMPT, path: Path, inputs: tuple[str, ...], fed: Input, modalities: tuple[str, ...] = ALL
) -> Exported:
    """Write it; the network is left as it is."""
    data = DataConfig(
        size=network.backbone.vit.patch_embed.img_size,
        mean=(0.5, 0.4, 0.45),
        std=(0.25, 0.2, 0.3),
        modalities=modalities,  # type: ignore[arg-type]
    )
    own, part = copy.deepcopy(network), shared_part(network)
    fold_lora(own.backbone)
    write_onnx(Graph(own, data, inputs, fed), data.size, path)
    table = None if part is None else part.standardisation().numpy()
    found = Exported("a" * 64, None, data, inputs, fed, "fp32", "person", "", 0.0, table)  # type: ignore[arg-type]
    write(path.read_bytes(), found, path)
    return found


def reference(network: DMPT) -> Encoder:
    own = copy.deepcopy(network)
    merge_lora(own.backbone)
    return Encoder(own)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_it_says_what_torch_says(name: str, tmp_path: Path) -> None:
    kind, settings = CASES[name]
    network, path = trained(kind, settings), tmp_path / "x.onnx"
    inputs = tuple(settings.get("data", {}).get("modalities", ALL))
    found = exported(network, path, inputs, "normalised", inputs)
    assert 0 < difference(found, load(path, None, "onnx").encode, reference(network), drawn(found)) < 1e-5
    assert b"site-packages" not in path.read_bytes()
    assert str(Path(dmpt.__file__).parent).encode() not in path.read_bytes()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "inputs", "fed"),
    [
        ("the paper", ALL, "uint8"),
        ("exchanges, shared part, learned tokens", ("tir",), "normalised"),
        ("updates of modalities alone beside prompts", ("nir",), "uint8"),
    ],
)
def test_other_forms_of_input_say_it_too(name: str, inputs: tuple[str, ...], fed: Input, tmp_path: Path) -> None:
    network, path = trained(*CASES[name]), tmp_path / "x.onnx"
    found = exported(network, path, inputs, fed)
    assert 0 < difference(found, load(path, None, "onnx").encode, reference(network), drawn(found)) < 1e-5
    openvino = pytest.importorskip("openvino")
    assert openvino is not None
    assert 0 < difference(found, load(path, "fp32", "openvino").encode, reference(network), drawn(found)) < LIMIT


def test_a_graph_that_says_something_else_is_refused() -> None:
    """Without prompts, say, as a first try at this once was."""
    network = trained(*CASES["the paper"])
    bare = copy.deepcopy(network)
    bare.prompts = None
    data = DataConfig(size=network.backbone.vit.patch_embed.img_size, mean=(0.5,) * 3, std=(0.2,) * 3)
    found = Exported("a" * 64, None, data, ALL, "normalised", "fp32", "vehicle", "", 0.0)  # type: ignore[arg-type]
    encode = Encoder(network)
    assert difference(found, encode_zeros(encode), encode, drawn(found)) < 1e-5
    with pytest.raises(UserError, match=r"differs from torch by 0\.\d+, more than 0.0001 \(a batch of 1.*nothing is"):
        difference(found, encode_zeros(Encoder(bare)), encode, drawn(found))
    with pytest.raises(UserError, match=r"differs from torch by nan.*without tir"):
        difference(found, careless(encode), encode, drawn(found))


def encode_zeros(encode: Encoder) -> Any:
    """Of absent modalities it sees zeros, as it does in the library."""
    return lambda images, present: encode(np.where(present[..., None, None, None], images, 0), present)


def careless(encode: Encoder) -> Any:
    """What is absent gets through, if only where it is no number."""

    def run(images: Any, present: Any) -> Any:
        found = encode_zeros(encode)(images, present)
        return replace(found, features=found.features + np.float32(0 * images.sum()))

    return run


def test_updates_of_modalities_are_small_products_or_three_maps_alike() -> None:
    """docs/export.md: products are chosen, for their size."""
    backbone = small_backbone(tune="lora", lora=LoraConfig("all", rank=3, rank_per_modality=2))
    redraw(backbone, seeded(1), 0.1)
    images = small_images(backbone).flatten(0, 1)
    expected = backbone(images)
    merged, folded = copy.deepcopy(backbone), copy.deepcopy(backbone)
    merge_lora(merged)
    fold_lora(folded)
    assert isinstance(merged.vit.blocks[0].attn.qkv, MapPerModality)
    assert isinstance(folded.vit.blocks[0].attn.qkv, ProductPerModality)
    assert error_of(merged(images), expected) < 1e-5
    assert error_of(folded(images), expected) < 1e-5
    assert error_of(folded(images[2:4], modalities=(1,)), expected[2:4]) < 1e-5
    sizes = [sum(p.numel() for p in own.parameters()) for own in (merged, folded)]
    assert sizes[0] > 1.5 * sizes[1]


def test_weights_beyond_one_file_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    network = trained(*CASES["the paper"])
    data = DataConfig(size=network.backbone.vit.patch_embed.img_size, mean=(0.5,) * 3, std=(0.2,) * 3)
    monkeypatch.setattr(graphs, "MOST", 1000)
    with pytest.raises(UserError, match=r"the model has 0.\d GB of weights, and a file of ONNX holds 2;"):
        write_onnx(Graph(network, data, ALL, "normalised"), data.size, tmp_path / "x.onnx")
    assert [*tmp_path.iterdir()] == []
