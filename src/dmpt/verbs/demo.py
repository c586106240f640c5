"""``dmpt demo``."""

from pathlib import Path

from dmpt.base.stopping import Stopped
from dmpt.base.terminal import stderr
from dmpt.settings.numbers import Seed


def run(out: Path = Path("demo"), quick: bool = False, seed: Seed = 0) -> None:
    """Render a small world, train on it, compare, and write a page about it; needs no data, no GPU, no network.

    Args:
        out: Folder to write; an earlier demo in it is replaced.
        quick: A smaller world and fewer epochs: under a minute.
        seed: Of training.
    """
    from dmpt.demo.demo import demo

    try:
        demo(out, quick, seed)
    except Stopped:
        stderr.write("stopped; the next demo begins anew\n")
        raise
