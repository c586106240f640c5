"""The cells of the paper's tables, as settings that can be run (``paper.yaml``)."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError, nearest
from dmpt.base.yaml import load
from dmpt.settings.config import Config
from dmpt.settings.shipped import folder, read_config, settings_file

PRINTED = ("mAP", "rank1", "rank5", "rank10")
"""The measures of the paper's tables."""


@dataclass(frozen=True)
class Cell:
    """One setting whose numbers the paper prints."""

    config: str  # its settings file, a bare name of ``configs/``
    where: str  # table and row; several, when the paper prints the same setting more than once
    paper: dict[str, float]  # the printed numbers in percent: mAP, rank1 and, where printed, rank5 and rank10
    change: dict[str, Any] = field(default_factory=dict)  # what differs from the file, as dotted keys


@cache
def cells() -> dict[str, Cell]:
    """All of them by name, in the order of the tables."""
    content = load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))
    return {name: Cell(**cell) for name, cell in content.items()}


def find(name: str) -> Cell:
    """The cell of a name.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name in cells():
        return cells()[name]
    otherwise = "; dmpt reproduce --list names them all"
    raise UserError(f"the paper has no cell {name!r}{nearest(name, cells(), otherwise)}")


def cell_on(name: str, config: str) -> Cell | None:
    """The cell that changes another settings file (a bare name) as the named one does its own.

    None where the paper prints none; the named cell for data that the paper does not have.
    """
    own = [cell for cell in cells().values() if cell.config == config]
    if not own:
        return cells()[name]
    return next((cell for cell in own if cell.change == cells()[name].change), None)


def settings(cell: Cell) -> Config:
    """The cell's settings in full.

    Raises:
        UserError: its settings file is missing.
    """
    path = settings_file(cell.config)
    if path is None:
        raise UserError(f"{folder() / cell.config}.yaml does not exist; install dmpt again, or restore the file")
    return read_config(path, cell.change)
