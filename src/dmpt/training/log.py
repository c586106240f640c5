"""``metrics.jsonl``: a line per step, per epoch and per evaluation."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.settings.values import flatten

LOG = "metrics.jsonl"


class Log:
    """``metrics.jsonl``, and TensorBoard where asked for; silent but in the main process."""

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
                raise UserError(
                    f"cannot write {self.path}: {error.strerror}; what was saved is intact; free space, then --resume"
                ) from error
        if self.events is not None:
            for name, value in flatten(line).items():
                if isinstance(value, (int, float)) and name != "step":
                    self.events.add_scalar(name, value, line["step"])

    def write_epoch(self, step: int, epoch: int, seconds: float, steps: Sequence[float]) -> None:
        """At the end of an epoch, counted from 0: the seconds that the whole of it and its steps took, and memory."""
        # loading, forward and backward; a tenth of the steps took less: the machine may have other work meanwhile
        typical = sorted(steps)[len(steps) // 10]
        took = {"epoch_seconds": round(seconds, 2), "step_seconds": round(typical, 5)}
        self.write({"step": step, "epoch": epoch, **took, "peak_memory_bytes": _peak_memory()})

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # a full disk has been reported already
                self.file.close()
        if self.events is not None:
            self.events.close()


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


def cut_log(out: Path, step: int) -> None:
    """Drop lines after the saved step, which will be run again, and a line that a kill cut short."""
    kept = [json.dumps(line) + "\n" for line in read_log(out) if line["step"] <= step]
    write_text(out / LOG, "".join(kept))


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


def _peak_memory() -> int | None:
    """The most bytes that were in use: of the GPU where there is one, else by this process; None on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
