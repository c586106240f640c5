"""Adapters that come with the package: ``package:tiny``, of the tiny CLIP (tools/package_tiny.py)."""

from pathlib import Path

from dmpt.base.errors import UserError

FOLDER = Path(__file__).parent
_PREFIX = "package:"


def is_shipped(run: str | Path) -> bool:
    """Whether a run is called by the name of an adapter that comes with the package; nothing is written to those."""
    return str(run).startswith(_PREFIX)


def shipped(run: str | Path) -> Path:
    """The folder of such a name.

    Raises:
        UserError: there is none of that name.
    """
    name = str(run).removeprefix(_PREFIX)
    names = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and not path.name.startswith("_"))
    if name not in names:
        raise UserError(f"{run}: no such adapter comes with dmpt; there is {', '.join(_PREFIX + one for one in names)}")
    return FOLDER / name
