"""Every call into the store ends: with its answer, or after a while with one line.

Lance is known to hang for ever with a single IO thread, and in a process that was forked.
"""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dmpt.base.errors import UserError, one_line

_T = TypeVar("_T")

_PROCESS = os.getpid()
_FULL = ("os error 28", "os error 27", "os error 122", "No space left")  # a full disk, a limit on files, a quota
_RIGHTS = ("os error 13", "os error 30", "os error 1)", "Permission denied", "Read-only file system")
_CONFLICT = re.compile(
    r"concurrent writers|[Cc]ommit conflict|Incompatible transaction|Retryable commit|preempted by concurrent"
)
_PLACE = re.compile(r", \S+\.rs:\d+:\d+")


class Full(UserError):
    """There is no room on the disk."""


class Conflict(Exception):
    """Somebody else wrote meanwhile; the same can be tried again on what is there now."""


def within(seconds: float, path: Path, what: str, call: Callable[[], _T]) -> _T:
    """What ``call`` returns.

    Args:
        seconds: how long it may take; it is left to itself after that.
        path: of the gallery, for messages.
        what: is done, for messages: "reading".
        call: calls into the store.

    Raises:
        UserError: it took longer, or the store says that something is wrong; ``Full`` where that is the disk.
        Conflict: somebody else wrote meanwhile.
    """
    if os.getpid() != _PROCESS:
        raise UserError(f"{path}: this process was forked, where the store hangs; start processes with spawn")
    done: list[_T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name=f"gallery {what}", daemon=True)  # one that hangs must not keep us
    thread.start()
    thread.join(seconds)
    if done:
        return done[0]
    if not failed:
        raise UserError(
            f"{path}: {what} took longer than {seconds:g} s; see whether its storage answers, and do the same again: "
            "nothing is written twice"
        )
    raise _told(failed[0], path, what) from failed[0]


def _told(error: BaseException, path: Path, what: str) -> BaseException:
    """What the user is told of an error of the store's."""
    if isinstance(error, (UserError, Conflict)) or not isinstance(error, Exception):
        return error
    said = one_line(_PLACE.sub("", str(error)))
    if _CONFLICT.search(said):
        return Conflict(said)
    if any(sign in said for sign in _FULL):
        return Full(f"{path}: the disk is full; nothing of this {what} was kept; free space and do it again")
    if any(sign in said for sign in _RIGHTS):
        return UserError(f"{path}: {what} is not allowed here; what was there is untouched; check its rights")
    return UserError(f"{path}: {what} failed ({said[:300]}); what was there is untouched")
