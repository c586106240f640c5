"""A lock on a file: it keeps other processes out until it is released, or its process ends in whatever way.

Not the package filelock: its versions 3.13 to 3.20 take nearly every failure of the system for "somebody holds it", and
4.3 puts a file in the place of a lock that does not exist, which outlives a killed process.
"""

import errno
import os
from importlib import import_module
from pathlib import Path

_TAKEN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}


class Taken(Exception):
    """Somebody else holds the lock."""


class Lock:
    """A lock, held as long as this object is there and not released.

    A lock is a courtesy: some network shares and S3 mounts know none, and there nobody is kept out.

    Args:
        path: the file; it is created where it is missing, and left where it is.
        shared: others may share it; who wants it alone is kept out.

    Attributes:
        works: whether there are locks where the file is.

    Raises:
        Taken: somebody else holds it; in this process too.
        OSError: the file cannot be opened to write.
    """

    _handle: int | None = None

    def __init__(self, path: Path, shared: bool = False):
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.works = True
        try:
            _hold(self._handle, shared)
        except (OSError, ImportError) as error:
            if isinstance(error, OSError) and error.errno in _TAKEN:
                self.release()
                raise Taken from None
            self.works = False

    def release(self) -> None:
        """Let others have it; once is enough, and twice does no harm."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.release()


def _hold(handle: int, shared: bool) -> None:
    """Lock an open file or fail at once: OSError where that cannot be, ImportError where the system knows no locks."""
    try:
        import fcntl
    except ImportError:  # Windows, which has none that are shared
        if shared:
            raise
        windows = import_module("msvcrt")
        windows.locking(handle, windows.LK_NBLCK, 1)
    else:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
