"""A run folder: resolved config, log, resume state, last and best adapter, environment.

config.yaml        the settings, all of them
environment.json   versions, commit, command
metrics.jsonl      one line per step and per evaluation
state.safetensors  everything that resuming needs, in one file and so in one rename; tensors only
last/, best/       adapters (``dmpt.adapter``)
"""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from safetensors import safe_open

from dmpt.adapter import read_tensors_file, write_tensors
from dmpt.config import Config
from dmpt.environment import environment
from dmpt.errors import UserError
from dmpt.files import write_text
from dmpt.model.network import DMPT

STATE = "state.safetensors"
LOG = "metrics.jsonl"
HARMLESS = ("data.root", "data.workers", "train.save_every", "train.tensorboard")
"""Settings that change no number: a resumed run may have others."""


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: batches done.
        epoch: epoch in progress.
        position: batches of it that are done.
        best: best validation or test mAP in percent so far.
        best_step: its step.
        saturated: first step at which the text loss had nothing left to teach.
        scaler: state of fp16's gradient scaler.
    """

    step: int = 0
    epoch: int = 0
    position: int = 0
    best: float | None = None
    best_step: int | None = None
    saturated: int | None = None
    scaler: dict[str, float] = field(default_factory=dict)


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and key != "overrides":
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def identity(config: Config, data: str, ids: int, world: int) -> dict[str, Any]:
    """What a resumed run must share with the one it goes on with."""
    settings = {key: value for key, value in flatten(asdict(config)).items() if key not in HARMLESS}
    return {"settings": settings, "training data": data, "number of identities": ids, "number of processes": world}


def open_run(out: Path, config: Config, resume: bool) -> bool:
    """Prepare the folder.

    Returns:
        Whether there is a state to go on from.

    Raises:
        UserError: the folder is in use and ``resume`` is off.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.exists() and any(out.iterdir()) and not resume:
        raise UserError(f"--out {out} is in use; give another folder, or --resume to go on with this run")
    if (out / STATE).exists():
        return True
    plain = json.loads(json.dumps(asdict(config)))  # tuples as lists
    write_text(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))
    write_text(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
    return False


def save_state(
    out: Path, network: DMPT, optimizer: torch.optim.Optimizer, progress: Progress, who: dict[str, Any]
) -> None:
    """Write ``state.safetensors`` in one rename.

    Raises:
        UserError: the disk is full, ...; the state of the previous save is then untouched.
    """
    tensors = {f"model.{name}": t for name, t in network.own_state().items()}
    names = {id(p): name for name, p in network.trained().items()}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            tensors[f"adam.{key}.{names[id(parameter)]}"] = value
    metadata = {"progress": json.dumps(asdict(progress)), "identity": json.dumps(who)}
    write_tensors(out / STATE, {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, metadata)


def load_state(out: Path, network: DMPT, optimizer: torch.optim.Optimizer, who: dict[str, Any]) -> Progress:
    """Put everything back, and cut the log to the step of the state.

    Raises:
        UserError: the run was made with other settings, data or identities, or the file is damaged.
    """
    path = out / STATE
    tensors = read_tensors_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    _refuse_change(json.loads(metadata["identity"]), json.loads(json.dumps(who)), out)
    progress = Progress(**json.loads(metadata["progress"]))
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    network.load_own_state(model, str(path))
    parameters = network.trained()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, key, parameter = name.split(".", 2)
            target = parameters[parameter]
            optimizer.state[target][key] = tensor if key == "step" else tensor.to(target.device)
    _cut_log(out / LOG, progress.step)
    return progress


def _refuse_change(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    for what, before in flatten(old).items():
        now = flatten(new).get(what)
        if now != before:
            name = what.removeprefix("settings.")
            raise UserError(
                f"cannot resume {out}: {name} was {before}, now it is {now}; resume with what the run began with "
                "(its config.yaml), or start another run"
            )


def _cut_log(path: Path, step: int) -> None:
    """Drop lines after the saved step, which will be run again, and a line that a kill cut short."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            continue
    write_text(path, "".join(kept))


class Log:
    """``metrics.jsonl``, a line per step and evaluation, and TensorBoard where asked for."""

    def __init__(self, out: Path, tensorboard: bool, main: bool):
        self.file = (out / LOG).open("a", encoding="utf-8") if main else None
        self.events = None
        if tensorboard and main:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise UserError("train.tensorboard needs TensorBoard: pip install 'dmpt[track]'") from error
            self.events = SummaryWriter(str(out / "tensorboard"))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, at once."""
        if self.file is not None:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        if self.events is not None:
            for name, value in flatten(line).items():
                if isinstance(value, (int, float)) and name != "step":
                    self.events.add_scalar(name, value, line["step"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()
        if self.events is not None:
            self.events.close()


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks for a stop after the step in progress; a second one stops at once."""
    asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
