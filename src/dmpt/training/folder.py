"""A run folder: resolved config, log, resume state, last and best adapter, environment.

config.yaml        the settings, all of them
environment.json   versions, commit, command
metrics.jsonl      one line per step and per evaluation
state.safetensors  everything that resuming needs, in one file and so in one rename; tensors only
last/, best/       adapters (``dmpt.adapter.folder``)
.lock              held by the process that trains here; of no use to anybody later
"""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout
from safetensors.torch import load_file

from dmpt.adapter.folder import CARD, TENSORS, metadata_of, reading
from dmpt.base.environment import environment
from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.base.yaml import load
from dmpt.extensions.ema import Average
from dmpt.method.network import DMPT
from dmpt.settings.config import Config
from dmpt.settings.values import dotted, flatten, nest
from dmpt.towers.tensors import write_tensors

STATE, LOG, CONFIG, ENVIRONMENT = "state.safetensors", "metrics.jsonl", "config.yaml", "environment.json"
LOCK = ".lock"
HARMLESS = (
    "data.root",
    "data.workers",
    "backbone.weights",
    "text.weights",
    "text.file",
    "train.save_every",
    "train.tensorboard",
)
"""Settings that change no number by themselves: a resumed run may have others. What files hold is checked by hash."""


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


def unread(flat: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings that nothing reads beside the others: the text tower where a ready file stands for it."""
    ready = flat["text.file"] is not None and flat["text.loss"] != "identity"
    return ("text.tower", "text.weights") if ready else ()


def fixed_settings(config: Config) -> dict[str, Any]:
    """The settings that a resumed run must share with the one it goes on with."""
    flat = dotted(config)
    free = {*HARMLESS, *unread(flat)}
    return {key: value for key, value in flat.items() if key not in free}


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder's ``config.yaml``, as dotted keys.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    path = folder / CONFIG
    try:
        return flatten(load(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove its folder and run again") from error


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that is in use, before any work is done; nothing is written.

    Raises:
        UserError: ``out`` is a file, holds something and ``resume`` is off, or holds something that is no run. What a
            kill in a run's first moments leaves is one.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    if not resume:
        raise UserError(f"--out {out} is in use; give another folder, or --resume to go on with this run")
    # dots: the temporary names under which files are written
    first = LOCK, ENVIRONMENT, f".{ENVIRONMENT}.", f".{CONFIG}."
    begun = (out / CONFIG).exists() and (out / ENVIRONMENT).exists()
    if not begun and not all(path.name.startswith(first) for path in out.iterdir()):
        raise UserError(f"--out {out} holds something, but no run to resume; give another folder")


def begin(out: Path, config: Config) -> None:
    """Write what is known of the run; one that was killed before it saved anything begins again.

    Raises:
        UserError: the folder cannot be written, or its run began with other settings.
    """
    if (out / STATE).exists():
        return
    if (out / CONFIG).exists():
        _refuse_change(read_settings(out), fixed_settings(config), out)
    write_text(out / ENVIRONMENT, json.dumps(environment(), indent=2) + "\n")
    write_text(out / CONFIG, yaml.safe_dump(nest(dotted(config)), sort_keys=False))
    cut_log(out, 0)


def sweep(out: Path) -> None:
    """Remove what a kill left of files that were being written; nobody else may be writing there."""
    temporary = tuple(f".{name}." for name in (STATE, LOG, CONFIG, ENVIRONMENT, TENSORS, CARD))
    for path in out.rglob(".*"):
        if path.name.startswith(temporary):
            with suppress(OSError):
                path.unlink()


def save_state(
    out: Path,
    network: DMPT,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    who: dict[str, Any],
    average: Average | None = None,
) -> None:
    """Write ``state.safetensors`` in one rename.

    Raises:
        UserError: the disk is full, ...; the state of the previous save is then untouched.
    """
    tensors = {f"model.{name}": t for name, t in network.own_state().items()}
    tensors |= {f"average.{name}": t for name, t in (average.tensors if average is not None else {}).items()}
    names = {id(p): name for name, p in network.trained().items()}
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            tensors[f"adam.{key}.{names[id(parameter)]}"] = value
    metadata = {"progress": json.dumps(asdict(progress)), "identity": json.dumps(who)}
    write_tensors(out / STATE, tensors, metadata)


def load_state(
    out: Path,
    network: DMPT,
    optimizer: torch.optim.Optimizer,
    who: dict[str, Any],
    average: Average | None = None,
) -> Progress:
    """Put everything back.

    Raises:
        UserError: the run was made with other settings, data or identities, or the file is damaged.
    """
    path = out / STATE
    with reading(path):
        tensors, metadata = load_file(path), metadata_of(path)
        began, progress = json.loads(metadata["identity"]), Progress(**json.loads(metadata["progress"]))
    _refuse_change(flatten(began), flatten(who), out)
    model = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    network.load_own_state(model, str(path))
    parameters = network.trained()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, key, parameter = name.split(".", 2)
            target = parameters[parameter]
            optimizer.state[target][key] = tensor if key == "step" else tensor.to(target.device)
    if average is not None:
        with reading(path):
            for name, mean in average.tensors.items():
                mean.copy_(tensors[f"average.{name}"])
    return progress


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


def cut_log(out: Path, step: int) -> None:
    """Drop lines after the saved step, which will be run again, and a line that a kill cut short."""
    kept = [json.dumps(line) + "\n" for line in read_log(out) if line["step"] <= step]
    write_text(out / LOG, "".join(kept))


def read_log(out: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` that are whole; none where the file is absent (an adapter alone)."""
    path, found = out / LOG, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            content = json.loads(line)
        except ValueError:  # cut short by a kill
            continue
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            found.append(content)
    return found


def _refuse_change(old: Mapping[str, Any], new: Mapping[str, Any], out: Path) -> None:
    younger = dotted(Config())  # a setting that is younger than a run had its default then
    for what, now in new.items():
        name = what.removeprefix("settings.")
        before = old.get(what, younger.get(name, now))
        if now != before:
            raise UserError(
                f"cannot resume {out}: {name} was {before}, now it is {now}; resume with what the run began with "
                "(its config.yaml), or start another run"
            )


def summary_writer() -> Any:
    """TensorBoard's writer.

    Raises:
        UserError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("train.tensorboard needs TensorBoard: pip install 'dmpt[track]'") from error
    return SummaryWriter


class Log:
    """``metrics.jsonl``, a line per step and evaluation, and TensorBoard where asked for."""

    def __init__(self, out: Path, tensorboard: bool, main: bool, step: int):
        self.path = out / LOG
        self.file = self.path.open("a", encoding="utf-8") if main else None
        self.events = None
        if tensorboard and main:
            self.events = summary_writer()(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line, at once."""
        if self.file is not None:
            try:
                self.file.write(json.dumps(line) + "\n")
                self.file.flush()
            except OSError as error:
                said = (
                    f"cannot write {self.path}: {error.strerror}; what was saved is intact; free space, then --resume"
                )
                raise UserError(said) from error
        if self.events is not None:
            for name, value in flatten(line).items():
                if isinstance(value, (int, float)) and name != "step":
                    self.events.add_scalar(name, value, line["step"])

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # a full disk has been reported already
                self.file.close()
        if self.events is not None:
            self.events.close()


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Inside, no other process trains in the folder; the lock ends with the process, however that ends.

    Raises:
        UserError: another does, or the folder cannot be written.
    """
    lock = FileLock(out / LOCK, timeout=0)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"{out}: another process is training there; wait until it has ended, or stop it") from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out, or check rights") from error
    try:
        yield
    finally:
        lock.release()


class Stopped(KeyboardInterrupt):
    """The user stopped the run, and its state is saved."""


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
