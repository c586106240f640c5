"""The files of an adapter, and where they lie; without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from dmpt.adapter.packaged import is_shipped, shipped
from dmpt.base.errors import UserError

TENSORS, CARD = "adapter.safetensors", "config.json"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, one of our own files is read: whatever it lacks, it is damaged.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give the run or adapter folder that training wrote") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its rights") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged ({said}); copy it again from where it was trained") from error


def adapter_folder(run: Path, which: str | None = None) -> Path:
    """The adapter inside a run folder, the folder itself when it is an adapter, or one that comes with the package.

    Args:
        run: what the user gave: a folder, or ``package:NAME``.
        which: ``last`` or ``best``; None = the one that training selected.

    Raises:
        UserError: there is none.
    """
    if is_shipped(run):
        run = shipped(run)
    if (run / CARD).exists():
        if which not in (None, run.name):
            raise UserError(f"{run} is an adapter itself; give its run folder to choose {which}")
        return run
    # best exists only where training was told to select it
    candidates = [run / which] if which is not None else [run / "best", run / "last"]
    for folder in candidates:
        if (folder / TENSORS).exists() and (folder / CARD).exists():
            return folder
    raise UserError(f"{run} holds no trained adapter (looked for {', '.join(str(c) for c in candidates)}); train first")
