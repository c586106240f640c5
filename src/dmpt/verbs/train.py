"""``dmpt train``."""

from pathlib import Path

from dmpt.base.terminal import console
from dmpt.settings.config import Config


def run(config: Config, out: Path, resume: bool = False, skip_broken: bool = False) -> None:
    """Train a model on the training split.

    Args:
        config: settings
        out: Run folder to write.
        resume: Go on with the run in --out; with more epochs too.
        skip_broken: Leave out samples with unreadable images.
    """
    from dmpt.training.train import train

    train(config, out, resume=resume, skip_broken=skip_broken)
    console.print(f"done: {out}; next: dmpt evaluate {out}", soft_wrap=True)  # in the main process alone
