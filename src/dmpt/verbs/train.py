"""``dmpt train``."""

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from dmpt.base.stopping import Stopped
from dmpt.base.terminal import stderr
from dmpt.verbs.parser import Parser, add_settings, config_of

if TYPE_CHECKING:
    from dmpt.training.trainer import Trainer


def add(parser: Parser) -> None:
    """Train a model on the training split."""
    add_settings(parser)
    parser.add_argument("--out", type=Path, required=True, help="Run folder to write.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out; with more epochs too.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out samples with unreadable images.")


def run(arguments: Namespace) -> None:
    """Run the verb ``train``."""
    from dmpt.training.trainer import Trainer

    out = arguments.out
    trainer = Trainer(config_of(arguments), out, arguments.resume, arguments.skip_broken, replan=True)
    fit(trainer)
    if trainer.main:
        stderr.write(f"done: {out}; next: dmpt evaluate {out}\n")


def fit(trainer: "Trainer") -> None:
    """Train; when the user stops it, say how to go on."""
    try:
        trainer.fit()
    except Stopped:
        if trainer.main:
            stderr.write(
                f"stopped after step {trainer.progress.step}, saved; go on with the same command and --resume\n"
            )
        raise
