"""YAML files that people write: what is wrong is said in one line."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError, nearest
from dmpt.base.terminal import warn
from dmpt.base.yaml import read_mapping
from dmpt.settings.config import Config
from dmpt.settings.shipped import settings_file
from dmpt.settings.values import dotted, flatten, renamed

KNOWN: dict[str, Any] = dotted(Config())
"""Every setting and its default, as dotted keys."""


def require(path: Path, holds: object, otherwise: str) -> None:
    """Refuse a file: ``otherwise`` is what is wrong with it."""
    if not holds:
        raise UserError(f"{path}: {otherwise}")


def check_keys(path: Path, where: str, content: Any, needed: Iterable[str], optional: Iterable[str]) -> None:
    """Refuse other keys, and the lack of those that are needed; ``where`` is in the file, empty or ending in ``: ``."""
    known = {*needed, *optional}
    require(path, isinstance(content, dict), f"{where or 'the file'} must hold keys and values, not {content!r}")
    unknown = sorted(set(content) - known, key=str)
    require(path, not unknown, f"{where}unknown key {[*unknown, ''][0]}; known are {', '.join(sorted(known))}")
    for key in needed:
        require(path, key in content, f"{where}lacks {key}")


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number, no smaller than ``least``."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def names_of(value: Any) -> tuple[str, ...]:
    """One name, or a list of them."""
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def shipped_settings(path: Path, name: str) -> dict[str, Any]:
    """What a file of ``configs/`` sets, as dotted keys; ``path`` is the file that names it."""
    file = settings_file(name)
    if file is None:
        raise UserError(f"{path}: config {name!r} is no file of configs/")
    return settings_in(file, "settings", flatten(read_mapping(file, str(file))))


def settings_in(path: Path, where: str, change: Any) -> dict[str, Any]:
    """Settings as dotted keys, all of them known; else the nearest that is is named."""
    found = renamed(mapping_in(path, where, change), warn)
    for key in found:
        if key not in KNOWN:
            raise UserError(f"{path}, {where}: this version of dmpt has no setting {key}{nearest(str(key), KNOWN)}")
    return found


def mapping_in(path: Path, where: str, change: Any) -> dict[str, Any]:
    """Keys and values, and nothing else."""
    if not isinstance(change, dict):
        raise UserError(f"{path}, {where}: must hold keys and values, as in {{train.epochs: 60}}, not {change!r}")
    return change
