"""The exceptions that are meant for the user's eyes."""


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do next.

    The command line prints it without a traceback and ends with exit code 2.
    """


class Diverged(UserError):
    """A loss or a gradient is not finite."""
