"""DMPT: a batch of samples in, features out (the paper's Fig. 2).

Frozen blocks with prompts -> PromptIBind -> the tower's final norm on the class token -> feature. With no prompts and
no interaction layer the feature of each modality is the tower's own.

Shapes: 3 modalities, B samples, D token width, d width of the text space.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmpt.base.errors import UserError
from dmpt.method.backbone import Backbone, Prefix
from dmpt.method.bind import PromptIBind
from dmpt.method.modalities import MODALITY_COUNT, Features
from dmpt.method.prompts import Prompts


@dataclass(frozen=True)
class Output:
    """What the network says of a batch, in float32.

    Attributes:
        features: of each modality, ``(3, B, D)``; zeros where it is absent.
        projected: their image projections ``(3, B, d)``; None unless a head uses them.
        z: projected class tokens for the text loss ``(3, B, d)`` (section 3.2); None without one.
        also: what parts that are not the paper's say, ``(B, ...)`` by name.
    """

    features: Features
    projected: Features | None = None
    z: Features | None = None
    also: dict[str, Tensor] = field(default_factory=dict)


class ClassToken(nn.Module):
    """The paper's readout: the feature is the enhanced class token, behind the tower's final norm."""

    def forward(self, norm: Callable[[Tensor], Tensor], cls: Tensor, semantic: Tensor | None) -> Tensor:
        """Class tokens ``(3, B, D)``, and the bind's semantic prompts ``(3, B, S, D)``, to ``(3, B, D)``."""
        return norm(cls)


class DMPT(nn.Module):
    """The whole method; what is None does not exist, so an optimiser cannot move it.

    Children that are added after construction (heads) are trained and saved with it.

    Args:
        backbone: the pretrained tower.
        prompts: M and S of every layer.
        bind: PromptIBind.
        projection: ImageProj of section 3.2, from D to d.
        semantic: where S stands among the tower's last tokens.
        form: how prompts enter the tower.
        text_from: where z of Eq. 5 is taken: class tokens ``before`` or ``after`` the interaction; None = no z.
        project_features: also give the features' projections.
        readout: from enhanced class tokens to features.
        exchanges: by layer of the tower, from the tokens that leave it, ``Features`` ``(3, B, N + P, D)``, to those
            that enter the next, ``(3, B, N, D)``.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Prompts | None = None,
        bind: PromptIBind | None = None,
        projection: nn.Linear | None = None,
        *,
        semantic: slice = slice(0),
        form: Literal["prefix", "token"] = "prefix",
        text_from: Literal["before", "after"] | None = None,
        project_features: bool = False,
        readout: nn.Module | None = None,
        exchanges: dict[int, nn.Module] | None = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.prompts = prompts
        self.bind = bind
        self.exchanges = nn.ModuleDict({str(layer): module for layer, module in (exchanges or {}).items()})
        self.readout = readout or ClassToken()
        self.projection = projection
        self.also = nn.ModuleDict()  # each from ``Features`` to a tensor ``(B, ...)``
        self.semantic, self.form, self.text_from, self.project_features = semantic, form, text_from, project_features
        self.at_test: Callable[[Features], Features] = lambda features: features
        self.dense = bool(self.exchanges)  # compute absent images too: no step depends on what is there
        self._baked: tuple[list[Tensor | None], list[Prefix | None]] | None = None

    def forward(self, images: Tensor, present: Tensor | None = None) -> Output:
        """Features of a batch.

        Args:
            images: normalised, ``(3, B, 3, H, W)``, modality first; where a modality is absent nothing is read.
            present: bool ``(3, B)``, which modalities a sample has, at least one; None = all.
        """
        return self.read(self.tokens(images, present), present)

    def tokens(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """The tower's tokens ``(3, B, N, D)`` (Eq. 7-10), where absent of no meaning; arguments as for ``forward``."""
        prompts, prefixes = self._baked or (self.prompts() if self.prompts is not None else None, None)
        run = partial(self.backbone, form=self.form, keep_prompts=self.bind is not None)
        if present is None or self.dense:
            images = Features(images, present).masked().x
            x: Tensor = run(images.flatten(0, 1), prompts, prefixes=prefixes, behind=self.behind(present))
            return x.view(*images.shape[:2], *x.shape[1:])
        parts: dict[int, Tensor] = {}
        for m, here in enumerate(present):
            if here.any():
                own = None if prompts is None else [None if p is None else p[m : m + 1] for p in prompts]
                kv = None if prefixes is None else [p and (p[0][m : m + 1], p[1][m : m + 1]) for p in prefixes]
                parts[m] = run(images[m, here], own, prefixes=kv, modalities=(m,))
        some = next(iter(parts.values()))
        tokens: Tensor = some.new_zeros(*images.shape[:2], *some.shape[1:])
        for m, part in parts.items():
            tokens[m, present[m]] = part
        return tokens

    def behind(self, present: Tensor | None = None) -> dict[int, Callable[[Tensor], Tensor]]:
        """What happens behind layers of the tower, to tokens ``(3 B, N + P, D)``."""

        def exchanged(module: Any, x: Tensor) -> Tensor:
            out: Tensor = module.behind(Features(x.view(MODALITY_COUNT, -1, *x.shape[1:]), present))
            return out.flatten(0, 1)

        return {int(layer): partial(exchanged, module) for layer, module in self.exchanges.items()}

    def read(self, tokens: Tensor, present: Tensor | None = None) -> Output:
        """Features from the tower's tokens ``(3, B, N, D)``, of which those of absent modalities are not read."""
        before = cls = tokens[:, :, 0]
        semantic = None
        if self.bind is not None:
            cls, semantic = self.bind(Features(tokens, present), self.semantic)  # Eq. 11-16
        with torch.autocast(tokens.device.type, enabled=False):  # norm, projection and all that follows: float32
            features = Features(self.readout(self.backbone.norm, cls, semantic), present).masked()
            own = features.x[..., : self.backbone.width]  # a readout may put more beside the class token
            projected = self._project(own, present) if self.project_features else None
            z = None
            if self.text_from is not None:
                z = self._project(self.backbone.norm(before) if self.text_from == "before" else own, present)
            also = {name: part(features) for name, part in self.also.items()}
        return Output(features, projected, z, also)

    def _project(self, features: Tensor, present: Tensor | None) -> Features:
        assert self.projection is not None
        return Features(self.projection(features), present)

    def embed(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """The test feature of each sample, ``(B, 3 D)``; zeros where a modality is absent."""
        return self.test_feature(self(images, present).features)

    def test_feature(self, features: Features) -> Tensor:
        """The modalities' features side by side, L2-normalised over those that exist; ``(B, 3 D)``."""
        return F.normalize(self.at_test(features).side_by_side(), dim=-1)

    def bake(self) -> None:
        """For inference: compute the prompts' keys and values once, since they do not depend on the image."""
        if self.prompts is not None and self.form == "prefix":
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
