"""The whole network: the tower's own features without prompts, the order of its parts, and its state."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

import clip_files
from dmpt.base.errors import UserError
from dmpt.extensions.assemble import build_network
from dmpt.method.backbone import Backbone
from dmpt.method.bind import PromptIBind
from dmpt.method.modalities import Features
from dmpt.method.network import DMPT, Output
from dmpt.method.prompts import Prompts, SemanticPrompts
from dmpt.towers.image import build_vit
from small import (
    BARE,
    KINDS,
    LABELS,
    PRESENT,
    WORD_WIDTH,
    Small,
    error_of,
    interaction_layer,
    redraw,
    redrawn,
    seeded,
    small_backbone,
    small_config,
    small_images,
    small_model,
    small_network,
    through,
    train_steps,
    trains_all_that_is_to_be_trained,
)

WIDTH, IDS = 32, 4


# --- the tower's own features -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prefix", "token"])
@pytest.mark.parametrize("norm", ["tower", "plain"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_prompts_and_interaction_features_are_the_towers_own(kind: str, norm: str, form: str) -> None:
    network = redrawn(kind, heads="paper", prompts=form, backbone={"norm": norm}, **BARE)
    images = small_images(network.backbone)
    output = network(images)
    assert network.projection is not None
    assert output.projected is not None
    assert output.z is not None
    for modality, stream in enumerate(images):
        own = network.backbone.vit.forward_features(stream)[:, 0]
        assert error_of(output.features.x[modality], own) < 1e-13
        assert error_of(output.projected.x[modality], own @ network.projection.weight.T) < 1e-13
        assert error_of(output.z.x[modality], own @ network.projection.weight.T) < 1e-13


@torch.no_grad()
def test_without_prompts_and_interaction_projections_are_open_clips(tmp_path: Path) -> None:
    model = clip_files.clip()
    path = clip_files.save(model, tmp_path, "pt")
    vit, info = build_vit(clip_files.backbone(path), clip_files.SIZE)
    network, _ = build_network(small_config(heads="paper", **BARE), Backbone(vit), info, IDS, None)
    images = torch.randn(3, 2, 3, *clip_files.SIZE, generator=seeded())
    output = network(images)
    assert output.projected is not None
    for modality, stream in enumerate(images):
        assert error_of(output.projected.x[modality], model.encode_image(stream)) < 1e-5


def test_prompts_alone_change_the_features() -> None:
    plain, prompted = redrawn(**BARE), redrawn(bind={"depth": 0})
    images = small_images(plain.backbone)
    assert error_of(prompted(images).features.x, plain(images).features.x) > 1e-3


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
    tokens = through(backbone, images, network.prompts(), "token", keep_prompts=True)
    before = after = tokens[:, :, 0]
    if network.bind is not None:
        start = {"clip": 1, "registers": 5}[kind] + 2
        after, _ = network.bind(Features(tokens), slice(start, start + 5))
        assert error_of(after, before) > 1e-3
    output = network(images)
    assert output.projected is not None
    assert output.z is not None
    assert error_of(output.features.x, backbone.vit.norm(after)) < 1e-12
    assert error_of(output.projected.x, network.projection(backbone.vit.norm(after))) < 1e-12
    expected = network.projection(backbone.vit.norm(before if z == "before" else after))
    assert error_of(output.z.x, expected) < 1e-12


@torch.no_grad()
def test_an_absent_modality_changes_nothing_of_the_others() -> None:
    network = redrawn()
    assert network.bind is not None
    redraw(network.bind, seeded(7), std=0.3)
    images = small_images(network.backbone)
    present = torch.tensor([[True, True], [True, True], [True, False]])
    other = images.clone()
    other[2, 1] = 0
    one, two = network(images, present).features.x, network(other, present).features.x
    assert torch.equal(one[:2], two[:2])
    whole = network(images).features.x
    assert not torch.equal(whole[:2, 1], one[:2, 1])
    assert error_of(whole[:, 0], one[:, 0]) < 1e-12


@torch.no_grad()
def test_the_test_feature_is_the_normalised_concatenation_before_bn() -> None:
    network = redrawn().eval()
    images = small_images(network.backbone)
    features, embedded = network(images).features.x, network.embed(images)
    assert embedded.shape == (2, 3 * WIDTH)
    for b in range(2):
        joined = torch.cat([features[0, b], features[1, b], features[2, b]])
        assert error_of(embedded[b], joined / joined.square().sum().sqrt()) < 1e-14
    assert torch.equal(embedded, F.normalize(features.transpose(0, 1).flatten(1), dim=-1))


# --- samples that lack modalities -------------------------------------------------------------------------------------

Stepped = tuple[Output, dict[str, Tensor], dict[str, Tensor]]


def stretched(**sections: Any) -> Small:
    model = small_model(ids=IDS, **{"missing": {"dropout": 0.4}, **sections})
    redraw(model.network.double(), seeded(5), std=0.2)
    return model


def step(model: Small, images: Tensor, present: Tensor | None) -> Stepped:
    """Output, losses and gradients of one training step."""
    network = model.network.train()
    network.zero_grad()
    output = network(images, present)
    terms = model.objective()(output, LABELS)
    torch.stack(list(terms.values())).sum().backward()
    return output, terms, {n: p.grad.clone() for n, p in network.trained().items() if p.grad is not None}


@pytest.mark.parametrize("form", ["prefix", "token"])
@pytest.mark.parametrize("sections", [{}, {"heads": "paper", "text": {"z": "after"}}, {"bind": {"depth": 0}}])
def test_nothing_reads_an_absent_image(form: str, sections: dict[str, Any]) -> None:
    model = stretched(prompts=form, **sections)
    network = model.network
    images = small_images(network.backbone, batch=6)
    poisoned = images.masked_fill(~PRESENT[..., None, None, None], torch.nan)
    (one, terms, gradients), (two, other, poisoned_gradients) = (
        step(model, given, PRESENT) for given in (images, poisoned)
    )
    assert set(terms) == {"ce", "metric", "centre", "text", "shared"}
    assert torch.equal(one.features.x, two.features.x)
    assert torch.equal(one.also["shared"], two.also["shared"])
    assert terms == other
    assert gradients.keys() == poisoned_gradients.keys() == network.trained().keys()
    assert all(torch.equal(gradients[n], poisoned_gradients[n]) for n in gradients)
    assert all(g.isfinite().all() for g in gradients.values())
    with torch.no_grad():
        embedded = network.eval().embed(poisoned, PRESENT, network.bake())
    assert embedded.isfinite().all()
    assert not embedded.view(6, 3, -1)[~PRESENT.T].any()
    torch.testing.assert_close(embedded.square().sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_all_present_is_no_mask_and_a_sample_does_not_depend_on_its_batch() -> None:
    model = stretched()
    network = model.network
    images = small_images(network.backbone, batch=6)
    one, terms, gradients = step(model, images, None)
    two, other, masked_gradients = step(model, images, torch.ones(3, 6, dtype=torch.bool))
    assert error_of(two.features.x, one.features.x) < 1e-12
    assert error_of(two.also["shared"], one.also["shared"]) < 1e-12
    assert {n: t.item() for n, t in terms.items()} == pytest.approx({n: t.item() for n, t in other.items()})
    for name, gradient in gradients.items():
        torch.testing.assert_close(masked_gradients[name], gradient, rtol=1e-8, atol=1e-10, msg=name)
    with torch.no_grad():
        whole = network.eval()(images, PRESENT)
        for b in range(6):
            alone = network(images[:, b : b + 1], PRESENT[:, b : b + 1])
            assert error_of(alone.features.x[:, 0], whole.features.x[:, b]) < 1e-12
            assert error_of(alone.also["shared"][0], whole.also["shared"][b]) < 1e-12


def test_absent_images_are_not_computed() -> None:
    network = stretched().network
    seen: list[int] = []
    network.backbone.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    network(small_images(network.backbone, batch=6), PRESENT)
    assert seen == PRESENT.sum(dim=1).tolist()
    seen.clear()
    lone = PRESENT.clone()
    lone[2] = False
    network(small_images(network.backbone, batch=6), lone)
    assert len(seen) == 2


@pytest.mark.parametrize(
    "sections", [{}, {"missing": {"dropout": 0.4, "absent": "learned"}}, {"bind": {"depth": 2}}], ids=str
)
def test_whole_and_subset_from_one_pass_are_those_of_two(sections: dict[str, Any]) -> None:
    network = stretched(**sections).network.eval()
    images = small_images(network.backbone, batch=6)
    passes: list[int] = []
    network.backbone.vit.patch_embed.register_forward_pre_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        tokens = network.tokens(images)
        whole, subset = network.read(tokens), network.read(tokens, PRESENT)
        assert passes == [1]
        alone, left = network(images), network(images, PRESENT)
    assert subset.features.present is PRESENT
    for one, other in ((whole, alone), (subset, left)):
        assert one.z is not None
        assert other.z is not None
        assert error_of(one.features.x, other.features.x) < 1e-12
        assert error_of(one.z.existing(), other.z.existing()) < 1e-12
        assert error_of(one.also["shared"], other.also["shared"]) < 1e-12


@pytest.mark.parametrize(
    "sections", [{}, {"missing": {"dropout": 0.4, "absent": "learned"}}, {"missing": {"dropout": 0.4}}], ids=str
)
def test_nothing_is_left_on_the_cpu_where_the_network_is_on_a_gpu(sections: dict[str, Any]) -> None:
    """Tensors without content stand for those on a GPU."""
    config = {"bind": {"depth": 1, "layers": [0]}, "modality": {"source": "learned"}, "text": {"loss": "off"}}
    network = small_network(**config, **sections).eval()
    shapes = {n: t.shape for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_floating_point()}
    shape = small_images(network.backbone, batch=PRESENT.shape[1]).shape
    with FakeTensorMode():
        tensors = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        images = torch.empty(shape, device="cuda")
        present = torch.ones(PRESENT.shape, dtype=torch.bool, device="cuda")
        found = functional_call(network, tensors, (images, present))
        assert found.features.x.device.type == "cuda"


@pytest.mark.parametrize("form", ["prefix", "token"])
@torch.no_grad()
def test_the_dense_form_gives_the_same_features(form: str) -> None:
    network = stretched(prompts=form).network.eval()
    images = small_images(network.backbone, batch=6).masked_fill(~PRESENT[..., None, None, None], torch.nan)
    sparse = network(images, PRESENT)
    passes: list[int] = []
    network.backbone.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    network.dense = True
    dense = network(images, PRESENT)
    assert passes == [3 * 6]  # absent images too, as black ones
    assert dense.features.x.isfinite().all()
    assert error_of(dense.features.x, sparse.features.x) < 1e-12
    assert error_of(dense.also["shared"], sparse.also["shared"]) < 1e-12
    assert error_of(network(images, PRESENT, network.bake()).features.x, sparse.features.x) < 1e-12


# --- one tower --------------------------------------------------------------------------------------------------------


def test_one_copy_of_the_tower_serves_three_streams() -> None:
    backbone = small_backbone()
    own = {id(p) for p in backbone.parameters()}
    prompts, bind = Prompts(SemanticPrompts(2, 5, WIDTH, 16), None, 2), PromptIBind([interaction_layer(WIDTH, 4)])
    network = DMPT(backbone, prompts, bind, semantic=slice(1, 6))
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


@pytest.mark.parametrize("form", ["prefix", "token"])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("kind", ["clip", "imagenet", "registers"])
def test_every_trained_tensor_learns_within_three_steps(kind: str, k: int, form: str) -> None:
    """From the real initial values: a zero-initialised layer must not cut off what stands before it for good."""
    model = small_model(kind, bind={"depth": k}, heads="paper", prompts=form)
    network = model.network
    assert [term.name for term in model.objective().terms] == ["ce", "metric", "centre", "text"]
    assert ("projection.weight" in network.trained()) is (kind != "clip")
    trains_all_that_is_to_be_trained(model)


def test_the_first_step_already_reaches_all_but_what_stands_before_the_zero_start() -> None:
    model = small_model(heads="paper")
    late = set(model.network.trained()) - train_steps(model, 1)
    assert all(name.startswith("bind.") and ".proj." not in name for name in late)


def test_shared_and_learned_controls_learn_too() -> None:
    model = small_model(semantic={"share": True}, modality={"length": 3, "source": "learned"}, heads="paper")
    network = model.network
    assert network.get_parameter("prompts.semantic.tokens").shape == (2, 1, 5, WIDTH)
    assert network.get_parameter("prompts.modality.words").shape == (3, 3, WORD_WIDTH)
    assert train_steps(model) == set(network.trained())


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
    one.heads(output, torch.tensor([0, 1]))  # moves batch norm's statistics
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


# --- baked prefixes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_baking_changes_no_bit_and_is_not_remembered(kind: str, k: int) -> None:
    network = redrawn(kind, bind={"depth": k}).eval()
    images = small_images(network.backbone)
    expected = network(images).features.x
    baked = network.bake()
    assert torch.equal(network(images, baked=baked).features.x, expected)
    assert torch.equal(network.embed(images, baked=baked), network.embed(images))
    redraw(network, seeded(8))
    assert not torch.equal(network(images).features.x, expected)


def test_tokens_are_not_baked() -> None:
    """They are made anew in the precision of the pass that they enter."""
    assert redrawn(prompts="token").bake() is None


@torch.no_grad()
def test_what_is_baked_is_used() -> None:
    """Not computed again: other prompts come in no other way."""
    network = redrawn().eval()
    images = small_images(network.backbone)
    baked, before = network.bake(), network(images).features.x
    assert baked is not None
    baked = [tuple(x.clone() for x in own) if isinstance(own, tuple) else own.clone() for own in baked]
    assert network.prompts is not None
    redraw(network.prompts, seeded(9))
    assert not torch.equal(network(images).features.x, before)
    assert torch.equal(network(images, baked=baked).features.x, before)


@torch.no_grad()
def test_prompts_are_baked_in_the_networks_precision() -> None:
    network = small_network(text={"loss": "off"}).eval()
    redraw(network, seeded(6), 0.2)
    network.double()
    images = small_images(network.backbone)
    features = network(images).features.x
    assert error_of(features, network(images, baked=network.bake()).features.x) < 1e-12


@pytest.mark.parametrize("baked", [False, True])
@pytest.mark.parametrize("dense", [False, True])
@torch.no_grad()
def test_prompts_of_each_image_hold_where_samples_lack_modalities(dense: bool, baked: bool) -> None:
    """Many adapters in one batch: G = 3 B sets of prompts."""
    network = redrawn().eval()
    count = PRESENT.shape[1]
    images = small_images(network.backbone, count)
    own = [
        torch.randn(3 * count, p.shape[1], p.shape[2], generator=seeded(i)).to(p)
        for i, p in enumerate(prompts_of(network))
    ]
    given: Any = own
    if baked:
        last = network.backbone.depth - 1
        given = [p if i == last else network.backbone.prefix(i, p) for i, p in enumerate(own)]
    network.dense = dense
    found = network(images, PRESENT, given).features.x
    for b in range(count):
        alone = [p.view(3, count, *p.shape[1:])[:, b] for p in own]
        one = network(images[:, b : b + 1], PRESENT[:, b : b + 1], alone).features.x
        assert error_of(found[:, b : b + 1], one) < 1e-12


def prompts_of(network: DMPT) -> list[Tensor]:
    assert network.prompts is not None
    found = [p for p in network.prompts() if p is not None]
    assert len(found) == network.backbone.depth
    return found
