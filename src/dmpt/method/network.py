"""DMPT: a batch of triplets in, features out.

Order (the paper's Fig. 2): frozen blocks with prompts -> PromptIBind -> the tower's final norm on the class
token -> feature. With no prompts and no interaction layer the feature of each modality is the tower's own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.extensions.lora import LinearProbe
from dmpt.extensions.shared import SharedPart
from dmpt.method.backbone import Backbone, Exchanges, Prefix
from dmpt.method.bind import PromptIBind
from dmpt.method.heads import HEADS, Heads, concatenate
from dmpt.method.prompts import ModalityPrompts, Prompts, SemanticPrompts
from dmpt.settings.config import Config


@dataclass(frozen=True)
class Output:
    """What the network says of a batch, in float32.

    Attributes:
        features: of each modality, ``(3, B, D)``, its enhanced class token, or ``(3, B, 2 D)`` with the bind's semantic
            prompts beside it; zeros where it is absent.
        projected: their image projections ``(3, B, d)``; None unless a head uses them.
        z: projected class tokens for the text loss ``(3, B, d)``; None without one.
        shared: the shared part ``(B, D)``; None where there is none.
        present: bool ``(3, B)``, which slots count; None = all.
        normed: features after the heads' batch norm; only in evaluation mode with ``neck`` after.
        subset: what it says where some of these modalities are left out; None unless asked for.
    """

    features: Tensor
    projected: Tensor | None = None
    z: Tensor | None = None
    shared: Tensor | None = None
    present: Tensor | None = None
    normed: Tensor | None = None
    subset: "Output | None" = None


class DMPT(nn.Module):
    """The whole method.

    What a setting switches off does not exist here: an optimiser cannot move it.

    Args:
        config: the settings.
        backbone: the pretrained tower.
        ids: number of training identities.
        words: input of the modality prompts' mapping ``(3, M, d_t)`` (``prompts.modality_words``); None where M = 0.

    Raises:
        UserError: a setting needs an image projection and the tower has none, or prompts begin behind its last layer.
    """

    def __init__(self, config: Config, backbone: Backbone, ids: int, words: Tensor | None):
        super().__init__()
        self.config = config
        self.backbone = backbone
        width, layers = backbone.width, backbone.depth
        semantic, modality, bind = config.semantic, config.modality, config.bind
        patch = backbone.vit.patch_embed.patch_size[0]
        self.prompts: Prompts | None = None
        if semantic.length or modality.length:
            of_semantic, of_modality = _prompted_layers(config, layers)
            own = mapped = None
            if semantic.length:
                own = SemanticPrompts(of_semantic, semantic.length, width, patch, semantic.share)
            if modality.length:
                assert words is not None
                mapped = ModalityPrompts(words, of_modality, width, learned=modality.source == "learned")
            self.prompts = Prompts(own, mapped, layers)
        self.with_bind = config.feature == "cls+bind"
        self.bind: PromptIBind | None = None
        if bind.depth:
            absent = semantic.length if config.missing.absent == "learned" else 0
            self.bind = PromptIBind(bind, width, backbone.heads, self.with_bind, absent)
        self.probe = LinearProbe(width) if config.backbone.tune == "linear" else None
        needs_projection = config.text.loss != "off" or "projected" in HEADS[config.heads]
        self.projection = _projection(config, backbone) if needs_projection else None
        feature = 2 * width if self.with_bind else width
        self.shared = SharedPart(feature, config.data.modalities) if config.missing.with_shared else None
        projected = self.projection.out_features if self.projection else None
        self.heads = Heads(config.heads, feature, projected, ids, config.data.modalities, self.shared is not None)
        self.identity_text: nn.Module | None = None  # set by training with the text loss ``identity``
        self._baked: tuple[list[Tensor | None], list[Prefix | None]] | None = None

    def forward(self, images: Tensor, present: Tensor | None = None, subset: Tensor | None = None) -> Output:
        """Features of a batch.

        Args:
            images: normalised, ``(3, B, 3, H, W)``, modality first; where a modality is absent nothing is read.
            present: bool ``(3, B)``, which modalities a triplet has, at least one; None = all.
            subset: bool ``(3, B)``, some of these, at least one: the output of what is left when the others are left
                out is wanted too. The tower sees each image alone, so one pass serves both; without ``bind.layers``.
        """
        prompts, prefixes = self._baked or (self.prompts() if self.prompts is not None else None, None)
        keep = self.bind is not None
        present, subset = (None if mask is None else mask.to(images.device) for mask in (present, subset))
        if present is not None and self.config.bind.layers:
            # All go through together: what is absent is black, and read by nothing.
            images = images.masked_fill(~present[..., None, None, None], 0)
        if present is None or self.config.bind.layers:
            exchanges = self.exchanges(prompts, present)
            tokens = self.backbone(images, prompts, self.config.prompts, keep, prefixes, exchanges)
        else:
            tokens = self._present_tokens(images, present, prompts, prefixes, keep)
        output = self._output(tokens, present)
        return output if subset is None else replace(output, subset=self._output(tokens, subset))

    def _output(self, tokens: Tensor, present: Tensor | None) -> Output:
        """From the backbone's tokens ``(3, B, N, D)``, of which those of absent modalities are not read."""
        before, after = self._interact(tokens, present)
        with torch.autocast(tokens.device.type, enabled=False):  # norm, projection and all that follows: float32
            features = self.backbone.norm(after)
            if self.probe is not None:
                features = self.probe(features)
            if present is not None:  # the norm of nothing is its bias
                features = features.masked_fill(~present[..., None], 0)
            projected = z = normed = None
            if self.projection is not None:
                cls = features[0] if self.with_bind else features
                if "projected" in HEADS[self.config.heads]:
                    projected = self.projection(cls)
                if self.config.text.loss != "off":
                    z = self.projection(self.backbone.norm(before) if self.config.text.z == "before" else cls)
            if self.with_bind:
                features = torch.cat(list(features), dim=-1)
            shared = None if self.shared is None else self.shared(features, present)
            if self.config.neck == "after" and not self.training:
                normed = self.heads.normed(features, present)
        return Output(features, projected, z, shared, present, normed)

    def _present_tokens(
        self,
        images: Tensor,
        present: Tensor,
        prompts: list[Tensor | None] | None,
        prefixes: list[Prefix | None] | None,
        keep: bool,
    ) -> Tensor:
        """The backbone's tokens ``(3, B, N, D)``, computed for the images that exist alone; zeros elsewhere."""
        rows = [row.nonzero()[:, 0] for row in present]
        parts: dict[int, Tensor] = {}
        for m, own in enumerate(rows):
            if len(own):
                one = slice(m, m + 1)
                own_prompts = None if prompts is None else [None if p is None else p[one] for p in prompts]
                own_prefixes = (
                    None if prefixes is None else [None if p is None else (p[0][one], p[1][one]) for p in prefixes]
                )
                part = self.backbone(images[one, own], own_prompts, self.config.prompts, keep, own_prefixes)
                parts[m] = part[0]
        some = next(iter(parts.values()))
        tokens = some.new_zeros(*images.shape[:2], *some.shape[1:])
        for m, part in parts.items():
            tokens[m, rows[m]] = part
        return tokens

    def exchanges(self, prompts: list[Tensor | None] | None, present: Tensor | None = None) -> Exchanges:
        """What happens behind the layers of ``bind.layers``, for the backbone.

        Args:
            prompts: per layer.
            present: bool ``(3, B)``; None = all.
        """
        found: dict[int, Callable[[Tensor], Tensor]] = {}
        for layer in self.config.bind.layers:
            assert self.bind is not None
            assert prompts is not None
            own = prompts[layer]
            assert own is not None
            where = slice(self.backbone.leading, self.backbone.leading + own.shape[1])
            length = self.config.semantic.length
            found[layer] = partial(self.bind.exchange_behind, layer, prompts=where, length=length, present=present)
        return found

    def embed(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """The test feature of each triplet, ``(B, 3 D)``; slots of absent modalities are zeros."""
        return test_feature(self(images, present))

    def bake(self) -> None:
        """For inference: compute the prompts' keys and values once, since they do not depend on the image."""
        if self.prompts is not None and self.config.prompts == "prefix":
            with torch.no_grad():
                prompts = self.prompts()
                self._baked = prompts, self.backbone.prefixes(prompts)

    def train(self, mode: bool = True) -> "DMPT":
        """Training mode forgets what was baked."""
        if mode:
            self._baked = None
        super().train(mode)
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        """A change of device or precision forgets what was baked."""
        self._baked = None
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _interact(self, tokens: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Class tokens ``(3, B, D)`` before PromptIBind, and what leaves it."""
        before = tokens[:, :, 0]
        if self.bind is None:
            return before, before
        start = self.backbone.leading + self.config.modality.length
        return before, self.bind(tokens, slice(start, start + self.config.semantic.length), present)

    def trained(self) -> dict[str, nn.Parameter]:
        """The tensors that training moves, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def trained_count(self) -> int:
        """How many numbers training moves."""
        return sum(p.numel() for p in self.trained().values())

    def own_state(self) -> dict[str, Tensor]:
        """All tensors but the frozen parameters, which the pretrained files hold."""
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_own_state(self, tensors: dict[str, Tensor], source: str) -> None:
        """Load what ``own_state`` gave, strictly.

        Raises:
            UserError: a tensor is missing, unknown, or of another shape.
        """
        expected = self.own_state()
        for name in [*expected, *tensors]:
            if name not in tensors or name not in expected:
                which = "lacks" if name not in tensors else "holds an unknown"
                raise UserError(f"{source} {which} tensor {name}; it belongs to a model with other settings")
            if tensors[name].shape != expected[name].shape:
                raise UserError(
                    f"{source}: {name} has shape {tuple(tensors[name].shape)}, the model wants "
                    f"{tuple(expected[name].shape)}; it belongs to a model with other settings"
                )
        self.load_state_dict(tensors, strict=False)
        self._baked = None


def test_feature(output: Output) -> Tensor:
    """The modalities' features side by side, L2-normalised over the slots that exist; ``(B, 3 D)``."""
    return F.normalize(concatenate(output.features if output.normed is None else output.normed), dim=-1)


test_feature.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name


def _prompted_layers(config: Config, layers: int) -> tuple[int, int]:
    """How many of the last layers have semantic, and how many modality prompts.

    Raises:
        UserError: prompts begin behind the last layer.
    """
    semantic, modality = config.semantic.first_layer, config.modality.first_layer
    semantic = layers // 2 if semantic == "middle" else semantic
    firsts = {"semantic": semantic, "modality": semantic if modality is None else modality}
    for kind, first in firsts.items():
        if first >= layers:
            raise UserError(
                f"{kind}.first_layer is {first}, but the tower has {layers} layers, counted from 0; "
                f"set it to at most {layers - 1}"
            )
    bound = list(config.bind.layers)
    if any(layer < semantic for layer in bound):
        raise UserError(f"bind.layers is {bound}, but prompts begin at layer {semantic}; name layers from there on")
    if any(layer >= layers - 1 for layer in bound):
        raise UserError(
            f"bind.layers is {bound}, but the tower has {layers} layers, counted from 0, and "
            f"bind.depth stands behind the last; name layers up to {layers - 2}"
        )
    return layers - firsts["semantic"], layers - firsts["modality"]


def _projection(config: Config, backbone: Backbone) -> nn.Linear:
    """Image features to the text space: the tower's own, frozen, or one to train."""
    if config.backbone.projection == "trained":
        return nn.Linear(backbone.width, config.backbone.projection_dim, bias=False)
    own = backbone.info.projection
    if own is None:
        raise UserError(
            f"backbone {backbone.info.name} has no image projection into a text space; "
            "set backbone.projection trained, or text.loss off and heads other than paper"
        )
    projection = nn.Linear(own.shape[1], own.shape[0], bias=False, device=own.device)
    projection.weight = nn.Parameter(own.clone().float(), requires_grad=False)
    return projection
