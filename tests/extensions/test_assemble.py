"""From settings to a network and its objective: what exists, the order in which it starts, and what is refused."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from by_hand import (
    IDS,
    draw,
    literal_centre,
    literal_contrast,
    literal_cross_entropy,
    literal_triplet,
    mean,
    near,
)
from dmpt.adapter import folder as adapter
from dmpt.base.errors import UserError
from dmpt.embed.attention import attention
from dmpt.evaluation.evaluate import evaluate
from dmpt.extensions.assemble import build_backbone, build_network
from dmpt.extensions.exchanges import Exchange
from dmpt.extensions.readings import LearnedAbsent, LearnedWords
from dmpt.extensions.shared import SharedPart
from dmpt.method.bind import InternalInteraction, Linear, PromptIBind
from dmpt.method.heads import BNNeck, Heads, Seen
from dmpt.method.losses import Reduction
from dmpt.method.modalities import Features, PerModality
from dmpt.method.network import DMPT, Output
from dmpt.method.prompts import SemanticPrompts
from dmpt.paper import parameters as params
from dmpt.settings.config import BackboneConfig, Config
from dmpt.settings.shipped import read_config, shipped
from dmpt.towers.image import build_vit
from dmpt.towers.phrases import TextTargets
from runs import fit, settings, toy, with_
from small import (
    BARE,
    NO_TEXT,
    PRESENT,
    TEXT_WIDTH,
    Told,
    error_of,
    interaction_layer,
    objective_of,
    redraw,
    seeded,
    small_backbone,
    small_config,
    small_images,
    small_model,
    small_network,
    small_targets,
    through,
    train_steps,
)

WIDTH, DEPTH = 32, 4


def label(value: object) -> str:
    """A test's name that does not depend on the order of a set."""
    return str(sorted(value)) if isinstance(value, set) else str(value)


def names(network: DMPT) -> set[str]:
    """Of all that is not the tower's."""
    return {name for name in network.state_dict() if not name.startswith("backbone.")}


# --- what exists ------------------------------------------------------------------------------------------------------

EXIST: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"prompts.semantic", "prompts.modality", "bind", "projection", "heads"}),
    ({"semantic": {"length": 0}, "bind": {"depth": 0}}, {"prompts.modality", "projection", "heads"}),
    ({"modality": {"length": 0}}, {"prompts.semantic", "bind", "projection", "heads"}),
    ({"bind": {"depth": 0}}, {"prompts.semantic", "prompts.modality", "projection", "heads"}),
    (NO_TEXT, {"prompts.semantic", "prompts.modality", "bind", "heads"}),
    (NO_TEXT | {"heads": "paper"}, {"prompts.semantic", "prompts.modality", "bind", "projection", "heads"}),
    (BARE, {"projection", "heads"}),
    (BARE | NO_TEXT, {"heads"}),
    (BARE | NO_TEXT | {"bind": {"depth": 1, "external": False}}, {"bind", "heads"}),
    (BARE | NO_TEXT | {"backbone": {"tune": "linear"}}, {"readout", "heads"}),
    (BARE | NO_TEXT | {"missing": {"dropout": 0.3}}, {"also", "heads"}),
    (NO_TEXT | {"bind": {"layers": (0,)}}, {"prompts.semantic", "prompts.modality", "bind", "exchanges", "heads"}),
]


@pytest.mark.parametrize(("settings", "expected"), EXIST, ids=label)
@pytest.mark.parametrize("kind", ["clip", "imagenet"])
def test_what_is_switched_off_does_not_exist(kind: str, settings: dict[str, Any], expected: set[str]) -> None:
    network, _, config = small_model(kind, **settings)
    parts = {".".join(name.split(".")[: 2 if name.startswith("prompts") else 1]) for name in names(network)}
    assert parts == expected
    trained = expected - {"projection"} if kind == "clip" else expected  # CLIP's own projection is frozen
    assert {part for part in expected if any(n.startswith(part + ".") for n in network.trained())} == trained
    output = network(small_images(network.backbone))
    assert (output.z is not None) is (config.text.loss != "off")


@pytest.mark.parametrize("tune", ["frozen", "linear", "lora", "full"])
def test_the_tower_is_tuned_as_asked(tune: Any) -> None:
    backbone = build_backbone(Config(backbone=BackboneConfig(tune=tune)), small_backbone().vit)
    assert backbone.frozen is (tune != "full")
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert len(trained) == {"frozen": 0, "linear": 0, "lora": 8, "full": len(dict(backbone.named_parameters()))}[tune]


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


@pytest.mark.parametrize(("heads", "trained"), [("concat+modality", 17_630_976), ("paper", 17_895_168)])
def test_trained_parameters_of_the_papers_setting(heads: Any, trained: int) -> None:
    config = replace(small_config(heads=heads), semantic=small_config(semantic={"length": 32}).semantic)
    vit, info = build_vit(BackboneConfig(), (256, 128), load=False)
    with torch.device("meta"):
        network, _ = build_network(config, build_backbone(config, vit), info, 171, torch.empty(3, 1, 512))

    def count(module: nn.Module | None) -> int:
        assert module is not None
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    assert count(network) == sum(p.numel() for p in network.trained().values()) == trained
    assert network.prompts is not None
    assert count(network.prompts.semantic) == 884_736
    assert count(network.prompts.modality) == 4_727_808
    assert count(network.bind) == 4_134_144 + 7_087_104 + 4_608
    three_towers = 3 * (sum(p.numel() for p in network.backbone.parameters()) + info.projection.numel())
    assert heads != "paper" or round(100 * trained / (three_towers + trained), 2) == 6.48


# --- candidates: all combinations that studies try --------------------------------------------------------------------

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
    model = small_model(**NO_TEXT | CANDIDATES[name])
    network = model.network
    assert train_steps(model) == set(network.trained())
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


# --- the order in which parts draw their initial values ---------------------------------------------------------------


def test_parts_start_in_a_fixed_order() -> None:
    """Kept results began from these values: a part made earlier or later would change all that follow."""
    network, _, config = small_model(
        "imagenet",
        3,
        bind={"depth": 2, "layers": (1,)},
        modality={"length": 2, "source": "learned", "first_layer": 1},
        missing={"dropout": 0.3, "absent": "learned"},
        heads="paper",
    )
    torch.manual_seed(0)
    words = torch.randn(3, 2, config.modality.width) * 0.02
    semantic = SemanticPrompts(3, 5, WIDTH, 16)
    modality = LearnedWords(words, 2, WIDTH)

    def parts() -> tuple[nn.Module, PerModality]:
        external = LearnedAbsent(WIDTH, Linear, 5)
        return external, PerModality(InternalInteraction(WIDTH, 4) for _ in range(3))

    layers = [Exchange(*parts(), slice(0), 5) for _ in range(3)]
    expected: dict[str, nn.Module] = {"prompts.semantic": semantic, "prompts.modality": modality}
    expected |= {"bind.layers.0": layers[0], "bind.layers.1": layers[1], "exchanges.1": layers[2]}
    expected["projection"] = nn.Linear(WIDTH, TEXT_WIDTH, bias=False)
    expected["also.shared"] = SharedPart(WIDTH)
    expected["heads"] = Heads("paper", WIDTH, TEXT_WIDTH, 4)
    expected["heads.necks.shared"] = BNNeck(WIDTH, 4)
    found = {name for name in names(network) if "." in name}
    for part, module in expected.items():
        for name, value in module.state_dict().items():
            assert torch.equal(network.state_dict()[f"{part}.{name}"], value), f"{part}.{name}"
            found.discard(f"{part}.{name}")
    assert not found


def test_the_bind_of_the_settings_is_the_papers() -> None:
    network = small_network(bind={"depth": 2})
    torch.manual_seed(0)
    own, paper = PromptIBind(interaction_layer(WIDTH, 4) for _ in range(2)), network.bind
    assert paper is not None
    assert [type(m) for m in own.modules()] == [type(m) for m in paper.modules()]
    assert {n: t.shape for n, t in own.state_dict().items()} == {n: t.shape for n, t in paper.state_dict().items()}


# --- where prompts and the semantic ones among them stand -------------------------------------------------------------

FIRSTS: list[tuple[int, int | None]] = [(1, None), (3, None), (2, 0), (0, 2), (1, 3)]


def begun(first: int, modality: int | None = None, **more: Any) -> DMPT:
    semantic = {"length": 5, "first_layer": first}
    network = small_network(
        "registers", DEPTH, semantic=semantic, modality={"length": 2, "first_layer": modality}, heads="paper", **more
    )
    redraw(network, seeded(6), 0.1)
    return network.double()


def literal_tokens(network: DMPT, images: Tensor, semantic: int, modality: int) -> Tensor:
    """Timm's own modules one after another."""
    vit, prompts = network.backbone.vit, network.prompts
    assert prompts is not None
    assert prompts.semantic is not None
    assert prompts.modality is not None
    streams = []
    for m, stream in enumerate(images):
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(stream)))
        lead = vit.num_prefix_tokens
        for layer, block in enumerate(vit.blocks):
            own: list[Tensor] = []
            if layer >= modality:
                own += list(prompts.modality.map[layer - modality](prompts.modality.words[m]))
            if layer >= semantic:
                own += list(prompts.semantic.tokens[layer - semantic, m])
            inserted = [prompt.expand(len(stream), 1, -1) for prompt in own]
            x = block(torch.cat([x[:, :lead], *inserted, x[:, lead:]], dim=1))
            if layer < DEPTH - 1:
                x = torch.cat([x[:, :lead], x[:, lead + len(own) :]], dim=1)
        streams.append(x)
    return torch.stack(streams)


@pytest.mark.parametrize("first", FIRSTS, ids=str)
@pytest.mark.parametrize("form", ["prefix", "token"])
@torch.no_grad()
def test_prompts_enter_from_their_layer_on(first: tuple[int, int | None], form: Any) -> None:
    network = begun(*first, prompts=form)
    images = small_images(network.backbone)
    semantic, modality = first[0], first[0] if first[1] is None else first[1]
    expected = literal_tokens(network, images, semantic, modality)
    assert network.prompts is not None
    prompts = network.prompts()
    assert [p is None for p in prompts] == [layer < min(semantic, modality) for layer in range(DEPTH)]
    assert error_of(through(network.backbone, images, prompts, form, True), expected) < 1e-12
    without = through(network.backbone, images, prompts, form)
    lead = network.backbone.leading
    assert error_of(without, torch.cat([expected[:, :, :lead], expected[:, :, lead + 7 :]], dim=2)) < 1e-12
    network.eval()
    features = network(images).features.x
    assert error_of(network(images, baked=network.bake()).features.x, features) < 1e-12
    gazed, probabilities = attention(network, images)
    assert error_of(gazed, expected) < 1e-12
    assert probabilities.shape[-1] == expected.shape[2]


@pytest.mark.parametrize("first", FIRSTS, ids=str)
def test_both_forms_have_the_same_gradients(first: tuple[int, int | None]) -> None:
    gradients = []
    for form in ("prefix", "token"):
        network = begun(*first, prompts=form)
        network(small_images(network.backbone)).features.x.square().sum().backward()
        gradients.append({n: p.grad for n, p in network.trained().items() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() >= {"prompts.semantic.tokens"}
    assert all(error_of(value, gradients[1][name]) < 1e-9 for name, value in gradients[0].items())


@pytest.mark.parametrize("form", ["prefix", "token"])
def test_layers_below_run_without_autograd(form: str) -> None:
    """Backward ends at the first layer with prompts, and forward keeps nothing of what is below."""
    kept: dict[int, int] = {}
    for first in range(DEPTH):
        network = begun(first, prompts=form)
        entering: list[bool] = []

        def note(_: Any, inputs: tuple[Tensor], where: list[bool] = entering) -> None:
            where.append(inputs[0].requires_grad)

        for block in network.backbone.vit.blocks:
            block.norm2.register_forward_pre_hook(note)
        count = 0

        def count_bytes(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count_bytes, lambda tensor: tensor):
            features = network(small_images(network.backbone)).features.x
        kept[first] = count
        assert entering == [layer >= first for layer in range(DEPTH)]
        features.sum().backward()
        assert all(p.grad is not None for n, p in network.trained().items() if n.startswith("prompts."))
    assert kept[0] > 1.2 * kept[1] > 1.4 * kept[2] > 1.6 * kept[3] > 0


@torch.no_grad()
def test_a_missing_modality_is_left_out_where_prompts_begin_later() -> None:
    network = begun(2).eval()
    images = small_images(network.backbone, batch=3)
    present = torch.tensor([[True, True, True], [True, False, True], [True, True, False]])
    broken = images.masked_fill(~present[..., None, None, None], torch.nan)
    one = network(broken, present).features.x
    assert one.isfinite().all()
    assert error_of(network(broken, present, network.bake()).features.x, one) < 1e-12
    assert error_of(network(images[:, :1]).features.x, one[:, :1]) < 1e-12


def test_fewer_layers_have_fewer_parameters(tmp_path: Any) -> None:
    config = settings(tmp_path)
    count = {
        first: {
            c["name"]: c["count"]
            for c in params.count_parameters(with_(config, semantic={"first_layer": first}), 4)["components"]
        }
        for first in (0, 1)
    }
    for name in ("semantic prompts S", "modality prompts: mapping P"):
        assert count[0][name] == 2 * count[1][name]


# --- Eq. 17 -----------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0, 0, 1, 1, 4, 4])
HEAD_WIDTHS = {"concat": 3 * 7, "rgb": 7, "nir": 7}


def material() -> tuple[Output, dict[str, Seen], TextTargets, Tensor]:
    """What the network, its heads and the text tower might say."""
    count = len(LABELS)
    output = Output(Features(draw(3, count, 7, seed=1)), z=Features(draw(3, count, TEXT_WIDTH, seed=2)))
    heads = {
        name: Seen(draw(count, width, seed=10 + i), draw(count, IDS, seed=20 + i), LABELS)
        for i, (name, width) in enumerate(HEAD_WIDTHS.items())
    }
    return output, heads, small_targets(dtype=torch.float64), draw(3, IDS, TEXT_WIDTH, seed=3)


def terms_of(**sections: Any) -> dict[str, float]:
    output, heads, targets, texts = material()
    config = small_config(**sections)
    objective = objective_of(config, heads, targets, identity_text=Told(texts))
    return {name: term.item() for name, term in objective(output, LABELS).items()}


def literal_terms(text: str) -> dict[str, float]:
    """All weights 1."""
    output, heads, targets, texts = material()
    assert output.z is not None
    images = [(m, image, int(own)) for m in range(3) for image, own in zip(output.z.x[m], LABELS, strict=True)]
    fixed, positive, scale = targets
    text_terms = {
        "modality": mean([literal_contrast(image, fixed, int(positive[m]), scale) for m, image, _ in images]),
        "identity": mean([literal_contrast(image, texts[m], own, scale) for m, image, own in images]),
        "literal": 3 * len(LABELS) / IDS,
    }
    return {
        "ce": mean([literal_cross_entropy(seen.logits, LABELS, 0.1) for seen in heads.values()]),
        "metric": mean([literal_triplet(seen.feature, LABELS) for seen in heads.values()]),
        "centre": literal_centre(output.features.x, LABELS, "mean", False),
        "text": text_terms[text],
    }


@pytest.mark.parametrize("text", ["modality", "identity", "literal"])
def test_the_objective_is_equation_17(text: str) -> None:
    terms, expected = terms_of(text={"loss": text}), literal_terms(text)
    assert terms == near(expected)
    assert list(terms) == ["ce", "metric", "centre", "text"]
    assert sum(terms.values()) == near(sum(expected.values()))


WEIGHTS = {"ce": "ce", "metric": "metric_weight", "centre": "centre", "text": "text"}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_weight_scales_its_own_term(name: str) -> None:
    expected = literal_terms("modality")
    expected[name] *= 2.5
    assert terms_of(loss={WEIGHTS[name]: 2.5}) == near(expected)


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_term_of_weight_0_is_absent(name: str) -> None:
    expected = {term: value for term, value in literal_terms("modality").items() if term != name}
    assert terms_of(loss={WEIGHTS[name]: 0}) == near(expected)


def test_the_text_term_is_absent_when_off() -> None:
    output, heads, _, _ = material()
    terms = objective_of(small_config(text={"loss": "off"}), heads)(Output(output.features), LABELS)
    assert list(terms) == ["ce", "metric", "centre"]


@pytest.mark.parametrize(("reduction", "normalise"), [("sum", False), ("mean", True), ("sum", True)])
def test_forms_of_terms_reach_the_objective(reduction: Reduction, normalise: bool) -> None:
    output, heads, _, _ = material()
    terms = terms_of(loss={"centre_reduction": reduction, "centre_normalise": normalise, "smoothing": 0.3})
    assert terms["centre"] == near(literal_centre(output.features.x, LABELS, reduction, normalise))
    assert terms["ce"] == near(mean([literal_cross_entropy(seen.logits, LABELS, 0.3) for seen in heads.values()]))


@pytest.mark.parametrize("form", ["modality", "identity", "literal"])
def test_the_text_term_is_of_the_modalities_there_are(form: str) -> None:
    z, texts = draw(3, 6, TEXT_WIDTH, seed=3), draw(3, IDS, TEXT_WIDTH, seed=5)
    targets = small_targets(dtype=torch.float64)
    heads = {"rgb": Seen(torch.zeros(6, 7), torch.zeros(6, IDS), LABELS)}
    config = small_config(text={"loss": form}, loss={"ce": 0, "metric_weight": 0})
    output = Output(Features(torch.zeros(3, 6, 7), PRESENT), z=Features(z, PRESENT))
    terms = objective_of(config, heads, targets, identity_text=Told(texts))(output, LABELS)
    there = [(m, z[m, b], int(LABELS[b])) for m, b in PRESENT.nonzero().tolist()]
    fixed, positive, scale = targets
    expected = {
        "modality": mean([literal_contrast(image, fixed, int(positive[m]), scale) for m, image, _ in there]),
        "identity": mean([literal_contrast(image, texts[m], own, scale) for m, image, own in there]),
        "literal": len(there) / IDS,
    }
    assert terms["text"].item() == near(expected[form])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"), [({"heads": "paper"}, "off"), ({}, "modality"), ({}, "literal")], ids=str
)
def test_a_tower_without_projection_is_refused_where_one_is_needed(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=r"vit_base_patch16_224\.augreg_in21k has no image projection.*set backbone"):
        small_network("imagenet", text={"loss": text}, backbone={"projection": "tower"}, **settings)
    small_network("imagenet", text={"loss": "off"}, backbone={"projection": "tower"})


@pytest.mark.parametrize("kind", ["semantic", "modality"])
def test_a_layer_that_does_not_exist_is_refused(kind: str) -> None:
    with pytest.raises(UserError, match=f"{kind}.first_layer is 2, but the tower has 2 layers.*at most 1"):
        small_network(**{kind: {"first_layer": 2}})
    with pytest.raises(UserError, match=f"{kind}.first_layer is -1; it must be a whole number of at least 0"):
        small_network(**{kind: {"first_layer": -1}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"feature": "cls+bind", "bind": {"depth": 0}}, "feature cls.bind takes semantic prompts after the exchange"),
        ({"feature": "cls+bind", "bind": {"external": False}}, "feature cls.bind takes semantic prompts after"),
        ({"neck": "after", "missing": {"dropout": 0.3}}, "neck is after, but the shared part"),
        ({"backbone": {"tune": "linear"}}, "backbone.tune linear .* bind.depth is 1; set it to 0"),
        ({"lora": {"rank": -1}}, "lora.rank is -1; it must be a whole number of at least 0"),
        ({"lora": {"rank_per_modality": -1}}, "lora.rank_per_modality is -1; it must be a whole number of at least 0"),
        ({"lora": {"first_layer": -1}}, "lora.first_layer is -1; it must be a whole number of at least 0"),
        ({"lora": {"scale": 0.0}}, "lora.scale is 0.0; it must be a number above 0"),
        (
            {"backbone": {"tune": "lora"}, "lora": {"rank": 0}},
            "backbone.tune is lora, but lora.rank and",
        ),
        ({"bind": {"rank": 0}}, "bind.rank is 0; it must be a whole number of at least 1"),
        ({"bind": {"layers": (1, 0)}}, r"bind.layers is \[1, 0\]; name layers once and in order"),
        (
            {"bind": {"layers": (0,)}, "semantic": {"first_layer": 1}},
            r"bind.layers is \[0\], but prompts begin at layer 1; name layers from there on",
        ),
        ({"bind": {"layers": (0,), "depth": 0}}, r"bind.layers is \[0\], but there is no interaction"),
        ({"bind": {"layers": (1,)}}, r"bind.layers is \[1\], but the tower has 2 layers.*layers up to 0"),
        ({"train": {"ema": 1.0}}, "train.ema is 1.0; it must be a number from 0 to below 1"),
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


# --- readings that are sums or means, and what else is named ----------------------------------------------------------


def test_the_text_loss_is_a_sum_over_modalities_where_asked_to() -> None:
    assert terms_of(text={"reduction": "sum"})["text"] == near(3 * terms_of()["text"])
    identity = {"loss": "identity"}
    assert terms_of(text=identity | {"reduction": "sum"})["text"] == near(3 * terms_of(text=identity)["text"])


def test_losses_are_a_sum_over_heads_where_asked_to() -> None:
    count = len(material()[1])
    assert count > 1
    mean_of, sum_of = terms_of(), terms_of(loss={"head_reduction": "sum"})
    for name in ("ce", "metric"):
        assert sum_of[name] == near(count * mean_of[name])
    for name in ("centre", "text"):
        assert sum_of[name] == near(mean_of[name])


def test_the_papers_files_sum_over_modalities_and_no_other() -> None:
    found = {name: read_config(name) for name in shipped()}
    paper = {name for name, config in found.items() if config.heads == "paper"}
    assert len(paper) == 12
    assert {name for name, config in found.items() if config.text.reduction == "sum"} == paper


def test_every_map_of_the_interaction_has_a_bias() -> None:
    """Eq. 11 and 13 print none."""
    network = small_network(bind={"depth": 1})
    maps = [m for m in network.get_submodule("bind").modules() if isinstance(m, torch.nn.Linear)]
    assert len(maps) == 3 + 3 + 1 + 3 * 2
    assert all(m.bias is not None and m.bias.requires_grad for m in maps)


def test_the_setting_checkpoint_reaches_the_tower() -> None:
    built = [
        build_backbone(Config(backbone=BackboneConfig(checkpoint=on)), small_network().backbone.vit)
        for on in (False, True)
    ]
    assert [backbone.checkpoint for backbone in built] == [False, True]
