"""``dmpt train``."""

from pathlib import Path

from jsonargparse import Namespace

from dmpt.base.terminal import console
from dmpt.verbs.parser import Parser, add_settings, config_of


def add(parser: Parser) -> None:
    """Train a model on the training split."""
    add_settings(parser)
    parser.add_argument("--out", type=Path, required=True, help="Run folder to write.")
    parser.add_argument("--resume", action="store_true", help="Go on with the run in --out; with more epochs too.")
    parser.add_argument("--skip-broken", action="store_true", help="Leave out samples with unreadable images.")


def run(arguments: Namespace) -> None:
    """Run the verb ``train``."""
    from dmpt.training.train import train

    out = arguments.out
    train(config_of(arguments), out, resume=arguments.resume, skip_broken=arguments.skip_broken)
    console.print(f"done: {out}; next: dmpt evaluate {out}", soft_wrap=True)  # in the main process alone
