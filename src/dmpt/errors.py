"""The one exception that is meant for the user's eyes."""


class UserError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do next.

    The command line prints it without a traceback and ends with exit code 2.
    """
