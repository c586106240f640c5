"""DMPT: a batch of samples in, features out (the paper's Fig. 2).

Frozen blocks with prompts -> PromptIBind -> the tower's final norm on the class token -> feature. With no prompts and
no interaction layer the feature of each modality is the tower's own.

Shapes: 3 modalities, B samples, D token width, d width of the text space.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.method.backbone import Backbone, Form, LayerPrompts
from dmpt.method.bind import PromptIBind
from dmpt.method.modalities import MODALITY_COUNT, Features
from dmpt.method.prompts import Prompts
from dmpt.towers.partly_trained import PartlyTrained

Baked = Sequence[LayerPrompts] | None


@dataclass(frozen=True)
class Output:
    """What the network says of a batch, in float32."""

    features: Features  # of each modality, (3, B, D); zeros where it is absent
    projected: Features | None = None  # their image projections (3, B, d), where a head uses them
    z: Features | None = None  # projected class tokens for the text loss (3, B, d), section 3.2
    also: dict[str, Tensor] = field(default_factory=dict)  # what parts that are not the paper's say, (B, ...)


class ClassToken(nn.Module):
    """The paper's readout: the feature is the enhanced class token, behind the tower's final norm."""

    def forward(self, norm: Callable[[Tensor], Tensor], cls: Tensor, semantic: Tensor | None) -> Tensor:
        """Class tokens ``(3, B, D)``, and the bind's semantic prompts ``(3, B, S, D)``, to ``(3, B, D)``."""
        return norm(cls)


class DMPT(PartlyTrained):
    """The whole method. Children that are added later (heads) are trained and saved with it.

    Args:
        backbone: the pretrained tower.
        prompts: M and S of every layer.
        bind: PromptIBind.
        projection: ImageProj of section 3.2, from D to d.
        semantic: where S stands among the tower's last tokens.
        form: how prompts enter the tower.
        text_from: where z of Eq. 5 is taken, before or after the interaction; None = no z.
        project_features: also give the features' projections.
        readout: from enhanced class tokens to features.
        exchanges: by layer of the tower, modules whose ``behind(tokens, present)`` takes the tokens that leave it,
            ``(3 B, N + P, D)``, to those that enter the next, ``(3 B, N, D)``.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts | None = None,
        bind: PromptIBind | None = None,
        projection: nn.Linear | None = None,
        *,
        semantic: slice = slice(0),
        form: Form = "prefix",
        text_from: Literal["before", "after"] | None = None,
        project_features: bool = False,
        readout: nn.Module | None = None,
        exchanges: dict[int, nn.Module] | None = None,
    ):
        super().__init__()
        self.backbone, self.prompts, self.bind = backbone, prompts, bind
        self.exchanges = nn.ModuleDict({str(layer): module for layer, module in (exchanges or {}).items()})
        self.readout, self.projection = readout or ClassToken(), projection
        self.also = nn.ModuleDict()  # each from ``Features`` to a tensor ``(B, ...)``
        self.semantic, self.form, self.text_from, self.project_features = semantic, form, text_from, project_features
        self.at_test: Callable[[Features], Features] = lambda features: features
        self.dense = bool(self.exchanges)  # compute absent images too: no step depends on what is there

    def forward(self, images: Tensor, present: Tensor | None = None, baked: Baked = None) -> Output:
        """Features of a batch.

        Args:
            images: normalised, ``(3, B, 3, H, W)``, modality first; where a modality is absent nothing is read.
            present: bool ``(3, B)``, which modalities a sample has, at least one; None = all.
            baked: ``bake``'s prompts, where they are constants.
        """
        return self.read(self.tokens(images, present, baked), present)

    def tokens(self, images: Tensor, present: Tensor | None = None, baked: Baked = None) -> Tensor:
        """The tower's tokens ``(3, B, N + P, D)`` (Eq. 7-10), of no meaning where absent; as ``forward`` is called."""
        prompts = baked if baked is not None or self.prompts is None else self.prompts()
        run = partial(self.backbone, form=self.form, keep_prompts=self.bind is not None)
        if present is None or self.dense:
            images = Features(images, present).masked().x
            x: Tensor = run(images.flatten(0, 1), prompts, behind=self.behind(present))
            return x.view(*images.shape[:2], *x.shape[1:])
        parts = {}
        for m, here in enumerate(present):
            if here.any():
                own = None if prompts is None else [_of(p, m, here) for p in prompts]
                parts[m] = run(images[m, here], own, modalities=(m,))
        some = next(iter(parts.values()))
        tokens: Tensor = some.new_zeros(*images.shape[:2], *some.shape[1:])
        for m, part in parts.items():
            tokens[m, present[m]] = part
        return tokens

    def behind(self, present: Tensor | None = None) -> dict[int, Callable[[Tensor], Tensor]]:
        """By layer, from the tokens that leave it ``(3 B, N + P, D)`` to those that enter the next ``(3 B, N, D)``."""
        modules: Any = self.exchanges.items()
        return {int(layer): partial(module.behind, present=present) for layer, module in modules}

    def read(self, tokens: Tensor, present: Tensor | None = None) -> Output:
        """Features from the tower's tokens ``(3, B, N + P, D)``, of which those of absent modalities are not read."""
        before = cls = tokens[:, :, 0]
        semantic = None
        if self.bind is not None:
            cls, semantic = self.bind(Features(tokens, present), self.semantic)  # Eq. 11-16
        with torch.autocast(tokens.device.type, enabled=False):  # norm, projection and all that follows: float32
            features = Features(self.readout(self.backbone.norm, cls, semantic), present).masked()
            own = features.x[..., : self.backbone.width]  # the class token's part
            projected = self._project(own, present) if self.project_features else None
            z = None
            if self.text_from is not None:
                z = self._project(self.backbone.norm(before) if self.text_from == "before" else own, present)
            also = {name: part(features) for name, part in self.also.items()}
        return Output(features, projected, z, also)

    def _project(self, features: Tensor, present: Tensor | None) -> Features:
        assert self.projection is not None
        return Features(self.projection(features), present)

    def embed(self, images: Tensor, present: Tensor | None = None, baked: Baked = None) -> Tensor:
        """The test feature of each sample, ``(B, 3 D)``; zeros where a modality is absent."""
        return self.test_feature(self(images, present, baked).features)

    def test_feature(self, features: Features) -> Tensor:
        """The modalities' features side by side, L2-normalised over those that exist; ``(B, 3 D)``."""
        return F.normalize(self.at_test(features).side_by_side(), dim=-1)

    def bake(self) -> Baked:
        """For inference: prompts as keys and values, which do not depend on the image; None where they stay tokens."""
        if self.prompts is None or self.form == "token":
            return None
        prompts: list[LayerPrompts] = [*self.prompts()]
        full = {*map(int, self.exchanges), *([self.backbone.depth - 1] if self.bind is not None else [])}
        for layer, own in enumerate(prompts):
            if isinstance(own, Tensor) and layer not in full:
                prompts[layer] = self.backbone.prefix(layer, own)
        return prompts


def _of(prompts: LayerPrompts, m: int, here: Tensor) -> LayerPrompts:
    """Those of one modality: one set for all its images, or those of the images that are ``here``, bool ``(B,)``."""
    if isinstance(prompts, tuple):
        return tuple(_of(part, m, here) for part in prompts)  # type: ignore[return-value]
    own = None if prompts is None else prompts.chunk(MODALITY_COUNT)[m]
    return own if own is None or len(own) == 1 else own[here]
