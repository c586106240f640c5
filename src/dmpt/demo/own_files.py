"""What a demo wrote into its folder: the next one deletes that and nothing else."""

import json
from collections.abc import Collection
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.files import write_text

_LIST = ".dmpt-demo"
"""The file in the folder that lists what else a demo wrote there."""


def clear(out: Path) -> None:
    """Delete what an earlier demo wrote.

    Args:
        out: a folder that only demos wrote to, or that is empty or does not exist.

    Raises:
        UserError: there is something else in it, or it cannot be deleted; nothing else was.
    """
    try:
        own = {_LIST, *json.loads((out / _LIST).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):  # none, or not ours
        own = set()
    try:
        found = _within(out)
        foreign = [name for name in found if name not in own]
        if foreign or (out.exists() and not out.is_dir()):
            what = out / foreign[0] if foreign else out
            raise UserError(
                f"{out} is in use: no demo has listed {what} as its own; delete or move it, or give another --out"
            )
        for name in reversed(found):  # what is in a folder before the folder
            path = out / name
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise UserError(f"cannot clear {out}: {error.strerror}; check its rights, or give another --out") from error


def remember(out: Path, names: Collection[str]) -> None:
    """List what is in ``out`` under these names, for the next demo.

    Raises:
        UserError: the list cannot be written.
    """
    written = [name for name in _within(out) if name.split("/")[0] in names]
    if written:
        write_text(out / _LIST, json.dumps(written, indent=0) + "\n")


def _within(out: Path) -> list[str]:
    """Files, links and folders at any depth; no link is followed."""
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
