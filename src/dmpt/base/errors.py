"""What is meant for the user's eyes when something is wrong."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do next.

    The command line prints it without a traceback and ends with exit code 2.
    """


class Diverged(UserError):
    """A loss or a gradient is not finite."""


def one_line(text: str) -> str:
    """A message for a terminal: names of files and cells may hold line breaks and commands, which are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(wrong: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: what may have been meant; ``otherwise`` where there is no guess."""
    near = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else otherwise
