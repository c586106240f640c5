"""``state.safetensors``: everything that resuming needs, in one file and so in one rename; tensors only."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from dmpt.adapter.files import reading
from dmpt.adapter.folder import metadata_of, name_today
from dmpt.base.errors import UserError
from dmpt.data.records import fingerprint, same_data, short
from dmpt.extensions.assemble import Model
from dmpt.extensions.ema import EMA
from dmpt.method.network import DMPT
from dmpt.settings.config import Config
from dmpt.settings.values import difference, dotted, renamed
from dmpt.towers.tensors import read_safetensors, write_tensors
from dmpt.training.data import TrainingData

STATE = "state.safetensors"
HARMLESS = (
    "data.root",
    "data.workers",
    "backbone.weights",
    "backbone.checkpoint",
    "text.weights",
    "text.file",
    "train.save_every",
    "train.tensorboard",
)
"""Settings that change no number by themselves: a resumed run may have others. What files hold is checked by hash."""
_FINGERPRINTS = ("training data", "evaluated data")
"""What identifies a run beside its settings, and is compared as far as both runs know it."""

PLAN, PROCESSES = "train.epochs", "number of processes"
"""What a run may go on with that is not what it began with; its history tells."""


@dataclass
class Progress:
    """Where a run stands."""

    step: int = 0  # batches done
    epoch: int = 0  # in progress
    position: int = 0  # batches of it that are done
    best: float | None = None  # validation or test mAP so far, percent
    best_step: int | None = None
    saturated: int | None = None  # first step at which the text loss had nothing left to teach
    scaler: dict[str, float] = field(default_factory=dict)  # state of fp16's gradient scaler
    history: list[dict[str, Any]] = field(default_factory=list)
    """What makes this another run than its settings alone would: each with the first ``step`` that it concerns, and by
    its name what changed there, ``[before, after]``."""

    @property
    def news(self) -> list[dict[str, Any]]:
        """What of the history concerns the next step first."""
        return [event for event in self.history if event["step"] == self.step + 1]


def unread(flat: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that nothing reads beside the others: the text tower where a ready file stands for it."""
    ready = flat["text.file"] is not None and flat["text.loss"] != "identity"
    return ("text.tower", "text.weights") if ready else ()


def fixed_settings(config: Config) -> dict[str, Any]:
    """The settings that a resumed run must share with the one it goes on with."""
    flat = dotted(config)
    free = {*HARMLESS, *unread(flat)}
    return {key: value for key, value in flat.items() if key not in free}


def identity(config: Config, data: TrainingData, model: Model, processes: int) -> dict[str, Any]:
    """What makes a run this run, and no other."""
    return {
        "settings": fixed_settings(config),
        "training data": data.fingerprint,
        "evaluated data": None if data.evaluated is None else fingerprint([*chain(*data.evaluated)]),
        "number of identities": len(data.labels),
        PROCESSES: processes,
        "sha256 of the backbone's weights": model.tower.sha256,
        "sha256 of the text tower's weights": model.text_sha256,
    }


@dataclass(frozen=True, eq=False)
class State:
    """All that resuming needs, and the file that keeps it."""

    out: Path  # the run folder
    network: DMPT  # as training began
    optimizer: torch.optim.Optimizer  # of its tensors
    scaler: Any  # of fp16's gradients, or None
    ema: EMA | None  # of the network
    who: dict[str, Any]  # ``identity``

    def save(self, progress: Progress) -> None:
        """Write ``state.safetensors`` in one rename.

        Raises:
            UserError: the disk is full, ...; the state of the previous save is then untouched.
        """
        tensors = {f"model.{name}": t for name, t in self.network.own_state().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": t for name, t in self.ema.tensors.items()}
        for name, parameter in self.network.trained().items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"adam.{key}.{name}": value for key, value in moments.items()}
        if self.scaler is not None:
            progress.scaler = self.scaler.state_dict()
        metadata = {"progress": json.dumps(asdict(progress)), "identity": json.dumps(self.who)}
        write_tensors(self.out / STATE, tensors, metadata)

    def load(self, replan: bool) -> Progress:
        """Put everything back, and tell where the run stands.

        What it goes on with that it did not begin with is its newest history: another number of processes, or of epochs
        where ``replan`` allows it.

        Raises:
            UserError: the run was made with other settings, data or identities, or the file is damaged.
        """
        path = self.out / STATE
        with reading(path):
            found, metadata = read_safetensors(path)
            tensors = {_today(name): tensor for name, tensor in found.items()}
            began, progress = json.loads(metadata["identity"]), Progress(**json.loads(metadata["progress"]))
        self._go_on(began, progress, replan)
        model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
        self.network.load_own_state(model, str(path))
        parameters = self.network.trained()
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, key, parameter = name.split(".", 2)
                target = parameters[parameter]
                device = tensor.device if key == "step" else target.device
                moment = tensor.to(device, copy=True)  # Windows replaces no file that is in use
                self.optimizer.state[target][key] = moment
        if self.ema is not None:
            with reading(path):
                for name, mean in self.ema.tensors.items():
                    mean.copy_(tensors[f"ema.{name}"])
        if self.scaler is not None:
            self.scaler.load_state_dict(progress.scaler)
        return progress

    def _go_on(self, began: dict[str, Any], progress: Progress, replan: bool) -> None:
        """Refuse to go on with another run, and write into the history what may differ."""
        began["settings"] = renamed(began["settings"])
        old, new = ({**told["settings"], **told} for told in (began, self.who))
        refuse_change(old, new, self.out, {"settings", PROCESSES, *([PLAN] if replan else [])})
        changed = {name: [old[name], new[name]] for name in (PLAN, PROCESSES) if old.get(name, new[name]) != new[name]}
        if PLAN in changed and new[PLAN] <= progress.epoch:
            raise UserError(
                f"cannot resume {self.out}: {progress.epoch} of {old[PLAN]} epochs are done, and train.epochs is "
                f"{new[PLAN]}; give more than {progress.epoch}"
            )
        if changed and progress.epoch < new[PLAN]:  # else nothing is trained with it
            progress.history.append({"step": progress.step + 1, **changed})


def _today(name: str) -> str:
    """What a tensor of an older run is called now."""
    kind, _, rest = name.partition(".")
    if kind == "adam":
        moment, _, rest = rest.partition(".")
        return f"adam.{moment}.{name_today(rest)}"
    return f"{'ema' if kind == 'average' else kind}.{name_today(rest)}"


def is_finished(out: Path) -> bool:
    """Whether ``out`` holds a run that was trained to its end.

    Raises:
        UserError: its state is damaged.
    """
    path = out / STATE
    if not path.exists():
        return False
    with reading(path):
        metadata = metadata_of(path)
        epochs = json.loads(metadata["identity"])["settings"]["train.epochs"]
        return bool(json.loads(metadata["progress"])["epoch"] >= epochs)


def refuse_change(old: Mapping[str, Any], new: Mapping[str, Any], out: Path, free: Collection[str] = ()) -> None:
    """Refuse to go on with a run that is another one.

    Args:
        old: what identifies the run in ``out``, settings as dotted keys.
        new: what identifies this one; before ``backbone.grid`` was a setting, positions were taken for a square.
        out: the run folder.
        free: what may differ.

    Raises:
        UserError: something differs.
    """
    known = {"backbone.grid": square_of(new["backbone.grid"]), **old}
    for name, (before, now) in difference(known, new, free).items():  # what a file holds is checked by hash
        if name in _FINGERPRINTS and before and now:
            if same_data(before, now):
                continue
            before, now = short(before), short(now)
        raise UserError(
            f"cannot resume {out}: {name} was {before}, now it is {now}; resume with what the run began with "
            "(its config.yaml), or start another run"
        )


def square_of(grid: Sequence[int] | None) -> list[int] | None:
    """The square of as many positions: what a table was taken for before ``backbone.grid`` was a setting."""
    return None if grid is None else [math.isqrt(math.prod(grid))] * 2
