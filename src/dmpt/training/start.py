"""``init``: a run that starts from what another one trained.

What belongs to identities starts anew, as the optimiser and the schedule do; all the rest is the adapter's. So before
the first step the test features are the adapter's, bit for bit where images are prepared alike.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmpt.adapter.files import TENSORS, adapter_folder
from dmpt.adapter.folder import Card, load_card, load_tensors
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, sha256
from dmpt.extensions.assemble import Model
from dmpt.settings.config import Config
from dmpt.settings.values import difference, dotted
from dmpt.training.state import square_of

_SAME = (
    *("backbone.name", "backbone.overrides", "backbone.blocks", "backbone.norm", "backbone.antialias", "backbone.grid"),
    *("data.modalities", "feature", "neck"),
)
"""Settings by which the same tensors give other features."""
_SHAPES = (
    *_SAME,
    *("backbone.tune", "lora.", "backbone.projection", "backbone.projection_dim", "text.loss", "heads"),
    *("semantic.length", "semantic.first_layer", "semantic.share", "modality.", "bind.", "missing."),
)
"""How settings begin by which a network has other tensors."""


@dataclass(frozen=True, eq=False)
class Start:
    """An adapter that a run starts from."""

    folder: Path
    card: Card

    @classmethod
    def find(cls, init: str) -> "Start":
        """The adapter in a run folder that training selected, or an adapter by itself; a UserError where is none."""
        folder = adapter_folder(expanded(init))
        return cls(folder, load_card(folder))

    def put_into(self, model: Model, config: Config) -> str:
        """Replace the initial values of ``assemble``, wherever they are; returns a line that says what was taken.

        Raises:
            UserError: the adapter belongs to another backbone, or to a network of another form.
        """
        network, sha = model.network, model.tower.sha256
        if sha != self.card.backbone_sha256:
            raise UserError(
                f"init {self.folder} was trained on {self.card.config.backbone.name} with sha256 "
                f"{self.card.backbone_sha256}, but {config.backbone.weights} has {sha}; give backbone.weights that file"
            )
        own, (found, step) = network.own_state(), load_tensors(self.folder)
        anew = {name for name in own if _of_identities(name)}
        taken = {name: tensor for name, tensor in found.items() if not _of_identities(name)}
        old, new = dotted(self.card.config), dotted(config)
        old["backbone.grid"] = old["backbone.grid"] or square_of(new["backbone.grid"])
        other = {name for name in {*own, *taken} - anew if _shape(own, name) != _shape(taken, name)}
        differs = difference(old, new)
        if other or differs.keys() & _SAME:
            shapes = {key: pair for key, pair in differs.items() if key.startswith(_SHAPES)}
            settings = "; ".join(f"{key} is {there} there and {here} here" for key, (there, here) in shapes.items())
            raise UserError(f"init {self.folder} fits another network: {settings or ', '.join(sorted(other))}")
        network.load_own_state({**own, **taken}, str(self.folder / TENSORS))
        return (
            f"started from {self.folder} ({self.card.data.get('name')}, step {step}): "
            f"{len(taken)} tensors are taken; anew: {', '.join(sorted(anew))}, optimiser and learning rate"
        )

    def event(self) -> dict[str, Any]:
        """What the run's history tells of it: no path."""
        card = self.card
        told = {"data": card.data.get("name"), "licence": card.licence, "history": list(card.history)}
        return {"step": 1, "init": {"sha256": sha256(self.folder / TENSORS), **told}}


def _of_identities(name: str) -> bool:
    """Whether a tensor says something of the identities that were trained on, and of no others."""
    return name.endswith(".classifier.weight") or name.startswith("identity_text.")


def _shape(tensors: dict[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
