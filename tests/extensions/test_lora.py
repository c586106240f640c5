"""Low-rank updates: they start as the frozen tower, train alone, and come out as what they are merged into."""

import copy
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dmpt.adapter.folder import load
from dmpt.base.errors import UserError
from dmpt.embed.attention import attention
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.extensions.assemble import build_backbone
from dmpt.extensions.lora import LoRA, MapPerModality, _Product, add_lora, merge_lora
from dmpt.paper.parameters import count_parameters
from dmpt.settings.config import BackboneConfig, Config, LoraConfig
from dmpt.training.trainer import Trainer
from runs import adapter_gives_what_was_trained, dying, fit, same_state, settings, toy, with_
from small import (
    BARE,
    PRESENT,
    Small,
    error_of,
    redraw,
    seeded,
    small_backbone,
    small_images,
    small_model,
    small_network,
    through,
    train_steps,
    trains_all_that_is_to_be_trained,
)

WIDTH, BLOCKS = 32, 2
MAPS = {"qv": {"qkv"}, "attention": {"qkv", "proj"}, "mlp": {"fc1", "fc2"}, "all": {"qkv", "proj", "fc1", "fc2"}}
BOTH = {"rank": 3, "rank_per_modality": 2}
KINDS = {"shared": {"rank": 3}, "per modality": {"rank": 0, "rank_per_modality": 2}, "both": BOTH}
ROWS = {"query": slice(0, 5), "value": slice(10, 15)}

where = pytest.mark.parametrize("where", MAPS)
kinds = pytest.mark.parametrize("ranks", KINDS.values(), ids=KINDS)


def bare(tune: str = "lora", **lora: Any) -> Small:
    return small_model(backbone={"tune": tune}, lora={"rank": 3} | lora, text={"loss": "off"}, **BARE)


def drawn(**lora: Any) -> Small:
    """With updates that are far from zero."""
    model = bare(**lora)
    redraw(model.network.backbone, seeded(3), 0.3)
    return model


def loras(network: nn.Module) -> dict[str, LoRA]:
    return {name: module for name, module in network.named_modules() if isinstance(module, LoRA)}


def some_map(rank: int, own: int, rows: dict[str, slice] | None, scale: float = 0.7) -> LoRA:
    """Of 7 inputs and 15 outputs, in float64, every number drawn."""
    torch.manual_seed(0)
    lora = LoRA(nn.Linear(7, 15).requires_grad_(False), rank, own, scale, rows).double()
    redraw(lora, seeded(4), 1.0)
    return lora


def with_products(lora: LoRA, x: Tensor) -> Tensor:
    """W x + s B A x as two products beside the frozen one, for three groups: what ``_Product`` must equal."""
    found = []
    for m, own in enumerate(x.chunk(3)):
        y = F.linear(own, lora.frozen.weight, lora.frozen.bias)
        for name, rows in lora.rows.items():
            for update in (getattr(lora, name, None), lora.own[m][name] if len(lora.own) else None):  # type: ignore[index]
                if update is not None:
                    added = lora.scale * update.up(update.down(own))
                    y = y + F.pad(added, (rows.start, y.shape[-1] - rows.stop))
        found.append(y)
    return torch.cat(found)


# --- one map ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [None, ROWS])
@pytest.mark.parametrize(("rank", "own"), [(3, 0), (0, 2), (3, 2)])
def test_merge_in_forward_and_low_rank_in_backward_equals_two_products(
    rank: int, own: int, rows: dict[str, slice] | None
) -> None:
    lora = some_map(rank, own, rows)
    x = torch.randn(6, 4, 7, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    weight = torch.randn(6, 4, 15, dtype=torch.float64, generator=seeded(2))
    tensors = [x, *(p for p in lora.parameters() if p.requires_grad)]
    assert len(tensors) == 1 + 2 * len(lora.rows) * ((rank > 0) + 3 * (own > 0))
    found, expected = lora(x, (0, 1, 2)), with_products(lora, x)
    assert error_of(found, expected) < 1e-13
    gradients = [torch.autograd.grad((y * weight).sum(), tensors) for y in (found, expected)]
    assert all(error_of(one, other) < 1e-13 for one, other in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients[0])
    assert error_of(lora.merged()(x) if not own else lora.merged()(x, (0, 1, 2)), expected) < 1e-13
    assert type(lora.merged()) is (MapPerModality if own else nn.Linear)


@pytest.mark.parametrize("bias", [True, False])
def test_its_product_may_be_differentiated_twice(bias: bool) -> None:
    shapes = [(2, 3, 7), (2, 2, 7), (2, 15, 2)]
    x, down, up = (torch.randn(s, dtype=torch.float64, generator=seeded(5), requires_grad=True) for s in shapes)
    weight = torch.randn(15, 7, dtype=torch.float64, generator=seeded(6))
    b = torch.randn(15, dtype=torch.float64, generator=seeded(7)) if bias else None

    def product(x: Tensor, down: Tensor, up: Tensor) -> Any:
        return _Product.apply(x, weight, b, down, up)

    assert torch.autograd.gradcheck(product, (x, down, up))
    assert torch.autograd.gradgradcheck(product, (x, down, up))


def test_its_product_keeps_its_input_alone() -> None:
    """No activation as wide as the outputs, no gradient as large as the weight."""
    lora = some_map(3, 0, None)
    kept: list[Tensor] = []
    x = torch.randn(6, 4, 7, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        lora(x, (0, 1, 2)).sum().backward()
    large = [t for t in kept if t.numel() >= 6 * 4 * 7]
    assert len(large) == 1
    assert large[0].data_ptr() == x.data_ptr()
    assert lora.frozen.weight.grad is None


def test_it_starts_as_a_linear_map_does() -> None:
    """A uniform in ±1 / √inputs, B zero."""
    torch.manual_seed(0)
    lora = LoRA(nn.Linear(400, 90).requires_grad_(False), 50, 20)
    updates: Any = [lora.whole, *(own["whole"] for own in lora.own)]  # type: ignore[index]
    for update in updates:
        down = update.down.weight.detach()
        assert not update.up.weight.any()
        assert 0.95 / 20 < down.abs().max() <= 1 / 20
        assert down.std() == pytest.approx(1 / 20 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_any_of_the_modalities_get_their_own_updates(dtype: torch.dtype, bias: bool, inference: bool) -> None:
    lora = some_map(3, 2, None).to(dtype)
    if not bias:
        lora.frozen.bias = None
    x = torch.randn(3, 2, 4, 7, dtype=dtype, generator=seeded(1))
    bound = 1e-13 if dtype == torch.float64 else 1e-6
    with torch.inference_mode() if inference else torch.no_grad():
        whole = lora(x.flatten(0, 1), (0, 1, 2)).unflatten(0, (3, 2))
        for there in (own for count in (1, 2, 3) for own in itertools.combinations(range(3), count)):
            part, expected = x[list(there)].flatten(0, 1), whole[list(there)].flatten(0, 1)
            assert error_of(lora(part, there), expected) < bound
            assert error_of(lora.merged()(part, there), expected) < bound
        assert error_of(lora(x[0], (1,)), whole[0]) > 1e-2


def test_shapes_without_values() -> None:
    with FakeTensorMode():
        lora = LoRA(nn.Linear(7, 15).requires_grad_(False), 3, 2)
        y = lora(torch.empty(6, 4, 7, requires_grad=True), (0, 1, 2))
        assert y.shape == (6, 4, 15)
        y.sum().backward()
        assert lora.own[1]["whole"].up.weight.grad.shape == (15, 2)  # type: ignore[index]


# --- the tower --------------------------------------------------------------------------------------------------------


@where
@kinds
@torch.no_grad()
def test_it_starts_as_the_frozen_tower(where: str, ranks: dict[str, int]) -> None:
    frozen, tuned = bare("frozen").network, bare(where=where, **ranks).network
    images = small_images(frozen.backbone)
    assert error_of(tuned(images).features.x, frozen(images).features.x) < 1e-6


@where
@kinds
def test_its_updates_learn_and_the_tower_does_not(where: str, ranks: dict[str, int]) -> None:
    model = bare(where=where, **ranks)
    network = model.network
    assert {name.rsplit(".", 1)[-1] for name in loras(network)} == MAPS[where]
    own = {n for n in network.trained() if not n.startswith("heads.")}
    parts = 2 if where == "qv" else len(MAPS[where])
    updates = (LoraConfig(**ranks).rank > 0) + 3 * (LoraConfig(**ranks).rank_per_modality > 0)
    assert len(own) == 2 * parts * updates * BLOCKS
    trains_all_that_is_to_be_trained(model)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@where
@kinds
@torch.no_grad()
def test_it_is_the_tower_with_the_updates_in_its_weights(where: str, ranks: dict[str, int], scale: float) -> None:
    """Merged by hand, a tower for each modality; and ``merge_lora``, whose outputs are equal."""
    network = drawn(where=where, scale=scale, **ranks).network.double()
    images = small_images(network.backbone)
    towers = []
    for m in range(3):
        tower = small_backbone().double()
        for name, lora in loras(network.backbone).items():
            parts = (
                {"whole": slice(None)} if where != "qv" else {"query": slice(WIDTH), "value": slice(2 * WIDTH, None)}
            )
            for part, rows in parts.items():
                found = [getattr(lora, part, None), lora.own[m][part] if len(lora.own) else None]  # type: ignore[index]
                for update in filter(None, found):
                    tower.get_submodule(name).weight[rows] += scale * update.up.weight @ update.down.weight
        towers.append(tower(images[m]))
    expected = torch.stack(towers)
    own = network.backbone(images.flatten(0, 1)).view_as(expected)
    assert error_of(own, expected) < 1e-12
    assert error_of(own, small_backbone().double()(images.flatten(0, 1)).view_as(expected)) > 1e-3
    assert (error_of(own[0], network.backbone(images[0], modalities=(1,))) > 1e-3) is ("rank_per_modality" in ranks)
    merge_lora(network.backbone)
    assert not loras(network)
    assert error_of(network.backbone(images.flatten(0, 1)).view_as(expected), expected) < 1e-12


@pytest.mark.parametrize("scale", [1.0, 0.5])
@where
def test_lora_is_pefts(where: str, scale: float) -> None:
    """Forward, gradients and merge of an independent implementation; shared updates, which is all that it has."""
    import peft  # a dependency of the tests: an oracle that is skipped proves nothing

    network = drawn(where=where, scale=scale).network
    rank = 6 if where == "qv" else 3
    targets = [f"{place}.{m}" for m in MAPS[where] for place in ("attn", "mlp")]
    config = peft.LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=targets, lora_dropout=0.0)
    theirs: Any = peft.get_peft_model(copy.deepcopy(small_backbone().vit), config)
    pairs = []
    for name, lora in loras(network.backbone).items():
        layer = theirs.get_submodule("base_model.model." + name.removeprefix("vit."))
        down, up = lora._factors(0)  # for qv, peft's joint update whose B has zeros in the keys' rows
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up / scale)
        pairs.append((lora, layer))
    assert len(pairs) == len(MAPS[where]) * BLOCKS
    images = small_images(network.backbone).flatten(0, 1)
    found, expected = network.backbone(images), before_norm(theirs.base_model.model, images)
    assert error_of(found, expected) < 1e-5
    for tokens in (found, expected):
        tokens.pow(2).sum().backward()
    for lora, layer in pairs:
        own = torch.cat([getattr(lora, part).down.weight.grad for part in lora.rows])
        assert error_of(own, layer.lora_A["default"].weight.grad) < 1e-4
        merged: Any = lora.merged()
        assert error_of(merged.weight, layer.get_base_layer().weight + layer.get_delta_weight("default")) < 1e-5


def before_norm(vit: Any, images: Tensor) -> Tensor:
    """The tokens of timm's own forward pass before its final norm."""
    seen: list[Tensor] = []
    with vit.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        vit.forward_features(images)
    return seen[-1]


@kinds
@pytest.mark.parametrize("merge", [True, False])
def test_where_tokens_look_without_prompts(ranks: dict[str, int], merge: bool) -> None:
    """What a page about a run of the advised preset shows: the last block has no prompts to project."""
    network = drawn(where="all", **ranks).network.double().eval()
    if merge:
        merge_lora(network.backbone)
    images = small_images(network.backbone)
    tokens, looked = attention(network, images)
    assert error_of(tokens, through(network.backbone, images)) < 1e-12
    assert error_of(looked.sum(-1), torch.ones(looked.shape[:-1])) < 1e-12


@pytest.mark.parametrize(("first", "begins"), [(0, 0), (1, 1), ("third", 0), ("middle", 1)])
def test_updates_begin_at_a_layer(first: Any, begins: int) -> None:
    network = drawn(where="all", first_layer=first, **BOTH).network
    assert {int(name.split(".")[3]) for name in loras(network)} == set(range(begins, BLOCKS))
    entering: dict[int, Tensor] = {}
    images = small_images(network.backbone).flatten(0, 1)
    network.backbone(images, watch=entering.__setitem__)
    assert [tokens.requires_grad for tokens in entering.values()] == [layer > begins for layer in range(BLOCKS)]


def test_updates_behind_the_last_layer() -> None:
    with pytest.raises(UserError, match="first_layer is 2, but the tower has 2 layers, counted from 0; set it to at "):
        build_backbone(
            Config(backbone=BackboneConfig(tune="lora"), lora=LoraConfig(first_layer=2)), small_backbone().vit
        )


@pytest.mark.parametrize("gated", [SwiGLU, GluMlp])
@pytest.mark.parametrize("ranks", [KINDS["shared"], BOTH], ids=["shared", "both"])
def test_gated_mlps_are_updated_too(gated: Any, ranks: dict[str, int]) -> None:
    backbone = small_backbone("dino")
    torch.manual_seed(0)
    for block in backbone.vit.blocks:
        block.mlp = gated(WIDTH, 24).requires_grad_(False)
    images = small_images(backbone).flatten(0, 1)
    plain = backbone(images)
    expected = backbone.vit.norm_pre(backbone.vit._pos_embed(backbone.vit.patch_embed(images)))
    for block in backbone.vit.blocks:
        expected = block(expected)
    assert error_of(plain, expected) < 1e-5
    add_lora(backbone, LoraConfig(where="mlp", **ranks), 0)
    entering = {"fc1_g", "fc1_x"} if gated is SwiGLU else {"fc1"}
    assert {name.rsplit(".", 1)[-1] for name in loras(backbone)} == {"fc2"} | entering
    assert error_of(backbone(images), plain) < 1e-5
    redraw(backbone, seeded(3), 0.3)
    updated = backbone(images)
    assert error_of(updated, plain) > 1e-3
    merge_lora(backbone)
    assert error_of(backbone(images), updated) < 1e-5


# --- with everything else ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["prefix", "token"])
@where
def test_lora_takes_prompts_too(form: str, where: str) -> None:
    """Prefixes see the updated values; both forms agree, baked prompts too."""
    lora = {"where": where, **BOTH}
    one, other = (small_network(backbone={"tune": "lora"}, lora=lora, prompts=p).double() for p in ("prefix", "token"))
    for network in (one, other):
        redraw(network, seeded(3), 0.1)
    images = small_images(one.backbone)
    expected = other(images).features.x
    assert error_of(one(images).features.x, expected) < 1e-10
    with torch.no_grad():
        assert error_of(one(images, baked=one.bake()).features.x, expected) < 1e-10
        merge_lora(one.backbone)
        assert error_of(one(images, baked=one.bake()).features.x, expected) < 1e-10
    assert "prompts.semantic.tokens" in train_steps(small_model(backbone={"tune": "lora"}, lora=lora, prompts=form))


@kinds
@torch.no_grad()
def test_absent_modalities_are_not_read(ranks: dict[str, int]) -> None:
    network = small_network(backbone={"tune": "lora"}, lora={"where": "all", **ranks}, missing={"dropout": 0.3}).eval()
    redraw(network, seeded(3), 0.1)
    images = small_images(network.backbone, batch=6).masked_fill(~PRESENT[..., None, None, None], torch.nan)
    found = network(images, PRESENT).features.x
    for sample, m in itertools.product(range(6), range(3)):
        if PRESENT[m, sample]:
            alone = network(images[:, sample : sample + 1], PRESENT[:, sample : sample + 1]).features.x[m, 0]
            assert error_of(found[m, sample], alone) < 1e-5
    merge_lora(network.backbone)
    assert error_of(network(images, PRESENT).features.x, found) < 1e-5


def test_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for on in (False, True):
        model = small_model(backbone={"tune": "lora", "checkpoint": on}, lora={"where": "all", **BOTH})
        redraw(model.network.backbone, seeded(3), 0.3)
        model.network(small_images(model.network.backbone)).features.x.pow(2).sum().backward()
        gradients.append({n: p.grad for n, p in model.network.trained().items() if p.grad is not None})
    assert any("own" in name for name in gradients[0])
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@kinds
def test_updates_stay_in_float32_beside_half_precision_weights(ranks: dict[str, int]) -> None:
    network = drawn(where="all", **ranks).network
    images = small_images(network.backbone)
    exact = network(images).features.x
    before = {n: p.detach().clone() for n, p in network.trained().items()}
    network.backbone.keep_in(torch.bfloat16)
    assert all(torch.equal(p, before[n]) for n, p in network.trained().items())
    frozen = [lora.frozen.weight.dtype for lora in loras(network).values()]
    assert set(frozen) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        found = network(images).features.x
        found.sum().backward()
    assert 0 < error_of(found, exact) < 0.1
    gradients = [p.grad for n, p in network.trained().items() if not n.startswith("heads.")]
    assert {None if g is None else g.dtype for g in gradients} == {torch.float32}


# --- runs and adapters ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [{"rank": 2}, {"where": "all", "rank": 2, "rank_per_modality": 1, "scale": 0.5}])
def test_an_adapter_gives_the_trained_features(tmp_path: Path, lora: dict[str, Any]) -> None:
    config = with_(settings(toy(tmp_path / "data"), epochs=1), **BARE, backbone={"tune": "lora"}, lora=lora)
    adapter_gives_what_was_trained(config, tmp_path / "run")
    merged, unmerged = (load(tmp_path / "run" / "last", merge=merge)[0] for merge in (True, False))
    assert not loras(merged)
    assert loras(unmerged)
    images = small_images(merged.backbone, batch=3)
    with torch.no_grad():
        assert error_of(merged.embed(images), unmerged.embed(images)) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lora_with_prompts_is_evaluated_in_the_precision_asked_for(tmp_path: Path, precision: Any) -> None:
    config = settings(toy(tmp_path / "data"), epochs=1, precision="bf16")
    fit(with_(config, backbone={"tune": "lora"}, lora={"rank": 2}), tmp_path / "run")
    as_tokens = tmp_path / "tokens"
    shutil.copytree(tmp_path / "run" / "last", as_tokens)
    card = json.loads((as_tokens / "config.json").read_text())
    card["config"]["prompts"] = "token"
    (as_tokens / "config.json").write_text(json.dumps(card))
    root = str(tmp_path / "data")  # which an adapter that left its run does not know
    found = [
        evaluate(place, Conditions(root=root, precision=precision)).metrics.mAP
        for place in (tmp_path / "run", as_tokens)
    ]
    assert found[0] == pytest.approx(found[1], abs=0.01 if precision == "fp32" else 5)


def test_missing_distilled_averaged_interrupted_and_resumed_is_unbroken(tmp_path: Path) -> None:
    config = with_(
        settings(toy(tmp_path / "data"), epochs=2, save_every=1, ema=0.9),
        backbone={"tune": "lora"},
        lora={"where": "all", **BOTH},
        missing={"dropout": 0.4, "view": "both"},
    )
    fit(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(config, tmp_path / "broken"), 3).fit()
    fit(config, tmp_path / "broken", resume=True)
    assert same_state(tmp_path / "whole", tmp_path / "broken")
    names = load_file(tmp_path / "broken" / "state.safetensors").keys()
    assert {name.split(".")[0] for name in names if ".fc1.own.2." in name} >= {"ema", "adam"}


def test_what_is_trained_is_counted_by_kind() -> None:
    """Of a ViT-B/16: 16 D r a block for r in every map, three times for what is per modality."""
    config = Config(backbone=BackboneConfig(tune="lora"), lora=LoraConfig("all", 16, 8, first_layer=3))
    found = {c["name"]: c["count"] for c in count_parameters(config, 171)["components"] if c["trained"]}
    assert found["low-rank updates, shared"] == 9 * 16 * 768 * 16
    assert found["low-rank updates of each modality"] == 3 * 9 * 16 * 768 * 8


def test_an_adapter_of_before_the_lora_section(tmp_path: Path) -> None:
    """Its card has ``backbone.lora_rank``, its tensors the names of today."""
    config = with_(settings(toy(tmp_path / "data"), epochs=1), **BARE, backbone={"tune": "lora"}, lora={"rank": 2})
    fit(config, tmp_path / "run")
    path = tmp_path / "run" / "last" / "config.json"
    expected = load(path.parent)[0]
    card = json.loads(path.read_text())
    del card["config"]["lora"]
    card["config"]["backbone"]["lora_rank"] = 2
    path.write_text(json.dumps(card))
    network, read = load(path.parent)
    assert read.config == load(path.parent)[1].config
    assert read.config.lora == LoraConfig(rank=2)
    images = small_images(network.backbone)
    with torch.no_grad():
        assert torch.equal(network.embed(images), expected.embed(images))
    names = {name for name in load(path.parent, merge=False)[0].trained() if ".qkv." in name}
    assert "backbone.vit.blocks.0.attn.qkv.query.down.weight" in names
