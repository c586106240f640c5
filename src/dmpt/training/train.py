"""``dmpt train``."""

from pathlib import Path

from dmpt.base.errors import one_line
from dmpt.base.files import expanded
from dmpt.base.stopping import Stopped
from dmpt.base.terminal import console
from dmpt.evaluation.calibrate import calibrate_run
from dmpt.settings.config import Config
from dmpt.training.trainer import Trainer


def train(config: Config, out: str | Path, *, resume: bool = False, skip_broken: bool = False) -> Path:
    """Train, as ``dmpt train`` does: from several processes where torchrun started them.

    Args:
        config: the settings.
        out: run folder to write.
        resume: go on with the run in ``out``; ``config`` may give other epochs.
        skip_broken: leave out samples with unreadable images, counted and listed.

    Returns:
        The folder of the adapter that training selected (``train.select``).

    Raises:
        UserError: settings, data, weights or the folder are not as they must be, or training diverged.
        KeyboardInterrupt: the user stopped the run; its state is saved, and ``resume`` goes on.
    """
    trainer = Trainer(config, expanded(out), resume, skip_broken, replan=True)
    fit(trainer)
    selected = trainer.data.evaluated is not None and config.train.epochs
    return trainer.out / ("best" if selected else "last")


def fit(trainer: Trainer) -> None:
    """Train, and calibrate what was selected on identities held out; when the user stops it, say how to go on."""
    try:
        trainer.fit()
    except Stopped:
        step = trainer.progress.step
        console.print(f"stopped after step {step}, saved; go on with the same command and --resume", soft_wrap=True)
        raise
    data = trainer.data
    if trainer.main and data.select == "val" and data.evaluated is not None and trainer.progress.best is not None:
        console.print(one_line(calibrate_run(trainer.out, data.dataset, data.evaluated[0])))
