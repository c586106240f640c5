"""``metrics.jsonl``: a line per step and per evaluation."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.settings.values import flatten

LOG = "metrics.jsonl"


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
