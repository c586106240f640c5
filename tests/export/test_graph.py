"""Every setting that trains exports, and the file says what torch says, whatever is missing."""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
import torch

import dmpt
from dmpt.adapter import folder
from dmpt.base.errors import UserError
from dmpt.data.images import resize
from dmpt.evaluation.conditions import Conditions
from dmpt.export import export
from dmpt.export import graph as graphs
from dmpt.export.graph import Graph, write_onnx
from dmpt.export.parity import LIMIT, LIMIT_INT8, difference, drawn, moved
from dmpt.extensions.lora import MapPerModality, ProductPerModality, fold_lora, merge_lora
from dmpt.extensions.shared import shared_part
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings, unit
from dmpt.runtime.exported import Exported, Input, load, write
from dmpt.runtime.torch import Encoder
from dmpt.settings.config import DataConfig, LoraConfig
from dmpt.settings.fitting import hints_of, is_section
from runs import fit, toy
from small import BARE, NO_TEXT, error_of, redraw, seeded, small_backbone, small_images, small_model, small_network

ALL = ("rgb", "nir", "tir")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "the paper": ("clip", {"heads": "paper"}),
    "tokens, cls+bind, neck after, plain norm": (
        "clip",
        {
            "backbone": {"norm": "plain"},
            "modality": {"source": "learned", "first_layer": 1},
            "prompts": "token",
            "feature": "cls+bind",
            "heads": "concat",
            "neck": "after",
            **NO_TEXT,
        },
    ),
    "exchanges, shared part, learned tokens": (
        "clip",
        {
            "modality": {"source": "attribute"},
            "bind": {"layers": [0]},
            "missing": {"dropout": 0.3, "shared": True, "absent": "learned"},
        },
    ),
    "advised": (
        "clip",
        {
            "backbone": {"tune": "lora"},
            "lora": {"where": "all", "rank": 3, "rank_per_modality": 2, "first_layer": "third"},
            "semantic": {"length": 0},
            "modality": {"length": 0},
            "bind": {"external": False, "rank": 4, "share": True},
            **NO_TEXT,
        },
    ),
    "updates of modalities alone beside prompts": (
        "clip",
        {
            "backbone": {"tune": "lora"},
            "lora": {"rank": 0, "rank_per_modality": 2, "scale": 3.0},
            "modality": {"source": "permuted"},
            "bind": {"depth": 2},
        },
    ),
    "updates of attention in every layer, prompts without bind": (
        "imagenet",
        {
            "backbone": {"tune": "lora", "checkpoint": True},
            "lora": {"where": "attention"},
            "semantic": {"first_layer": "middle"},
            "modality": {"source": "random"},
            "bind": {"depth": 0},
        },
    ),
    "updates of the MLP from the middle on": (
        "dino",
        {
            "backbone": {"tune": "lora"},
            "lora": {"where": "mlp", "rank_per_modality": 1, "first_layer": "middle"},
            "semantic": {"first_layer": "third"},
            "neck": "after",
        },
    ),
    "full, q and k normed, neck after of each": (
        "qk_norm",
        {
            "backbone": {"tune": "full"},
            "neck": "after",
            "heads": "modality",
            "missing": {"dropout": 0.3, "shared": False},
        },
    ),
    "registers, common prompts from layer 1": (
        "registers",
        {
            "semantic": {"share": True, "first_layer": 1},
            "missing": {"dropout": 0.3, "view": "both", "standardise": "cut"},
        },
    ),
    "linear probe of two modalities, layer scale": (
        "dino",
        {**BARE, **NO_TEXT, "backbone": {"tune": "linear"}, "data": {"modalities": ["rgb", "tir"]}},
    ),
}
ELSEWHERE = {
    "backbone.name": "kinds of towers above",
    "backbone.overrides": "the same",
    "backbone.weights": "test_a_run, as the next three",
    "backbone.grid": "",
    "backbone.blocks": "",
    "backbone.antialias": "",
    "semantic.init": "initial values, which are then trained",
}
"""Settings of a network that are not for this file, and why."""


def choices(hint: Any) -> set[Any]:
    """What a setting can be: choices, and of numbers and lists that there is one."""
    if get_origin(hint) is Literal:
        return {*get_args(hint)}
    if get_origin(hint) in (Union, UnionType):
        return {choice for part in get_args(hint) for choice in choices(part)}
    return {True, False} if hint is bool else {None} if hint is NoneType else {"some"}


def test_every_choice_of_every_setting_of_a_network_is_among_the_cases() -> None:
    """docs/export.md: every setting that trains exports."""
    configs = [small_model(kind, 3, **own).config for kind, own in CASES.values()]
    lacking = []
    for section in ("", "backbone", "lora", "semantic", "modality", "bind", "missing"):
        parts = [getattr(config, section) if section else config for config in configs]
        for name, hint in hints_of(type(parts[0])).items():
            key = f"{section}.{name}" if section else name
            if is_section(hint) or key in ELSEWHERE or key == "init":
                continue
            seen = {getattr(part, name) if not isinstance(getattr(part, name), tuple) else "some" for part in parts}
            wanted = choices(hint)
            lacking += [(key, choice) for choice in wanted - seen if choice != "some" or seen <= wanted]
    assert lacking == []


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
def test_a_run_of_averaged_weights_on_another_grid_and_fewer_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network is loaded once, for the file, for torch's numbers and for int8."""
    changes = {
        "data.root": str(toy(tmp_path / "data")),
        "data.size": [96, 48],
        "data.workers": 0,
        "backbone.blocks": 3,
        "backbone.antialias": False,
        "backbone.projection": "trained",
        "backbone.projection_dim": 128,
        "train.ema": 0.9,
        "train.epochs": 1,
        "train.ids": 4,
        "train.instances": 2,
    }
    config = dmpt.read_config("tiny", changes)
    run = fit(config, tmp_path / "run").out
    loaded, load_network = [], folder.network_of

    def counted(*given: Any, **own: Any) -> Any:
        loaded.append(1)
        return load_network(*given, **own)

    for module in (folder, export):
        monkeypatch.setattr(module, "network_of", counted)
    found = export.export(run, tmp_path / "x.onnx", Conditions(root=changes["data.root"]), int8=True)
    assert loaded == [1]
    assert 0 < found.found.parity < 1e-5
    assert found.found.data.size == (96, 48)
    assert found.found.cost is not None
    assert 0 < found.found.cost["moved"] < LIMIT_INT8


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


def facts_of(network: DMPT) -> Exported:
    data = DataConfig(size=network.backbone.vit.patch_embed.img_size, mean=(0.5,) * 3, std=(0.2,) * 3)
    return Exported("a" * 64, None, data, ALL, "normalised", "fp32", "vehicle", "", 0.0)  # type: ignore[arg-type]


def test_a_graph_that_says_something_else_is_refused() -> None:
    """Without prompts, say, as a first try at this once was."""
    network = trained(*CASES["the paper"])
    bare = copy.deepcopy(network)
    bare.prompts = None
    found, encode = facts_of(network), Encoder(network)
    assert difference(found, encode_zeros(encode), encode, drawn(found)) < 1e-5
    with pytest.raises(UserError, match=r"differs from torch by 0\.\d+, more than 0.0001 \(a batch of 1.*nothing is"):
        difference(found, encode_zeros(Encoder(bare)), encode, drawn(found))
    with pytest.raises(UserError, match=r"differs from torch by nan.*without tir"):
        difference(found, careless(encode), encode, drawn(found))


def test_a_graph_that_lost_its_shared_part_is_refused() -> None:
    network = trained(*CASES["exchanges, shared part, learned tokens"])
    found, encode = facts_of(network), Encoder(network)
    lost = changed(encode, lambda own: replace(own, shared=None))
    for check, said in ((difference, "differs from torch by nan"), (moved, "int8 moves a vector by inf")):
        assert check(found, encode_zeros(encode), encode, drawn(found)) < 1e-3
        for one, other in ((lost, encode), (encode_zeros(encode), lost)):
            with pytest.raises(UserError, match=said):
                check(found, one, other, drawn(found))


def test_int8_may_move_vectors_a_little_and_spoil_none() -> None:
    """The bound is a share of how far two samples lie apart: a cosine near 1 says nothing by itself."""
    network = trained(*CASES["the paper"])
    found, encode = facts_of(network), Encoder(network)
    samples, draw = drawn(found), np.random.default_rng(0)
    pixels = [[resize(np.ascontiguousarray(one[name]), found.data.size) for one in samples] for name in ALL]
    vectors = encode((np.array(pixels, np.float32) / 255 - 0.5) / 0.2, np.ones((3, len(samples)), np.bool_)).flat
    apart = np.median([np.linalg.norm(one - other) for one, other in combinations(vectors, 2)])

    def rough(share: float) -> Any:
        def add(own: Embeddings) -> Embeddings:
            noise = draw.normal(size=own.features.shape) * own.present[..., None]
            noise *= share * apart / np.linalg.norm(noise, axis=(1, 2), keepdims=True)
            return replace(own, features=unit((own.features + noise).reshape(len(own), -1)).reshape(noise.shape))

        return changed(encode, add)

    def absent(own: Embeddings) -> Embeddings:
        return replace(own, features=own.features + 1e-6 * ~own.present[..., None])

    assert moved(found, encode_zeros(encode), encode, samples) < 1e-3
    assert 0.05 < moved(found, rough(0.1), encode, samples) < 0.15
    spoilt = {
        r"by (0\.[5-9]|1)\d* of what two samples lie apart, more than 0.5 \(a batch of 1\)": rough(1.0),
        r"by inf .*\(a batch of 1\)": changed(encode, lambda own: replace(own, features=own.features * np.nan)),
        r"by inf of what .*\(a batch of 1\)": changed(encode, lambda own: replace(own, features=own.features * 1.01)),
        r"by inf .*without tir\); nothing is written; export without --int8": changed(encode, absent),
        r"by inf .*without tir\)": careless(encode),
    }
    for said, one in spoilt.items():
        with pytest.raises(UserError, match=f"int8 moves a vector {said}"):
            moved(found, one, encode, samples)


def changed(encode: Encoder, change: Callable[[Embeddings], Embeddings]) -> Any:
    """An encoder whose answers are changed."""
    return lambda images, present: change(encode_zeros(encode)(images, present))


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
