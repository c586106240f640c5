"""Files that are either old or new, never half-written; their hashes; where things that can be made again are kept."""

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dmpt.base.errors import UserError

_NOT_KNOWN = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system answers when it is asked for something that it does not have."""


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it.

    Args:
        path: the file to replace; its folder is created.
        write: called with the temporary path.

    Raises:
        UserError: the folder is read-only, the disk is full, ...; ``path`` is then what it was before.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        rights = temporary.stat().st_mode  # those of any file that the user writes
        write(temporary)
        if temporary.stat().st_mode != rights:  # safetensors makes a private file of its own
            with suppress(OSError):  # not every file system knows rights
                temporary.chmod(stat.S_IMODE(rights))
        _to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; what was there is untouched; free space or check rights"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Else a power cut can leave the new name with nothing in it."""
    with path.open("r+b") as file:  # Windows wants it writable
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NOT_KNOWN:
                raise


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` as ``write_atomically`` does, with its errors."""
    # File names need not be UTF-8: their bytes are written as they are. The same bytes on every system.
    write_atomically(path, lambda temporary: temporary.write_text(text, "utf-8", "surrogateescape", "\n"))


def expanded(path: str | Path) -> Path:
    """With ``~`` resolved.

    Raises:
        UserError: it names a user whom this machine does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such user's home here; give the whole path") from error


def cache_folder() -> Path:
    """Where things that can be made again are kept: ``DMPT_CACHE``, else dmpt's part of the user's cache."""
    if own := os.environ.get("DMPT_CACHE"):
        return expanded(own)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dmpt"


def sha256(path: str | Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits, read in pieces.

    Raises:
        UserError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path, or its rights") from error
    return digest.hexdigest()
