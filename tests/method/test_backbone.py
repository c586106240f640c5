"""The tower: a literal transcription of Eq. 7-10, the two forms of prompts, and what may stand in a map's place."""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import Eva
from torch import Tensor, nn

from dmpt.method.backbone import Backbone, LayerPrompts
from dmpt.method.bind import PromptIBind
from dmpt.method.network import DMPT
from dmpt.method.prompts import Prompts, SemanticPrompts
from dmpt.towers.maps import MAPS, Grouped
from small import (
    KINDS,
    PRESENT,
    WORD_WIDTH,
    error_of,
    interaction_layer,
    redraw,
    redrawn,
    seeded,
    small_backbone,
    small_images,
    small_network,
    through,
)

FORMS = ("prefix", "token")
WIDTH = 32
OFF: dict[str, Any] = {"bind": {"depth": 0}, "heads": "paper"}


# --- Eq. 7-10 ---------------------------------------------------------------------------------------------------------


def literal_prompts(network: DMPT, layer: int, modality: int) -> list[Tensor]:
    """[M_p, S_p] of one layer and modality, token by token."""
    assert network.prompts is not None
    tokens = []
    if (mapped := network.prompts.modality) is not None:
        linear: Any = mapped.map[layer]
        tokens += [linear.weight @ word + linear.bias for word in mapped.words[modality]]
    if (own := network.prompts.semantic) is not None:
        tokens += list(own.tokens[layer, 0 if own.tokens.shape[1] == 1 else modality])
    return tokens


def literal_tokens(network: DMPT, images: Tensor, keep: bool) -> Tensor:
    """Timm's own modules one after another; what a block makes of prompts is dropped, at the end only if not kept."""
    vit = network.backbone.vit
    streams = []
    for modality, stream in enumerate(images):
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(stream)))
        lead = vit.num_prefix_tokens
        for layer, block in enumerate(vit.blocks):
            prompts = literal_prompts(network, layer, modality)
            inserted = [prompt.expand(len(stream), 1, -1) for prompt in prompts]
            x = block(torch.cat([x[:, :lead], *inserted, x[:, lead:]], dim=1))
            if layer < len(vit.blocks) - 1 or not keep:
                x = torch.cat([x[:, :lead], x[:, lead + len(prompts) :]], dim=1)
        streams.append(x)
    return torch.stack(streams)


LENGTHS = [(1, 0), (0, 1), (5, 1), (5, 3)]  # (S, M)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_both_forms_are_equations_7_to_10(kind: str, form: Any, keep: bool, lengths: tuple[int, int]) -> None:
    for depth, share in product((1, 3), (False, True) if lengths[0] else (False,)):
        semantic, modality = {"length": lengths[0], "share": share}, {"length": lengths[1]}
        network = redrawn(kind, depth, semantic=semantic, modality=modality, **OFF)
        assert network.prompts is not None
        images = small_images(network.backbone)
        expected = literal_tokens(network, images, keep)
        prompts = network.prompts()
        assert error_of(through(network.backbone, images, prompts, form, keep), expected) < 1e-13
        plain = through(network.backbone, images)
        assert (
            (through(network.backbone, images, prompts, form)[:, :, 0] - plain[:, :, 0])
            .abs()
            .amax(dim=-1)
            .gt(1e-4)
            .all()
        )


def baked_of(backbone: Backbone, prompts: Sequence[Tensor | None], keep: bool) -> list[LayerPrompts]:
    """Their keys and values, but in a last layer whose prompts are kept."""
    full = {backbone.depth - 1} if keep else set()
    layers = enumerate(prompts)
    return [own if own is None or i in full else backbone.prefix(i, own) for i, own in layers]


@pytest.mark.parametrize("keep", [False, True])
def test_baked_prefixes_are_the_same_numbers(keep: bool) -> None:
    network = redrawn()
    assert network.prompts is not None
    images, prompts = small_images(network.backbone).flatten(0, 1), network.prompts()
    baked = network.backbone(images, baked_of(network.backbone, prompts, keep), "prefix", keep)
    assert torch.equal(baked, network.backbone(images, prompts, "prefix", keep))


@pytest.mark.parametrize("kind", ["clip", "registers"])
@torch.no_grad()
def test_prompts_enter_behind_cls_and_registers_and_after_norm_pre(kind: str) -> None:
    network = redrawn(kind, depth=1)
    backbone = network.backbone
    assert network.prompts is not None
    (prompts,), images = network.prompts(), small_images(backbone)
    seen: list[Tensor] = []
    backbone.vit.blocks[0].norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    backbone(images.flatten(0, 1), [prompts], "token")
    lead, count = {"clip": 1, "registers": 5}[kind], prompts.shape[1]
    entering, embedded = (x.unflatten(0, (3, 2)) for x in (seen[0], backbone.embed(images.flatten(0, 1))))
    assert torch.equal(entering[:, :, :lead], embedded[:, :, :lead])
    assert torch.equal(entering[:, :, lead : lead + count], prompts[:, None].expand(-1, images.shape[1], -1, -1))
    assert torch.equal(entering[:, :, lead + count :], embedded[:, :, lead:])
    kept = through(backbone, images, [prompts], "token", keep_prompts=True)
    dropped = torch.cat([kept[:, :, :lead], kept[:, :, lead + count :]], dim=2)
    assert torch.equal(dropped, through(backbone, images, [prompts], "token"))


# --- prefix = token ---------------------------------------------------------------------------------------------------


def switches() -> list[dict[str, Any]]:
    """Every combination that means something."""
    semantics = [{"length": 0}] + [{"length": s, "share": share} for s in (1, 5) for share in (False, True)]
    modalities = [{"length": 0}]
    modalities += [
        {"length": m, "source": source, "width": WORD_WIDTH} for m in (1, 3) for source in ("learned", "random")
    ]
    binds = [{"depth": 0}] + [{"depth": k, "external": external} for k in (1, 2) for external in (True, False)]
    return [
        {"semantic": semantic, "modality": modality, "bind": bind}
        for semantic, modality, bind in product(semantics, modalities, binds)
        if semantic["length"] or not bind.get("external")
    ]


def outputs_and_gradients(network: DMPT) -> dict[str, Tensor]:
    """All that the network says, and the gradients that a random linear function of it gives every trained tensor."""
    network.zero_grad()
    output = network(small_images(network.backbone))
    assert output.projected is not None
    assert output.z is not None
    said = {"features": output.features.x, "projected": output.projected.x, "z": output.z.x}
    for name, seen in network.heads(output, torch.tensor([0, 1])).items():
        said[f"logits {name}"] = seen.logits
    generator = seeded(7)
    sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in said.values()).backward()
    gradients = {}
    for name, parameter in network.trained().items():
        assert parameter.grad is not None, name
        gradients[f"gradient {name}"] = parameter.grad.clone()
    return {name: value.detach() for name, value in said.items()} | gradients


def by_form(network: DMPT, form: Any) -> dict[str, Tensor]:
    network.form = form
    return outputs_and_gradients(network)


def assert_forms_agree(network: DMPT) -> None:
    """Within 1e-10 in float64 and 1e-5 in float32 of a tensor's largest value.

    At this spread the bind prompt's rows are nearly equal, and the gradient of W_m is made of their differences: in
    float32 it has two digits fewer.
    """
    token, prefix = by_form(network, "token"), by_form(network, "prefix")
    network.double()
    token64, prefix64 = by_form(network, "token"), by_form(network, "prefix")
    for name in token:
        assert error_of(prefix64[name], token64[name]) < 1e-10, name
        tolerance = 1e-4 if ".external.query." in name else 1e-5
        assert error_of(prefix[name], token[name]) < tolerance, name


CASES = [
    pytest.param(kind, settings, marks=[] if kind == "clip" else pytest.mark.long, id=f"{kind}-{settings}")
    for kind, settings in product(KINDS, switches())
]
DEPTHS = {"clip": 2, "imagenet": 1, "dino": 2, "registers": 3, "qk_norm": 2}


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_prefix_is_token_in_outputs_and_gradients(kind: str, settings: dict[str, Any]) -> None:
    assert_forms_agree(redrawn(kind, DEPTHS[kind], double=False, heads="paper", **settings).eval())


@pytest.mark.parametrize("depth", [1, 3, 4])
@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_prefix_is_token_at_every_depth(kind: str, k: int, depth: int) -> None:
    permuted = {"length": 3, "source": "permuted"}
    network = redrawn(kind, depth, double=False, heads="paper", bind={"depth": k}, modality=permuted)
    assert_forms_agree(network.eval())


@pytest.mark.parametrize("k", [0, 1])
def test_prefix_is_token_for_a_tower_that_is_trained(k: int) -> None:
    network = small_network(backbone={"tune": "full"}, bind={"depth": k}, heads="paper").eval()
    redraw(network.prompts, seeded(6))
    if network.bind is not None:
        redraw(network.bind, seeded(7))
    assert any(name.startswith("backbone.vit.patch_embed") for name in network.trained())
    assert_forms_agree(network)


# --- precision and training mode --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_keeps_trained_tensors_in_float32(kind: str, form: str) -> None:
    network = redrawn(kind, double=False, prompts=form, heads="paper")
    images = small_images(network.backbone)
    expected = network(images)
    network.backbone.keep_in(torch.bfloat16)
    for name, parameter in network.backbone.vit.named_parameters():
        assert parameter.dtype == (torch.float32 if name.startswith("norm.") else torch.bfloat16), name
    assert all(parameter.dtype == torch.float32 for parameter in network.trained().values())
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images)
    for name in ("features", "projected", "z"):
        value, reference = getattr(output, name).x, getattr(expected, name).x
        assert value.dtype == torch.float32
        assert error_of(value, reference) < 0.05
        assert nn.functional.cosine_similarity(value, reference, dim=-1).min() > 0.999
    output.features.x.square().sum().backward()
    for name, parameter in network.trained().items():
        if name.startswith(("prompts", "bind")):
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == torch.float32
            assert parameter.grad.isfinite().all()
            assert parameter.grad.any(), name


def modes(backbone: Backbone) -> set[bool]:
    return {module.training for module in backbone.modules()}


def test_a_frozen_tower_stays_in_evaluation_mode_and_gets_no_gradient() -> None:
    network = redrawn()
    network.train()
    assert modes(network.backbone) == {False}
    assert network.get_submodule("heads").training
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(small_images(network.backbone)).features.x.square().sum().backward()
    optimizer.step()
    for name, parameter in network.backbone.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None, name
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())
    assert not any(name.startswith("backbone") for name in network.trained())


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_tower_trains(kind: str) -> None:
    backbone = small_backbone(kind, tune="full")
    assert modes(backbone.train()) == {True}
    assert modes(backbone.eval()) == {False}
    network = small_network(kind, backbone={"tune": "full"}, semantic={"length": 0}, modality={"length": 0}, **OFF)
    weights = torch.randn(3, 2, 32, generator=seeded(9))
    (network(small_images(network.backbone)).features.x * weights).sum().backward()
    for name, parameter in network.backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    backbone.keep_in(torch.bfloat16)  # trained tensors stay in float32
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


# --- prompts of each image --------------------------------------------------------------------------------------------


def drawn_prompts(groups: int, depth: int = 2, length: int = 3, seed: int = 11) -> list[Tensor]:
    generator = seeded(seed)
    return [torch.randn(groups, length, WIDTH, generator=generator, dtype=torch.float64) for _ in range(depth)]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["clip", "registers"])
@torch.no_grad()
def test_each_image_may_have_prompts_of_its_own(kind: str, form: Any, keep: bool) -> None:
    backbone = small_backbone(kind).double()
    images, prompts = small_images(backbone).flatten(0, 1), drawn_prompts(6)
    together = backbone(images, prompts, form, keep)
    alone = [backbone(images[i : i + 1], [own[i : i + 1] for own in prompts], form, keep) for i in range(6)]
    assert error_of(together, torch.cat(alone)) < 1e-10
    shared = backbone(images, [own[::2] for own in prompts], form, keep)  # of two images each
    assert error_of(shared[::2], together[::2]) < 1e-10
    assert (shared - together)[1::2, 0].abs().amax(dim=-1).gt(1e-3).all()
    baked = backbone(images, baked_of(backbone, prompts, keep), "prefix", keep)
    assert error_of(baked, together) < 1e-10


# --- maps that are replaced -------------------------------------------------------------------------------------------


class Updated(nn.Module):
    """W x + B A x."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator):
        super().__init__()
        self.linear = linear
        self.down = nn.Parameter(torch.randn(2, linear.in_features, generator=generator) * 0.3)
        self.up = nn.Parameter(torch.randn(linear.out_features, 2, generator=generator) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.down.T @ self.up.T

    def merged(self) -> nn.Linear:
        """(W + B A) x."""
        linear = copy.deepcopy(self.linear)
        linear.weight += self.up @ self.down
        return linear


class UpdatedPerModality(Grouped):
    """Another update for each modality."""

    def __init__(self, linear: nn.Linear, generator: torch.Generator):
        super().__init__()
        self.own = nn.ModuleList(Updated(linear, generator) for _ in range(3))

    def forward(self, x: Tensor, modalities: tuple[int, ...]) -> Tensor:
        groups = x.unflatten(0, (len(modalities), -1))
        return torch.cat([self.own[m](group) for m, group in zip(modalities, groups, strict=True)])


def wrapped(kind: str, name: str, by: Any, first_layer: int = 0) -> Backbone:
    backbone = small_backbone(kind).double()
    generator = seeded(5)
    backbone.wrap(name, lambda linear: by(linear, generator).double(), first_layer)
    return backbone


def merged(backbone: Backbone, name: str, modality: int | None = None) -> Backbone:
    """A plain tower with the updates in its weights."""
    plain = copy.deepcopy(backbone)
    for block in plain.vit.blocks:
        place = getattr(block, MAPS[name])
        found = getattr(place, name)
        if not isinstance(found, nn.Linear):
            setattr(place, name, (found if modality is None else found.own[modality]).merged())
    assert not [m for m in plain.modules() if isinstance(m, Updated | UpdatedPerModality)]
    return plain


maps = pytest.mark.parametrize("name", ["qkv", "proj", "fc1", "fc2"])  # gated MLPs: tests/extensions/test_lora.py


@maps
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["clip", "registers", "qk_norm"])
@torch.no_grad()
def test_an_updated_map_is_the_merged_one(kind: str, form: Any, keep: bool, name: str) -> None:
    backbone = wrapped(kind, name, Updated)
    images, prompts = small_images(backbone), drawn_prompts(3)
    for own in (None, prompts):
        found = through(backbone, images, own, form, keep)
        assert error_of(found, through(merged(backbone, name), images, own, form, keep)) < 1e-12
        assert error_of(found, through(small_backbone(kind).double(), images, own, form, keep)) > 1e-3


@maps
@torch.no_grad()
def test_maps_are_replaced_from_a_layer_on(name: str) -> None:
    whole, late, none = (wrapped("clip", name, Updated, first) for first in (0, 1, 2))
    plain = small_backbone().double()
    images = small_images(plain).flatten(0, 1)
    assert [isinstance(getattr(getattr(b, MAPS[name]), name), Updated) for b in late.vit.blocks] == [False, True]
    entering: list[dict[int, Tensor]] = [{}, {}, {}]
    for backbone, seen in zip((whole, late, plain), entering, strict=True):
        backbone(images, watch=seen.__setitem__)
    assert torch.equal(entering[1][1], entering[2][1])
    assert error_of(entering[0][1], entering[2][1]) > 1e-3
    assert error_of(late(images), merged(late, name)(images)) < 1e-12
    assert error_of(late(images), plain(images)) > 1e-3
    assert torch.equal(none(images), plain(images))


@maps
def test_only_the_update_of_a_frozen_tower_is_trained(name: str) -> None:
    backbone = wrapped("clip", name, Updated)
    trained = {own for own, p in backbone.named_parameters() if p.requires_grad}
    places = [f"vit.blocks.{layer}.{MAPS[name]}.{name}" for layer in range(2)]
    assert trained == {f"{place}.{part}" for place in places for part in ("down", "up")}
    backbone.keep_in(torch.bfloat16)
    kept = {own: p.dtype for own, p in backbone.named_parameters() if own in trained}
    assert set(kept.values()) == {torch.float64}


@maps
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_map_of_each_modality_is_three_towers(form: Any, keep: bool, name: str) -> None:
    backbone = wrapped("registers", name, UpdatedPerModality)
    towers = [merged(backbone, name, m) for m in range(3)]
    images = small_images(backbone)
    for prompts in (None, drawn_prompts(3), drawn_prompts(6)):  # none, of a modality, of each image
        share = len(prompts[0]) // 3 if prompts else 0
        expected = torch.stack(
            [
                tower(images[m], prompts and [own[m * share : (m + 1) * share] for own in prompts], form, keep)
                for m, tower in enumerate(towers)
            ]
        )
        assert error_of(through(backbone, images, prompts, form, keep), expected) < 1e-12
        if prompts:
            baked = through(backbone, images, baked_of(backbone, prompts, keep), "prefix", keep)
            assert error_of(baked, expected) < 1e-12
    assert error_of(expected[0], towers[1](images[0], [own[:2] for own in prompts], form, keep)) > 1e-3


@maps
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_map_of_each_modality_where_samples_lack_some(form: Any, name: str) -> None:
    backbone = wrapped("registers", name, UpdatedPerModality)
    torch.manual_seed(3)
    prompts = Prompts(SemanticPrompts(2, 3, WIDTH, 14), None, 2)
    redraw(prompts, seeded(4), 0.5)
    network = DMPT(backbone, prompts.double(), PromptIBind([interaction_layer(WIDTH, 4)]), form=form).eval()
    images = small_images(backbone, batch=6).masked_fill(~PRESENT[..., None, None, None], torch.nan)
    sparse = network.tokens(images, PRESENT)
    for m in range(3):
        own = [p[m : m + 1] for p in prompts()]
        expected = merged(backbone, name, m)(images[m, PRESENT[m]], own, form, True)
        assert error_of(sparse[m, PRESENT[m]], expected) < 1e-12
    network.dense = True
    assert error_of(network.tokens(images, PRESENT)[PRESENT], sparse[PRESENT]) < 1e-12
    assert error_of(network.tokens(images, PRESENT, network.bake())[PRESENT], sparse[PRESENT]) < 1e-12
    network.dense = False
    assert error_of(network.tokens(images, PRESENT, network.bake())[PRESENT], sparse[PRESENT]) < 1e-12
    lone = torch.tensor([[False], [False], [True]])  # of one modality alone there is no group of another
    assert error_of(network.tokens(images[:, 3:4], lone)[2], sparse[2, 3:4]) < 1e-12


# --- activations computed again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["frozen", "full"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["clip", "registers"])
def test_checkpointing_changes_no_bit_and_saves_memory(kind: str, form: Any, tune: str) -> None:
    saved, found = [], []
    for checkpoint in (False, True):
        tower = small_backbone(kind, depth=3, tune=tune)
        backbone = Backbone(tower.vit, tower.frozen, checkpoint).train()
        images = small_images(backbone, batch=4).flatten(0, 1)
        prompts = [p.float().requires_grad_() for p in drawn_prompts(3, depth=3)]
        kept = dict[int, int]()

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            tokens = backbone(images, prompts, form, True)
            loss = tokens.square().sum()
        # What is computed again needs the tokens that enter each block, which no hook sees.
        saved.append(sum(kept.values()) + checkpoint * 3 * tokens.nbytes)
        loss.backward()
        gradients = [p.grad for p in (*prompts, *backbone.parameters()) if p.requires_grad]
        assert len(gradients) == 3 + (len(list(backbone.vit.parameters())) if tune == "full" else 0)
        found.append([tokens.detach(), *gradients])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)  # the final norm, which is not run here, has none
        assert one is None or torch.equal(one, other)
    assert saved[1] < saved[0] / 2


# --- rotary positions -------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Eva's gamma as timm's vision transformer has it."""

    def __init__(self, gamma: Tensor):
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def eva(rope: str, half: bool) -> Any:
    """A small tower like DINOv3's."""
    torch.manual_seed(0)
    shape = {"img_size": (48, 32), "patch_size": 16, "embed_dim": WIDTH, "depth": 2, "num_heads": 4, "num_classes": 0}
    positions = {"use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": rope, "rope_rotate_half": half}
    tower = Eva(**shape, **positions, num_reg_tokens=2, qkv_bias=False, init_values=1.0, global_pool="token")
    generator = seeded(3)
    with torch.no_grad():
        for value in tower.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * (0.3 if value.ndim > 1 else 0.1))
    return tower.double().eval()


def as_vit(tower: Any) -> Any:
    """The same under the names that ``Backbone`` reads."""
    vit = copy.deepcopy(tower)
    embed = vit._pos_embed
    vit._pos_embed = lambda x: embed(x)[0]
    for block in vit.blocks:
        block.ls1, block.ls2 = Scale(block.gamma_1), Scale(block.gamma_2)
    return vit


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("rope", "half"), [("dinov3", True), ("cat", False)])
@torch.no_grad()
def test_rotary_positions_turn_patches_and_nothing_else(rope: str, half: bool, keep: bool) -> None:
    own = eva(rope, half)
    angles = own.rope.get_embed()
    backbone = Backbone(as_vit(own), rotate=partial(apply_rot_embed_cat, emb=angles, half=half))
    images, prompts = small_images(backbone).flatten(0, 1), drawn_prompts(3)
    assert (backbone.leading, backbone.depth, backbone.width, backbone.attention_heads) == (3, 2, WIDTH, 4)

    expected = own.norm_pre(own._pos_embed(own.patch_embed(images))[0])
    for layer, block in enumerate(own.blocks):
        inserted = prompts[layer].repeat_interleave(2, dim=0)
        block.attn.num_prefix_tokens = 3 + 3  # which Eva does not turn
        expected = block(torch.cat([expected[:, :3], inserted, expected[:, 3:]], dim=1), rope=angles)
        if layer < 1 or not keep:
            expected = torch.cat([expected[:, :3], expected[:, 6:]], dim=1)
        block.attn.num_prefix_tokens = 3
    for form in FORMS:
        assert error_of(backbone(images, prompts, form, keep), expected) < 1e-12
    assert error_of(backbone(images, baked_of(backbone, prompts, keep), "prefix", keep), expected) < 1e-12

    norm, own.norm = own.norm, nn.Identity()
    assert not isinstance(norm, nn.Identity)
    plain = own.forward_features(images)
    assert error_of(backbone(images), plain) < 1e-12
    assert error_of(backbone.norm(backbone(images)), norm(plain)) < 1e-12
    assert error_of(Backbone(as_vit(own))(images), plain) > 1e-2  # without positions
