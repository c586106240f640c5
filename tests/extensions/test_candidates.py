"""Changes to the paper's design, each a setting that is off by default."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.adapter import folder as adapter
from dmpt.base.errors import UserError
from dmpt.evaluation.evaluate import evaluate, retrieve
from dmpt.extensions.ema import Average
from dmpt.extensions.prompts_from_data import start_from_data
from dmpt.method.bind import InternalInteraction, LowRankLinear, PromptIBind
from dmpt.method.heads import concatenate
from dmpt.method.network import test_feature as feature_of
from dmpt.paper.parameters import count_parameters
from dmpt.settings.config import BindConfig, Config
from dmpt.training.trainer import Trainer
from runs import fit, log, same_state, settings, toy, with_
from small import error_of, redraw, seeded, small_images, small_network, train_steps

WIDTH = 32
NO_TEXT: dict[str, Any] = {"text": {"loss": "off"}}
CANDIDATES: dict[str, dict[str, Any]] = {
    "rank": {"bind": {"rank": 4}},
    "share": {"bind": {"share": True}},
    "rank+share, k = 2": {"bind": {"rank": 4, "share": True, "depth": 2}},
    "cls+bind": {"feature": "cls+bind"},
    "cls+bind, paper's heads": {"feature": "cls+bind", "heads": "paper", "text": {"loss": "modality"}},
    "normalised": {"loss": {"metric": "normalised"}},
    "contrastive": {"loss": {"metric": "contrastive"}},
    "later": {"semantic": {"first_layer": 1}},
    "exchange at two depths": {"bind": {"layers": (0,)}},
    "all": {
        "bind": {"rank": 4, "share": True, "layers": (0,)},
        "feature": "cls+bind",
        "neck": "after",
        "loss": {"metric": "contrastive"},
        "modality": {"first_layer": 1},
    },
}


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_trained_tensor_learns_and_all_is_loaded_back(name: str) -> None:
    network = small_network(**NO_TEXT | CANDIDATES[name])
    assert train_steps(network) == set(network.trained())
    other = small_network(**NO_TEXT | CANDIDATES[name])
    other.load_own_state(network.own_state(), "here")
    images = small_images(network.backbone)
    with torch.no_grad():
        assert torch.equal(network.eval().embed(images), other.eval().embed(images))


@pytest.mark.parametrize("name", CANDIDATES)
def test_adapters_round_trip(name: str, tmp_path: Path) -> None:
    changes = {k: v for k, v in CANDIDATES[name].items() if k not in ("text", "heads")}
    flat = {k: v for k, v in changes.items() if isinstance(v, str)}
    config = with_(settings(toy(tmp_path / "data"), epochs=1), **{k: v for k, v in changes.items() if k not in flat})
    config = Config(**{**vars(config), **flat})
    trainer = fit(config, tmp_path / "run")
    network, _ = adapter.load(tmp_path / "run" / "last")
    images = torch.randn(3, 2, 3, 32, 16)
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), trainer.network.eval().embed(images))
    evaluate(tmp_path / "run", without="all")


# --- bind -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_low_rank_map_is_linear_with_a_thin_product() -> None:
    linear = LowRankLinear(8, 12, 3).double()
    x = torch.randn(2, 5, 8, generator=seeded()).double()
    assert linear.weight.shape == (12, 8)
    assert torch.linalg.matrix_rank(linear.weight) == 3
    assert error_of(linear(x), F.linear(x, linear.weight, linear.bias)) < 1e-14
    wide = LowRankLinear(400, 300, 50)  # as nn.Linear: U(-b, b) of variance 1 / (3 inputs)
    assert float(wide.weight.var()) == pytest.approx(1 / (3 * 400), rel=0.1)


@torch.no_grad()
def test_low_rank_attention_of_the_class_token_is_that_of_all() -> None:
    layer = InternalInteraction(8, 2, rank=3)
    redraw(layer, seeded(), 0.5)
    layer.double()
    x = torch.randn(2, 5, 8, generator=seeded(1)).double()
    assert error_of(layer(x, cls_only=True), layer(x)[:, :1]) < 1e-12


@torch.no_grad()
def test_shared_attention_is_one_layer_three_times() -> None:
    bind, full = PromptIBind(BindConfig(2, share=True), 8, 2), PromptIBind(BindConfig(2), 8, 2)
    redraw(bind, seeded(), 0.3)
    own = bind.state_dict()
    full.load_state_dict(
        {
            n: own[n if ".internal." not in n else ".".join([*n.split(".")[:3], "0", *n.split(".")[4:]])]
            for n in full.state_dict()
        }
    )
    tokens = torch.randn(3, 2, 7, 8, generator=seeded(1))
    assert error_of(bind(tokens, slice(2, 4)), full(tokens, slice(2, 4))) < 1e-6
    assert sum(".internal." in name for name in own) == sum(".internal." in n for n in full.state_dict()) // 3


@pytest.mark.parametrize("settings", [{"rank": 4}, {"share": True}, {"rank": 4, "share": True}], ids=str)
@torch.no_grad()
def test_the_start_is_the_identity_on_class_tokens(settings: dict[str, Any]) -> None:
    bind = PromptIBind(BindConfig(2, **settings), 8, 2)
    tokens = torch.randn(3, 2, 7, 8, generator=seeded(1))
    assert torch.equal(bind(tokens, slice(2, 4)), tokens[:, :, 0])


@pytest.mark.parametrize("modality", [0, 2])
@pytest.mark.parametrize("form", ["prefix", "token"])
@torch.no_grad()
def test_exchange_at_several_depths_is_the_transcription(form: str, modality: int) -> None:
    bind, begins = {"layers": (1, 2)}, {"length": 2, "first_layer": modality}
    network = small_network("registers", 4, bind=bind, modality=begins, prompts=form, **NO_TEXT)
    redraw(network, seeded(6), 0.2)
    network.double().eval()
    images, vit = small_images(network.backbone), network.backbone.vit
    prompts: Any = network.prompts
    own_bind: Any = network.bind
    x = [vit.norm_pre(vit._pos_embed(vit.patch_embed(stream))) for stream in images]
    lead = vit.num_prefix_tokens
    for layer, block in enumerate(vit.blocks):
        semantic = prompts.semantic.tokens[layer]
        for m in range(3):
            mapped = [prompts.modality.map[layer - modality](prompts.modality.words[m])] if layer >= modality else []
            own = torch.cat([*mapped, semantic[m]]).expand(2, -1, -1)
            x[m] = block(torch.cat([x[m][:, :lead], own, x[m][:, lead:]], dim=1))
        end = lead + own.shape[1]
        if layer in (1, 2):
            interaction = own_bind.between[str(layer)]
            enriched = interaction.external(torch.stack([tokens[:, end - 5 : end] for tokens in x]))
            for m in range(3):
                whole = torch.cat([x[m][:, : end - 5], enriched[m], x[m][:, end:]], dim=1)
                x[m] = torch.cat([interaction.internal[m](whole)[:, :1], x[m][:, 1:]], dim=1)
        if layer < 3:
            x = [torch.cat([tokens[:, :lead], tokens[:, end:]], dim=1) for tokens in x]
    cls = own_bind(torch.stack(x), slice(end - 5, end))
    features = network(images).features
    assert error_of(features, network.backbone.norm(cls)) < 1e-12
    network.bake()
    assert error_of(network(images).features, features) < 1e-12
    tokens, _ = network.backbone.attention(images, prompts(), network.exchanges(prompts()))
    assert error_of(tokens, torch.stack(x)) < 1e-12
    with_one_off = torch.stack(x)[:, :, 0] - network.backbone(images, prompts(), "prefix", True)[:, :, 0]
    assert with_one_off.abs().max() > 1e-3


@torch.no_grad()
def test_exchange_at_several_depths_leaves_absent_modalities_out() -> None:
    network = small_network("clip", 3, bind={"layers": (0, 1)}, **NO_TEXT)
    redraw(network, seeded(6), 0.2)
    network.double().eval()
    images = small_images(network.backbone, batch=3)
    present = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
    broken = images.masked_fill(~present[..., None, None, None], torch.nan)
    features = network(broken, present).features
    assert features.isfinite().all()
    assert error_of(features[:, :1], network(images[:, :1]).features) < 1e-12
    other = images.where(present[..., None, None, None], 7.0)
    assert torch.equal(network(other, present).features, features)
    assert error_of(features[0, 1:], network(images).features[0, 1:]) > 1e-4  # the absent would have said something


def test_counts_of_the_bind() -> None:
    """For CLIP ViT-B/16: linears D -> n D of rank r hold r (n + 1) D + n D instead of n (D + 1) D."""

    def counts(**bind: Any) -> dict[str, int]:
        return {c["name"]: c["count"] for c in count_parameters(with_(Config(), bind=bind), 171)["components"]}

    d, r = 768, 64
    low = counts(rank=r)
    assert low["bind: external interaction"] == 7 * (2 * r * d + d)
    assert low["bind: internal interaction SA"] == 3 * (r * 4 * d + 3 * d + r * 2 * d + d)
    assert counts(share=True)["bind: internal interaction SA"] == 7_087_104 // 3
    assert counts(layers=(5,))["bind: internal interaction SA"] == 2 * 7_087_104
    assert counts(share=True)["bind: LayerNorm of SA"] == 4_608 // 3


# --- feature and neck -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_cls_and_bind_is_the_class_token_beside_the_mean_enriched_prompt() -> None:
    network = small_network(feature="cls+bind", **NO_TEXT)
    redraw(network, seeded(6), 0.2)
    network.double()
    images = small_images(network.backbone)
    assert network.prompts is not None
    assert network.bind is not None
    tokens = network.backbone(images, network.prompts(), "token", True)
    layer: Any = network.bind.layers[0]
    enriched = layer.external(tokens[:, :, 2:7])
    tokens = torch.cat([tokens[:, :, :2], enriched, tokens[:, :, 7:]], dim=2)
    cls = torch.stack([attention(x)[:, 0] for attention, x in zip(layer.internal, tokens, strict=True)])
    features = network(images).features
    assert features.shape == (3, 2, 2 * WIDTH)
    assert error_of(features[..., :WIDTH], network.backbone.norm(cls)) < 1e-12
    assert error_of(features[..., WIDTH:], network.backbone.norm(enriched.mean(dim=2))) < 1e-12


@torch.no_grad()
def test_cls_and_bind_leaves_absent_slots_empty() -> None:
    network = small_network(feature="cls+bind", **NO_TEXT).eval()
    images = small_images(network.backbone, batch=3)
    present = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
    features = network(images.masked_fill(~present[..., None, None, None], torch.nan), present).features
    assert features.isfinite().all()
    assert (features.abs().sum(dim=-1) > 0).equal(present)


@pytest.mark.parametrize("heads", ["concat+modality", "concat", "modality"])
@pytest.mark.parametrize("modalities", [["rgb", "nir", "tir"], ["rgb", "tir"]], ids=str)
@torch.no_grad()
def test_neck_after_is_batch_norm_then_length_1(heads: str, modalities: list[str]) -> None:
    network = small_network(heads=heads, neck="after", data={"modalities": modalities}, **NO_TEXT)
    generator = seeded(4)
    for name, tensor in network.heads.named_buffers():
        if "running" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    redraw(network.heads, generator, 1.0)
    network.double().eval()
    images = small_images(network.backbone, batch=3)
    present = torch.ones(3, 3, dtype=torch.bool)
    present[1] = "nir" in modalities
    present[0, 2] = False
    output = network(images, present)
    assert output.normed is not None
    used = [i for i, m in enumerate(("rgb", "nir", "tir")) if m in modalities]
    expected = torch.zeros_like(output.features)
    for place, m in enumerate(used):
        neck: Any = network.heads.necks["concat" if "concat" in heads else modalities[place]]
        part = slice(place * WIDTH, (place + 1) * WIDTH) if "concat" in heads else slice(None)
        norm = neck.norm
        mean, variance = norm.running_mean[part], norm.running_var[part]
        expected[m] = (output.features[m] - mean) / (variance + norm.eps).sqrt() * norm.weight[part] + norm.bias[part]
    expected *= present[..., None]
    assert error_of(output.normed, expected) < 1e-12
    assert error_of(feature_of(output), F.normalize(concatenate(expected), dim=-1)) < 1e-12
    assert network.train()(images, present).normed is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feature": "cls+bind", "bind": {"depth": 0}}, "feature cls.bind takes semantic prompts after the exchange"),
        ({"feature": "cls+bind", "bind": {"external": False}}, "feature cls.bind takes semantic prompts after"),
        ({"neck": "after", "missing": {"dropout": 0.3}}, "neck is after, but the shared part"),
        ({"backbone": {"tune": "linear"}}, "backbone.tune linear .* bind.depth is 1; set it to 0"),
        ({"backbone": {"lora_rank": 0}}, "backbone.lora_rank is 0; it must be at least 1"),
        ({"bind": {"rank": 0}}, "bind.rank is 0; it must be at least 1"),
        ({"bind": {"layers": (1, 0)}}, r"bind.layers is \[1, 0\]; name layers once and in order"),
        (
            {"bind": {"layers": (0,)}, "semantic": {"first_layer": 1}},
            r"bind.layers is \[0\], but prompts begin at layer 1; name layers from there on",
        ),
        ({"bind": {"layers": (0,), "depth": 0}}, r"bind.layers is \[0\], but there is no interaction"),
        ({"bind": {"layers": (1,)}}, r"bind.layers is \[1\], but the tower has 2 layers.*layers up to 0"),
        ({"train": {"average": 1.0}}, "train.average is 1.0; it must be at least 0 and below 1"),
        (
            {"semantic": {"init": "data", "length": 0}, "bind": {"depth": 0}},
            "semantic.init is data, but semantic.length is 0",
        ),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        small_network(**NO_TEXT | changes)


# --- prompts from data ------------------------------------------------------------------------------------------------


def rows_of(values: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in values.tolist()}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("share", [False, True])
@torch.no_grad()
def test_prompts_start_as_patch_tokens_of_their_layer_and_modality(first: int, share: bool) -> None:
    network = small_network("registers", 3, semantic={"first_layer": first, "share": share}, **NO_TEXT)
    backbone, vit = network.backbone, network.backbone.vit
    assert network.prompts is not None
    own = network.prompts.semantic
    assert own is not None
    images, present = small_images(backbone, batch=4), torch.ones(3, 4, dtype=torch.bool)
    present[1, :2] = False
    start_from_data(own, backbone, images, present, seeded(5))
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
    start_from_data(own, backbone, images, present, seeded(5))
    assert torch.equal(own.tokens, before)
    start_from_data(own, backbone, images, present, seeded(6))
    assert not torch.equal(own.tokens, before)


@torch.no_grad()
def test_a_modality_that_no_image_shows_keeps_its_values() -> None:
    network = small_network(**NO_TEXT)
    assert network.prompts is not None
    own = network.prompts.semantic
    assert own is not None
    before, present = own.tokens.clone(), torch.tensor([[True], [False], [True]])
    start_from_data(own, network.backbone, small_images(network.backbone, batch=1), present, seeded())
    assert torch.equal(own.tokens[:, 1], before[:, 1])
    assert not torch.equal(own.tokens[:, 0], before[:, 0])
    assert (own.tokens.std(dim=(2, 3)) > 0).all()


def test_too_few_patches_are_said() -> None:
    network = small_network(semantic={"length": 7}, **NO_TEXT)
    assert network.prompts is not None
    assert network.prompts.semantic is not None
    images, present = small_images(network.backbone, batch=1), torch.ones(3, 1, dtype=torch.bool)
    with pytest.raises(UserError, match=r"draws semantic\.length 7 different patches.* have 6"):
        start_from_data(network.prompts.semantic, network.backbone, images, present, seeded())


def test_a_run_starts_from_its_data_and_is_repeatable(tmp_path: Path) -> None:
    config = settings(toy(tmp_path / "data"), epochs=2)
    data = with_(config, semantic={"init": "data"})
    name = "prompts.semantic.tokens"
    uniform, one = (Trainer(c, tmp_path / n).network for c, n in ((config, "uniform"), (data, "one")))
    assert not torch.equal(uniform.get_parameter(name), one.get_parameter(name))
    for key, value in uniform.own_state().items():  # nothing else is drawn otherwise
        assert key == name or torch.equal(value, one.own_state()[key])
    fit(data, tmp_path / "two")
    trainer = Trainer(data, tmp_path / "three")
    trainer.config = trainer.network.config
    steps = iter(range(3))
    step = trainer._step
    trainer._step = lambda *a: step(*a) if next(steps, None) is not None else _killed()  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit()
    fit(data, tmp_path / "three", resume=True)
    assert same_state(tmp_path / "two", tmp_path / "three")


def _killed() -> Any:
    raise RuntimeError("killed")


# --- average ----------------------------------------------------------------------------------------------------------


def test_what_says_never_seen_is_not_averaged() -> None:
    network = small_network(missing={"dropout": 0.3})
    assert {"shared.mean", "shared.variance"} <= network.own_state().keys()
    averaged = Average(network, 0.9).tensors.keys()
    assert "shared.project.0.weight" in averaged
    assert not {"shared.mean", "shared.variance"} & averaged


def test_the_average_is_the_transcription() -> None:
    network = small_network(**NO_TEXT)
    name = "prompts.semantic.tokens"
    parameter = network.get_parameter(name)
    average, expected = Average(network, 0.5), parameter.detach().double().clone()
    for step in range(1, 21):
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(step)))
        average.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * parameter.detach().double()
    torch.testing.assert_close(average.tensors[name].double(), expected, rtol=1e-5, atol=1e-6)
    live = {n: t.clone() for n, t in network.state_dict().items()}
    with average.swapped_in():
        assert torch.equal(network.get_parameter(name), average.tensors[name])
        assert all(torch.equal(t, average.tensors[n]) for n, t in network.own_state().items() if n in average.tensors)
    assert all(torch.equal(t, live[n]) for n, t in network.state_dict().items())


def test_the_average_is_saved_and_evaluated_and_training_goes_on_without_it(tmp_path: Path) -> None:
    config = settings(toy(tmp_path / "data"), epochs=2, select="val", val_share=0.5, ids=2)
    plain = fit(config, tmp_path / "plain")
    averaged = fit(with_(config, train={"average": 0.9}), tmp_path / "averaged")
    same = zip(plain.network.own_state().items(), averaged.network.own_state().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in same)
    losses = [[line["losses"] for line in log(t.out) if "losses" in line] for t in (plain, averaged)]
    assert losses[0] == losses[1]
    assert averaged.average is not None
    network, _ = adapter.load(tmp_path / "averaged" / "last")
    own = network.own_state()
    assert all(torch.equal(own[name], mean) for name, mean in averaged.average.tensors.items())
    moved = [n for n in averaged.network.trained() if not torch.equal(own[n], averaged.network.own_state()[n])]
    assert set(moved) == set(averaged.network.trained())
    assert all(math.isfinite(line["val"]["mAP"]) for line in log(averaged.out) if "val" in line)


@pytest.mark.parametrize("steps", [3, 5])  # within a group whose gradients are summed; at an epoch's end
def test_an_interrupted_average_goes_on_exactly(tmp_path: Path, steps: int) -> None:
    config = settings(toy(tmp_path / "data"), epochs=2, save_every=1, average=0.9, accumulate=2)
    fit(config, tmp_path / "whole")
    trainer = Trainer(config, tmp_path / "broken")
    step, left = trainer._step, iter(range(steps))
    trainer._step = lambda *a: step(*a) if next(left, None) is not None else _killed()  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit()
    fit(config, tmp_path / "broken", resume=True)
    assert same_state(tmp_path / "whole", tmp_path / "broken")
    assert any(name.startswith("average.") for name in torch_names(tmp_path / "broken" / "state.safetensors"))


def torch_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def test_the_average_is_what_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, seen = "prompts.semantic.tokens", list[Tensor]()

    def spy(network: Any, *rest: Any) -> Any:
        seen.append(network.get_parameter(name).detach().clone())
        return retrieve(network, *rest)

    monkeypatch.setattr("dmpt.training.trainer.retrieve", spy)
    config = settings(toy(tmp_path / "data"), epochs=1, select="val", val_share=0.5, ids=2, average=0.9)
    trainer = fit(config, tmp_path / "run")
    assert trainer.average is not None
    assert torch.equal(seen[-1], trainer.average.tensors[name])
    assert not torch.equal(seen[-1], trainer.network.get_parameter(name))


def test_the_average_knows_how_far_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    monkeypatch.setattr("dmpt.training.trainer.Average.update", lambda _, step: seen.append(step))
    fit(settings(toy(tmp_path / "data"), epochs=2, average=0.9, accumulate=2), tmp_path / "run")
    assert seen == [line["step"] for line in log(tmp_path / "run") if "grad_norm" in line]
    assert len(seen) > 3
