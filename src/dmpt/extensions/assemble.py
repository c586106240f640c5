"""From settings to a network and its objective: the one place where the paper and what is ours are put together.

Parts are made in a fixed order, since each draws its initial values: kept results began from those.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.extensions.alignment import align
from dmpt.extensions.exchanges import Exchange
from dmpt.extensions.identity_text import IdentityText, text_identity
from dmpt.extensions.linear_probe import LinearProbe
from dmpt.extensions.lora import add_lora
from dmpt.extensions.low_rank import LowRankLinear
from dmpt.extensions.metric_losses import metric_loss
from dmpt.extensions.readings import (
    ClassAndBind,
    LearnedAbsent,
    LearnedWords,
    NoExchange,
    OneForAll,
    behind_the_neck,
    text_literal,
    words_for_prompts,
)
from dmpt.extensions.shared import SharedPart, shared_part
from dmpt.method.backbone import Backbone
from dmpt.method.bind import ExternalInteraction, InteractionLayer, InternalInteraction, Linear, PromptIBind
from dmpt.method.heads import HEADS, BNNeck, Heads, Seen
from dmpt.method.losses import Batch, Objective, Term, centre, cross_entropy, over_heads, text_modality
from dmpt.method.modalities import MODALITY_COUNT, Features, PerModality
from dmpt.method.network import DMPT
from dmpt.method.prompts import ModalityPrompts, Prompts, SemanticPrompts
from dmpt.settings.config import Config, FirstLayer
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.phrases import TextFile, TextTargets, check_matches, text_file


@dataclass(frozen=True, eq=False)
class Model:
    """What training trains."""

    network: DMPT  # on the CPU, its tower in float32
    objective: Objective  # the loss, with the heads that the network holds
    tower: TowerInfo  # what is known of the pretrained image tower
    text_sha256: str | None  # of the text tower's weights; None without one


def assemble(config: Config, ids: int, object_word: str) -> Model:
    """Network and objective on the pretrained towers, for so many training identities of ``person`` or ``vehicle``.

    Raises:
        UserError: weights or words are missing, or do not fit.
    """
    torch.manual_seed(config.train.seed)
    vit, tower = build_vit(config.backbone, config.data.size, keep_random_state=False)
    backbone = build_backbone(config, vit)
    with_text = config.text.loss != "off"
    file = text_file(config.text) if config.modality.worded or with_text else None
    # A ready file says nothing of the tower that ``identity`` trains through.
    said = text_file(replace(config.text, file=None)) if config.text.loss == "identity" else file
    network, heads = build_network(config, backbone, tower, ids, _words(config, file))
    text = None
    if with_text:
        assert said is not None
        assert network.projection is not None
        check_matches(said, tower, config.backbone.projection, network.projection.out_features)
        text = said.targets(object_word)
    if config.text.loss == "identity":
        network.add_module("identity_text", IdentityText(config.text, ids, object_word))
    return Model(network, build_objective(config, network, heads, text), tower, None if said is None else said.sha256)


def build_backbone(config: Config, vit: Any) -> Backbone:
    """The tower as it is tuned.

    Raises:
        UserError: low-rank updates begin behind its last layer.
    """
    backbone = Backbone(vit, config.backbone.tune != "full", config.backbone.checkpoint)
    if config.backbone.tune == "lora":
        add_lora(backbone, config.lora, _layer("lora", config.lora.first_layer, backbone.depth))
    return backbone


def build_network(
    config: Config, backbone: Backbone, tower: TowerInfo, ids: int, words: Tensor | None
) -> tuple[DMPT, Heads]:
    """The network of some settings, and its heads, at their initial values.

    Args:
        config: the settings.
        backbone: ``build_backbone``'s.
        tower: what is known of it.
        ids: number of training identities.
        words: input of the modality prompts' mapping ``(3, M, d_t)``; None where M = 0.

    Raises:
        UserError: a setting needs an image projection and the tower has none, prompts begin behind its last layer, or
            an exchange stands where there are none.
    """
    width, semantic, modality = backbone.width, config.semantic.length, config.modality.length
    firsts = _first_layers(config, backbone.depth)
    prompts = None if firsts is None else _prompts(config, backbone, firsts, words)
    bind, exchanges = None, dict[int, nn.Module]()
    if config.bind.depth:
        absent = semantic if config.missing.absent == "learned" else 0
        parts = partial(_interaction, config, width, backbone.attention_heads, absent)
        bind = PromptIBind(InteractionLayer(*parts()) for _ in range(config.bind.depth))
        for layer in config.bind.layers:
            assert firsts is not None
            count = semantic + (modality if layer >= firsts["modality"] else 0)
            where = slice(backbone.leading, backbone.leading + count)
            exchanges[layer] = Exchange(*parts(), where, semantic)
    readout: nn.Module | None = None
    if config.feature == "cls+bind":
        readout = ClassAndBind()
    elif config.backbone.tune == "linear":
        readout = LinearProbe(width)
    project_features = "projected" in HEADS[config.heads]
    with_text = config.text.loss != "off"
    projection = _projection(config, backbone, tower) if with_text or project_features else None
    start = backbone.leading + modality
    network = DMPT(
        backbone,
        prompts,
        bind,
        projection,
        semantic=slice(start, start + semantic),
        form=config.prompts,
        text_from=config.text.z if with_text else None,
        project_features=project_features,
        readout=readout,
        exchanges=exchanges,
    )
    feature = 2 * width if config.feature == "cls+bind" else width
    if config.missing.with_shared:
        network.also["shared"] = SharedPart(feature, config.data.modalities)
    projected = None if projection is None else projection.out_features
    heads = Heads(config.heads, feature, projected, ids, config.data.modalities)
    if config.missing.with_shared:
        heads.necks["shared"] = BNNeck(feature, ids)
    network.add_module("heads", heads)
    if config.neck == "after":
        network.at_test = behind_the_neck(heads)
    return network, heads


def build_objective(config: Config, network: DMPT, heads: Heads, text: TextTargets | None) -> Objective:
    """The terms of the loss that have a weight, in the order in which they are added.

    The network's shared part and identity tokens have terms of their own; ``text`` is for the text losses.
    """
    loss = config.loss

    def of_logits(seen: Seen) -> Tensor:
        return cross_entropy(seen.logits, seen.labels, loss.smoothing)

    def of_features(seen: Seen) -> Tensor:
        return metric_loss(loss, seen.feature, seen.labels)

    def of_centres(batch: Batch) -> Tensor:
        return centre(batch.output.features, batch.labels, loss.centre_reduction, loss.centre_normalise)

    terms = [
        Term("ce", loss.ce, over_heads(of_logits, loss.head_reduction)),
        Term("metric", loss.metric_weight, over_heads(of_features, loss.head_reduction)),
        Term("centre", loss.centre, of_centres),
    ]
    part = shared_part(network)
    if part is not None:
        neck = heads.necks["shared"]
        observe = part.observe_cut if config.missing.standardise == "cut" else part.observe

        def of_shared(batch: Batch) -> Tensor:
            shared = batch.output.also["shared"]
            seen = Seen(shared, neck(shared), batch.labels)
            observe(batch.output.features, shared, batch.labels)
            return loss.ce * of_logits(seen) + loss.metric_weight * of_features(seen)

        terms.append(Term("shared", loss.shared, of_shared))

    def of_modalities(batch: Batch) -> Tensor:
        features = batch.output.features  # or, where there is one, in the space in which modalities meet
        parts = features if part is None else Features(part.project(features.x), features.present)
        return align(parts, batch.labels, loss.metric_scale)

    terms.append(Term("align", loss.align, of_modalities))
    if text is not None:
        terms.append(Term("text", loss.text, _text_term(config, network, text)))
    return Objective(heads, [term for term in terms if term.weight])


def _text_term(config: Config, network: DMPT, text: TextTargets) -> Callable[[Batch], Tensor]:
    """L_con in the reading of ``text.loss``."""

    def of_text(batch: Batch) -> Tensor:
        z = batch.output.z
        assert z is not None
        if config.text.loss == "identity":
            texts = network.get_submodule("identity_text")()
            return text_identity(z, texts, batch.labels, text.scale, config.text.reduction)
        if config.text.loss == "literal":
            return text_literal(z, text, next(iter(batch.heads.values())).logits.shape[1])
        return text_modality(z, text, config.text.reduction)

    return of_text


def _words(config: Config, file: TextFile | None) -> Tensor | None:
    """What modality prompts are mapped from."""
    modality = config.modality
    if not modality.length:
        return None
    if not modality.worded:
        return words_for_prompts(modality.source, modality.length, modality.width, None)
    assert file is not None
    words = file.attributes if modality.source == "attribute" else file.words
    return words_for_prompts(modality.source, modality.length, modality.width, list(words.values()))


def _prompts(config: Config, backbone: Backbone, firsts: dict[str, int], words: Tensor | None) -> Prompts:
    """Those of each kind, from its first layer on."""
    layers, width = backbone.depth, backbone.width
    semantic = modality = None
    if config.semantic.length:
        patch = backbone.vit.patch_embed.patch_size[0]
        count = layers - firsts["semantic"]
        semantic = SemanticPrompts(count, config.semantic.length, width, patch, config.semantic.share)
    if config.modality.length:
        assert words is not None
        kind = LearnedWords if config.modality.source == "learned" else ModalityPrompts
        modality = kind(words, layers - firsts["modality"], width)
    return Prompts(semantic, modality, layers)


def _interaction(config: Config, width: int, attention_heads: int, absent: int) -> tuple[nn.Module, PerModality]:
    """The external and the internal part of an interaction layer."""
    bind = config.bind
    linear: Any = Linear if bind.rank is None else partial(LowRankLinear, rank=bind.rank)
    external: nn.Module = NoExchange()
    if bind.external:
        external = LearnedAbsent(width, linear, absent) if absent else ExternalInteraction(width, linear)
    kind, own = (OneForAll, 1) if bind.share else (PerModality, MODALITY_COUNT)
    return external, kind(InternalInteraction(width, attention_heads, linear) for _ in range(own))


def _first_layers(config: Config, layers: int) -> dict[str, int] | None:
    """The layers at which semantic and modality prompts begin; None without prompts."""
    if not (config.semantic.length or config.modality.length):
        return None
    semantic, modality = config.semantic.first_layer, config.modality.first_layer
    semantic = _layer("semantic", semantic, layers)
    firsts = {"semantic": semantic, "modality": _layer("modality", semantic if modality is None else modality, layers)}
    bound = list(config.bind.layers)
    if any(layer < semantic for layer in bound):
        raise UserError(f"bind.layers is {bound}, but prompts begin at layer {semantic}; name layers from there on")
    if any(layer >= layers - 1 for layer in bound):
        raise UserError(
            f"bind.layers is {bound}, but the tower has {layers} layers, counted from 0, and "
            f"bind.depth stands behind the last; name layers up to {layers - 2}"
        )
    return firsts


def _layer(section: str, first: FirstLayer, layers: int) -> int:
    """A section's ``first_layer`` as a number.

    Raises:
        UserError: it lies behind the last layer.
    """
    found = first if isinstance(first, int) else layers // {"third": 3, "middle": 2}[first]
    if found >= layers:
        raise UserError(
            f"{section}.first_layer is {found}, but the tower has {layers} layers, counted from 0; "
            f"set it to at most {layers - 1}"
        )
    return found


def _projection(config: Config, backbone: Backbone, tower: TowerInfo) -> nn.Linear:
    """Image features to the text space: the tower's own, frozen, or one to train."""
    if config.backbone.projection == "trained":
        return nn.Linear(backbone.width, config.backbone.projection_dim, bias=False)
    own = tower.projection
    if own is None:
        raise UserError(
            f"backbone {tower.name} has no image projection into a text space; "
            "set backbone.projection trained, or text.loss off and heads other than paper"
        )
    projection = nn.Linear(own.shape[1], own.shape[0], bias=False, device=own.device)
    projection.weight = nn.Parameter(own.clone().float(), requires_grad=False)
    return projection
