"""``dmpt demo``."""

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt

from dmpt.base.stopping import Stopped
from dmpt.base.terminal import stderr
from dmpt.verbs.parser import Parser


def add(parser: Parser) -> None:
    """Render a small world, train on it, compare, and write a page about it; needs no data, no GPU, no network."""
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="Folder to write; an earlier demo in it is replaced."
    )
    parser.add_argument("--quick", action="store_true", help="A smaller world and fewer epochs: under a minute.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Of training.")


def run(arguments: Namespace) -> None:
    """Run the verb ``demo``."""
    from dmpt.demo.demo import demo

    try:
        demo(arguments.out, arguments.quick, arguments.seed)
    except Stopped:
        stderr.write("stopped; the next demo begins anew\n")
        raise
