"""The exceptions that are meant for the user's eyes."""


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do next.

    The command line prints it without a traceback and ends with exit code 2.
    """


class Diverged(UserError):
    """A loss or a gradient is not finite."""


def one_line(text: str) -> str:
    """A message for a terminal: names of files and cells may hold line breaks and commands, which are spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
