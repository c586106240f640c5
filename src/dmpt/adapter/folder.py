"""What was trained, as a small folder: ``adapter.safetensors`` and ``config.json``.

The backbone is not in it, only its name and the sha256 of its weights. Everything that preprocessing needs is. No path
of a machine is: inside a run folder they are in the run's ``config.yaml``, and of an adapter alone they are asked for.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dmpt import __version__
from dmpt.adapter.files import CARD, TENSORS, reading
from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.extensions.assemble import build_backbone, build_network
from dmpt.extensions.lora import merge_lora
from dmpt.method.network import DMPT
from dmpt.settings.config import Config
from dmpt.settings.places import PLACES, is_place, placed, without_places
from dmpt.settings.saved import read_settings
from dmpt.settings.values import checked
from dmpt.towers.image import build_vit
from dmpt.towers.packaged import local
from dmpt.towers.tensors import read_safetensors, refuse_nan, write_tensors

_FORMAT = "dmpt-adapter/1"
_RENAMED = {"bind.between.": "exchanges.", "probe.": "readout.", "shared.": "also.shared."}
"""How tensors of older adapters begin, and how they begin now."""


@dataclass(frozen=True)
class Card:
    """What travels with the tensors.

    In the file the settings name weights and words without their folders, and no data; ``data.mean`` and ``data.std``
    are filled in. A history makes another model of it than its settings alone would.
    """

    config: Config
    ids: int  # training identities
    backbone_sha256: str | None  # of the weights file; where the weights were random, of the tensors themselves
    object: str  # person or vehicle
    # name, fingerprint and size of the training set, and the fingerprint of the test split beside it
    data: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # what training reported last
    licence: str = ""  # of the backbone's weights and of the data, as far as known
    history: tuple[dict[str, Any], ...] = ()  # a start from another adapter, another plan on the way


def save_card(folder: Path, card: Card) -> None:
    """Write ``config.json``, without paths of this machine.

    Raises:
        UserError: the folder cannot be written to.
    """
    shared = replace(card, config=without_places(card.config))
    content = {"format": _FORMAT, "dmpt": __version__, **asdict(shared)}
    write_text(folder / CARD, json.dumps(content, indent=2) + "\n")


def save_tensors(folder: Path, network: DMPT, step: int) -> None:
    """Write ``adapter.safetensors`` in one rename.

    Raises:
        UserError: the disk is full, ...; an earlier adapter is then untouched.
    """
    own = network.own_state()
    # Identity tokens serve the training loss alone.
    tensors = {name: tensor for name, tensor in own.items() if not name.startswith("identity_text.")}
    # One key: safetensors writes several in any order, and equal adapters should be equal files.
    write_tensors(folder / TENSORS, tensors, {"step": str(step)})


def metadata_of(path: Path) -> dict[str, str]:
    """What a safetensors file says beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load_card(folder: Path) -> Card:
    """Read ``config.json``; where its files are on this machine, the run that it lies in knows.

    Raises:
        UserError: it is missing, not JSON, of another version, or a value of another type.
    """
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no adapter: it has no {CARD}; give the folder that training wrote") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy it again from where it was trained") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != _FORMAT:
        raise UserError(f"{path} has format {found!r}; this version of dmpt ({__version__}) reads {_FORMAT!r}")
    try:
        content = {"history": [], **content}  # older cards lack it
        card = checked(Card, {f.name: content[f.name] for f in fields(Card)}, "card")
        return replace(card, config=placed(card.config, _places_of_run(folder)))
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}; copy it again from where it was trained") from error
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}; copy it again from where it was trained") from error


def _places_of_run(folder: Path) -> dict[str, str]:
    """Where the run that an adapter lies in has its files; nothing for an adapter alone."""
    settings: dict[str, Any] = {}
    with suppress(UserError):  # there is no such file, or it is another program's
        settings = read_settings(folder.resolve().parent)
    known = {setting: settings.get(setting) for setting in PLACES} if settings.keys() >= {*PLACES} else {}
    return {setting: value for setting, value in known.items() if isinstance(value, str)}


def load(
    folder: Path, weights: str | None = None, dtype: torch.dtype | None = None, merge: bool = True
) -> tuple[DMPT, Card]:
    """The network of an adapter, in evaluation mode, on the CPU.

    Args:
        folder: holds ``adapter.safetensors`` and ``config.json``.
        weights: where the backbone's weights are on this machine, instead of where training found them.
        dtype: compute precision of the frozen backbone; None = float32.
        merge: put low-rank updates into the tower's weights, which then costs what a plain one costs; else they stay
            beside them, for a tower that others use too.

    Raises:
        UserError: a file is missing or damaged, or the backbone is not the one that the adapter was trained on.
    """
    card = load_card(folder)
    return network_of(folder, card, weights, dtype, merge)[0], card


def network_of(
    folder: Path, card: Card, weights: str | None = None, dtype: torch.dtype | None = None, merge: bool = True
) -> tuple[DMPT, int]:
    """``load`` where the card has been read; the network, and the step at which it was saved.

    Raises:
        UserError: as ``load``.
    """
    backbone_config = card.config.backbone if weights is None else replace(card.config.backbone, weights=weights)
    named = backbone_config.weights
    if weights is None and is_place("backbone.weights", named) and not local(named).is_file():
        raise UserError(
            f"{folder} needs the weights of {backbone_config.name} that it was trained on, {Path(named).name} with "
            f"sha256 {card.backbone_sha256}, and they are not at {named}; give them with --backbone.weights"
        )
    with torch.random.fork_rng(devices=[]):
        # Where weights are random these are the weights. Not torch.manual_seed, which moves every GPU's state too.
        torch.default_generator.manual_seed(card.config.train.seed)
        # A card without a grid is older than the setting.
        vit, info = build_vit(backbone_config, card.config.data.size, square=backbone_config.grid is None)
    if info.sha256 != card.backbone_sha256:
        raise UserError(
            f"{folder} was trained on {card.config.backbone.name} with sha256 {card.backbone_sha256}, but "
            f"{backbone_config.weights} has {info.sha256}; give the right file with --backbone.weights"
        )
    tensors, step = load_tensors(folder)
    words = tensors.get("prompts.modality.words")
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, and replaced by the file's
        network, _ = build_network(card.config, build_backbone(card.config, vit), info, card.ids, words)
    network.load_own_state(tensors, str(folder / TENSORS))
    network.eval()
    if merge:
        merge_lora(network.backbone)
    if dtype is not None:
        network.backbone.keep_in(dtype)
    return network, step


def load_tensors(folder: Path) -> tuple[dict[str, Tensor], int]:
    """What was trained, by the names of today, and the training step at which it was saved.

    Raises:
        UserError: the file is missing or damaged, or holds NaN or infinity.
    """
    path = folder / TENSORS
    with reading(path):
        found, said = read_safetensors(path)
        tensors, step = {name_today(name): tensor for name, tensor in found.items()}, int(said["step"])
    refuse_nan(tensors, path)
    return tensors, step


def name_today(name: str) -> str:
    """What a tensor of an older file is called now."""
    old = next((prefix for prefix in _RENAMED if name.startswith(prefix)), "")
    return _RENAMED.get(old, "") + name.removeprefix(old)


def chosen_by(folder: Path, card: Card) -> str:
    """How training chose an adapter: ``val`` or ``test`` where it is the best epoch's, wherever it was copied to."""
    return card.config.train.select if card.metrics.get("which", folder.name) == "best" else "last step"
