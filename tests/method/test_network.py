"""The whole network: the tower's own features without prompts, the order of its parts, and what exists in it."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clip_files
from dmpt.base.errors import UserError
from dmpt.method.backbone import Backbone
from dmpt.method.bind import PromptIBind
from dmpt.method.heads import concatenate
from dmpt.method.losses import objective
from dmpt.method.network import DMPT
from dmpt.settings.config import BackboneConfig
from dmpt.towers.image import build_vit
from small import (
    KINDS,
    TEXT_WIDTH,
    WORD_WIDTH,
    error_of,
    redraw,
    seeded,
    small_backbone,
    small_config,
    small_images,
    small_network,
    small_targets,
)

WIDTH, IDS = 32, 4
PLAIN: dict[str, Any] = {"semantic": {"length": 0}, "modality": {"length": 0}, "bind": {"depth": 0}}
NO_TEXT: dict[str, Any] = {"text": {"loss": "off"}}


def redrawn(kind: str = "clip", **settings: Any) -> DMPT:
    network = small_network(kind, **settings)
    redraw(network, seeded(6))
    return network.double()


def label(value: object) -> str:
    """A test's name that does not depend on the order of a set."""
    return str(sorted(value)) if isinstance(value, set) else str(value)


def names(network: DMPT) -> set[str]:
    """Of all that is not the tower's."""
    return {name for name in network.state_dict() if not name.startswith("backbone.")}


# --- the tower's own features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prefix", "token"])
@pytest.mark.parametrize("norm", ["tower", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_prompts_and_interaction_features_are_the_towers_own(kind: str, norm: str, form: str) -> None:
    network = redrawn(kind, heads="paper", prompts=form, backbone={"norm": norm}, **PLAIN)
    images = small_images(network.backbone)
    output = network(images)
    assert network.projection is not None
    assert output.projected is not None
    assert output.z is not None
    for modality, stream in enumerate(images):
        own = network.backbone.vit.forward_features(stream)[:, 0]
        assert error_of(output.features[modality], own) < 1e-13
        assert error_of(output.projected[modality], own @ network.projection.weight.T) < 1e-13
        assert error_of(output.z[modality], own @ network.projection.weight.T) < 1e-13


@torch.no_grad()
def test_without_prompts_and_interaction_projections_are_open_clips(tmp_path: Path) -> None:
    model = clip_files.clip()
    path = clip_files.save(model, tmp_path, "pt")
    vit, info = build_vit(clip_files.backbone(path), clip_files.SIZE)
    network = DMPT(small_config(heads="paper", **PLAIN), Backbone(vit, info), IDS, None)
    images = torch.randn(3, 2, 3, *clip_files.SIZE, generator=seeded())
    output = network(images)
    assert output.projected is not None
    for modality, stream in enumerate(images):
        assert error_of(output.projected[modality], model.encode_image(stream)) < 1e-5


def test_prompts_alone_change_the_features() -> None:
    plain, prompted = redrawn(**PLAIN), redrawn(bind={"depth": 0})
    images = small_images(plain.backbone)
    assert error_of(prompted(images).features, plain(images).features) > 1e-3


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", ["before", "after"])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("kind", ["clip", "registers"])
@torch.no_grad()
def test_the_order_is_blocks_then_bind_then_norm(kind: str, k: int, z: str) -> None:
    network = redrawn(kind, bind={"depth": k}, modality={"length": 2}, text={"z": z}, heads="paper")
    backbone, images = network.backbone, small_images(network.backbone)
    if network.bind is not None:
        redraw(network.bind, seeded(7), std=0.3)
    assert network.prompts is not None
    assert network.projection is not None
    tokens = backbone(images, network.prompts(), "token", keep_prompts=True)
    before = after = tokens[:, :, 0]
    if network.bind is not None:
        start = {"clip": 1, "registers": 5}[kind] + 2
        after = network.bind(tokens, slice(start, start + 5))
        assert error_of(after, before) > 1e-3
    output = network(images)
    assert output.projected is not None
    assert output.z is not None
    assert error_of(output.features, backbone.vit.norm(after)) < 1e-12
    assert error_of(output.projected, network.projection(backbone.vit.norm(after))) < 1e-12
    expected = network.projection(backbone.vit.norm(before if z == "before" else after))
    assert error_of(output.z, expected) < 1e-12


@torch.no_grad()
def test_an_absent_modality_changes_nothing_of_the_others() -> None:
    network = redrawn()
    assert network.bind is not None
    redraw(network.bind, seeded(7), std=0.3)
    images = small_images(network.backbone)
    present = torch.tensor([[True, True], [True, True], [True, False]])
    other = images.clone()
    other[2, 1] = 0
    one, two = network(images, present).features, network(other, present).features
    assert torch.equal(one[:2], two[:2])
    assert not torch.equal(network(images).features[:2, 1], one[:2, 1])
    assert error_of(network(images).features[:, 0], one[:, 0]) < 1e-12


@torch.no_grad()
def test_the_test_feature_is_the_normalised_concatenation_before_bn() -> None:
    network = redrawn().eval()
    images = small_images(network.backbone)
    features, embedded = network(images).features, network.embed(images)
    assert embedded.shape == (2, 3 * WIDTH)
    for b in range(2):
        joined = torch.cat([features[0, b], features[1, b], features[2, b]])
        assert error_of(embedded[b], joined / joined.square().sum().sqrt()) < 1e-14
    assert torch.equal(embedded, F.normalize(concatenate(features), dim=-1))


# --- heads ------------------------------------------------------------------------------------------------------------

SINGLE = {"rgb": WIDTH, "nir": WIDTH, "tir": WIDTH}
CONCAT = {"concat": 3 * WIDTH}
NECKS = {
    "concat": CONCAT,
    "modality": SINGLE,
    "concat+modality": CONCAT | SINGLE,
    "paper": CONCAT | SINGLE | {"projected": 3 * TEXT_WIDTH},
}


@pytest.mark.parametrize("setting", NECKS)
def test_heads_are_those_of_the_setting(setting: str) -> None:
    network = redrawn(heads=setting).train()
    assert {name: neck.norm.num_features for name, neck in network.heads.necks.items()} == NECKS[setting]
    output = network(small_images(network.backbone, batch=5))
    answers = network.heads(output.features, output.projected)
    features = dict(zip(SINGLE, output.features, strict=True)) | {"concat": torch.cat(list(output.features), dim=-1)}
    if setting == "paper":
        assert output.projected is not None
        features["projected"] = torch.cat(list(output.projected), dim=-1)
    else:
        assert output.projected is None
    assert set(answers) == set(NECKS[setting])
    for name, (feature, logits) in answers.items():
        assert torch.equal(feature, features[name])  # the triplet loss sees it before batch normalisation
        neck: Any = network.heads.necks[name]
        deviation = feature.var(dim=0, unbiased=False).add(neck.norm.eps).sqrt()
        normed = (feature - feature.mean(dim=0)) / deviation * neck.norm.weight
        assert error_of(logits, normed @ neck.classifier.weight.T) < 1e-12
        assert logits.shape == (5, IDS)


def test_batch_norms_bias_is_frozen_at_zero_and_classifiers_have_none() -> None:
    network = small_network(heads="paper")
    for name, neck in network.heads.necks.items():
        assert not neck.norm.bias.requires_grad
        assert not neck.norm.bias.any()
        assert neck.classifier.bias is None
        assert f"heads.necks.{name}.norm.weight" in network.trained()
        assert f"heads.necks.{name}.norm.bias" not in network.trained()


# --- what exists ------------------------------------------------------------------------------------------------------

EXIST: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"prompts.semantic", "prompts.modality", "bind", "projection", "heads"}),
    ({"semantic": {"length": 0}, "bind": {"depth": 0}}, {"prompts.modality", "projection", "heads"}),
    ({"modality": {"length": 0}}, {"prompts.semantic", "bind", "projection", "heads"}),
    ({"bind": {"depth": 0}}, {"prompts.semantic", "prompts.modality", "projection", "heads"}),
    (NO_TEXT, {"prompts.semantic", "prompts.modality", "bind", "heads"}),
    (NO_TEXT | {"heads": "paper"}, {"prompts.semantic", "prompts.modality", "bind", "projection", "heads"}),
    (PLAIN, {"projection", "heads"}),
    (PLAIN | NO_TEXT, {"heads"}),
    (PLAIN | NO_TEXT | {"bind": {"depth": 1, "external": False}}, {"bind", "heads"}),
]


@pytest.mark.parametrize(("settings", "expected"), EXIST, ids=label)
@pytest.mark.parametrize("kind", ["clip", "imagenet"])
def test_what_is_switched_off_does_not_exist(kind: str, settings: dict[str, Any], expected: set[str]) -> None:
    network = small_network(kind, **settings)
    parts = {".".join(name.split(".")[: 2 if name.startswith("prompts") else 1]) for name in names(network)}
    assert parts == expected
    trained = expected - {"projection"} if kind == "clip" else expected  # CLIP's own projection is frozen
    assert {part for part in expected if any(n.startswith(part + ".") for n in network.trained())} == trained
    output = network(small_images(network.backbone))
    assert (output.z is not None) is (network.config.text.loss != "off")


@pytest.mark.parametrize("depth", [1, 2])
def test_external_interaction_exists_only_when_on(depth: int) -> None:
    on, off = (small_network(bind={"depth": depth, "external": external}) for external in (True, False))
    assert names(off) < names(on)
    assert all(".external." in name for name in names(on) - names(off))
    assert {name.split(".")[2] for name in names(on) if name.startswith("bind.layers.")} == {
        str(i) for i in range(depth)
    }


def test_names_of_the_shipped_layout() -> None:
    """They are the adapter's file format."""
    linear, single = ("weight", "bias"), ("0", "1", "2")
    expected = {"prompts.semantic.tokens", "prompts.modality.words", "projection.weight"}
    expected |= {f"prompts.modality.map.{layer}.{part}" for layer, part in product(range(2), linear)}
    expected |= {
        f"bind.layers.0.external.{name}.{m}.{part}" for name, m, part in product(("to_bind", "query"), single, linear)
    }
    expected |= {f"bind.layers.0.external.key.{part}" for part in linear}
    expected |= {
        f"bind.layers.0.internal.{m}.{name}.{part}"
        for m, name, part in product(single, ("norm", "qkv", "proj"), linear)
    }
    for neck in ("concat", "rgb", "nir", "tir"):
        expected |= {f"heads.necks.{neck}.classifier.weight"}
        expected |= {f"heads.necks.{neck}.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
        expected |= {f"heads.necks.{neck}.norm.num_batches_tracked"}
    assert names(small_network()) == expected


@pytest.mark.parametrize(
    ("settings", "text"), [({"heads": "paper"}, "off"), ({}, "modality"), ({}, "literal")], ids=str
)
def test_a_tower_without_projection_is_refused_where_one_is_needed(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=r"vit_base_patch16_224\.augreg_in21k has no image projection.*set backbone"):
        small_network("imagenet", text={"loss": text}, backbone={"projection": "tower"}, **settings)
    small_network("imagenet", text={"loss": "off"}, backbone={"projection": "tower"})


def test_one_copy_of_the_tower_serves_three_streams() -> None:
    backbone = small_backbone()
    own = {id(p) for p in backbone.parameters()}
    network = DMPT(small_config(modality={"length": 0}), backbone, IDS, None)
    assert network.backbone is backbone
    assert {id(p) for n, p in network.named_parameters() if n.startswith("backbone.")} == own
    assert not own & {id(p) for n, p in network.named_parameters() if not n.startswith("backbone.")}
    assert sum(n.endswith("pos_embed") for n in network.state_dict()) == 1
    seen: list[Tensor] = []
    backbone.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = small_images(backbone)
    network(images)
    assert len(seen) == 1
    assert torch.equal(seen[0], images.flatten(0, 1))


# --- training ---------------------------------------------------------------------------------------------------------


def train_steps(network: DMPT, steps: int) -> set[str]:
    """Names of the tensors that had a gradient in some step."""
    network.train()
    trained = network.trained()
    optimizer = torch.optim.Adam(trained.values(), lr=1e-3, weight_decay=1e-4)
    labels, targets, reached = torch.tensor([0, 0, 2, 2]), small_targets(), set()
    for step in range(steps):
        output = network(small_images(network.backbone, batch=4, seed=step))
        heads = network.heads(output.features, output.projected)
        terms = objective(network.config, output, heads, labels, targets)
        assert list(terms) == ["ce", "triplet", "centre", "text"]
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        reached |= {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    return reached


@pytest.mark.parametrize("form", ["prefix", "token"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", ["clip", "imagenet", "registers"])
def test_every_trained_tensor_learns_within_three_steps(kind: str, k: int, form: str) -> None:
    """From the real initial values: a zero-initialised layer must not cut off what stands before it for good."""
    network = small_network(kind, bind={"depth": k}, heads="paper", prompts=form)
    assert ("projection.weight" in network.trained()) is (kind != "clip")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert train_steps(network, 3) == set(network.trained())
    for name, value in network.state_dict().items():
        moved = name in network.trained() or "running" in name or "num_batches" in name
        assert torch.equal(value, before[name]) is not moved, name


def test_the_first_step_already_reaches_all_but_what_stands_before_the_zero_start() -> None:
    network = small_network(heads="paper")
    late = set(network.trained()) - train_steps(network, 1)
    assert all(name.startswith("bind.") and ".proj." not in name for name in late)


def test_shared_and_learned_controls_learn_too() -> None:
    network = small_network(semantic={"share": True}, modality={"length": 3, "source": "learned"}, heads="paper")
    assert network.get_parameter("prompts.semantic.tokens").shape == (2, 1, 5, WIDTH)
    assert network.get_parameter("prompts.modality.words").shape == (3, 3, WORD_WIDTH)
    assert train_steps(network, 3) == set(network.trained())


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "imagenet"])
def test_own_state_is_what_the_pretrained_file_does_not_hold(kind: str) -> None:
    network = small_network(kind, heads="paper")
    own, trained = network.own_state(), network.trained()
    assert set(trained) <= set(own)
    rest = set(own) - set(trained)
    assert all("running" in name or "num_batches" in name or name == "prompts.modality.words" for name in rest)
    assert not any(name.startswith("backbone.") for name in own)
    assert ("projection.weight" in own) is (kind != "clip")


@torch.no_grad()
def test_own_state_restores_the_network() -> None:
    one, other = redrawn(), small_network().double()
    images = small_images(one.backbone)
    output = one.train()(images)
    one.heads(output.features, output.projected)  # moves batch norm's statistics
    assert one.get_buffer("heads.necks.rgb.norm.running_mean").any()
    other.load_own_state(one.own_state(), "here")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert torch.equal(one.eval().embed(images), other.eval().embed(images))


def test_a_tower_that_is_trained_belongs_to_its_own_state() -> None:
    network = small_network(backbone={"tune": "full"})
    assert {n for n in network.state_dict() if n.startswith("backbone.")} <= set(network.own_state())


def without(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key: value for key, value in tensors.items() if key != name}


def test_loading_is_strict() -> None:
    network = small_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    own = {name: torch.full_like(value, 7) for name, value in network.own_state().items()}
    name = "prompts.semantic.tokens"
    bad = {
        f"lacks tensor {name}": without(own, name),
        "lacks tensor prompts.modality.words": without(own, "prompts.modality.words"),
        "lacks tensor heads.necks.rgb.norm.running_mean": without(own, "heads.necks.rgb.norm.running_mean"),
        "holds an unknown tensor other": own | {"other": torch.zeros(1)},
        "holds an unknown tensor backbone.vit.cls_token": own | {"backbone.vit.cls_token": torch.zeros(1, 1, WIDTH)},
        rf"{name} has shape \(2, 3, 4, 32\), the model wants \(2, 3, 5, 32\)": own | {name: own[name][:, :, :4]},
    }
    for message, tensors in bad.items():
        with pytest.raises(UserError, match=f"^the-file:? {message}"):
            network.load_own_state(tensors, "the-file")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.load_own_state(own, "the-file")
    assert all(torch.equal(value, own[key]) for key, value in network.own_state().items())


@pytest.mark.parametrize(
    "changes",
    [{"bind": {"depth": 2}}, {"semantic": {"share": True}}, {"heads": "paper"}, {"bind": {"external": False}}],
)
def test_an_adapter_of_other_settings_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="belongs to a model with other settings"):
        small_network().load_own_state(small_network(**changes).own_state(), "the-file")


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "trained"), [("concat+modality", 17_630_976), ("paper", 17_895_168)])
def test_trained_parameters_of_the_papers_setting(heads: Any, trained: int) -> None:
    config = replace(small_config(heads=heads), semantic=small_config(semantic={"length": 32}).semantic)
    vit, info = build_vit(BackboneConfig(), (256, 128), load=False)
    with torch.device("meta"):
        network = DMPT(config, Backbone(vit, info), 171, torch.empty(3, 1, 512))

    def count(module: nn.Module | None) -> int:
        assert module is not None
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    assert count(network) == sum(p.numel() for p in network.trained().values()) == trained
    assert network.prompts is not None
    assert count(network.prompts.semantic) == 884_736
    assert count(network.prompts.modality) == 4_727_808
    assert isinstance(network.bind, PromptIBind)
    assert count(network.bind) == 4_134_144 + 7_087_104 + 4_608
    three_towers = 3 * (sum(p.numel() for p in network.backbone.parameters()) + info.projection.numel())
    assert heads != "paper" or round(100 * trained / (three_towers + trained), 2) == 6.48
