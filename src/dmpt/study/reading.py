"""YAML files that people write for studies: what is wrong is said in one line."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dmpt.base.errors import UserError, nearest
from dmpt.base.terminal import warn
from dmpt.settings.config import Config
from dmpt.settings.shipped import read_settings, settings_file
from dmpt.settings.values import dotted, renamed

KNOWN: dict[str, Any] = dotted(Config())
"""Every setting and its default, as dotted keys."""


@contextmanager
def placed(where: object) -> Iterator[None]:
    """What is refused within is said with the place before it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def require(holds: object, otherwise: str) -> None:
    """Refuse what does not hold: ``otherwise`` is what is wrong with it."""
    if not holds:
        raise UserError(otherwise)


def listed(content: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The same, with a list where one of these keys has a single name."""
    return {**content, **{key: [content[key]] for key in keys if isinstance(content.get(key), str)}}


def shipped_settings(name: str) -> dict[str, Any]:
    """What a file of ``configs/`` sets, as dotted keys."""
    file = settings_file(name)
    if file is None:
        raise UserError(f"config {name!r} is no file of configs/")
    with placed(file):
        return settings_in(read_settings(file, "settings"))


def settings_in(change: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as dotted keys, all of them known; else the nearest that is is named."""
    found = renamed(change, warn)
    for key in found:
        require(key in KNOWN, f"this version of dmpt has no setting {key}{nearest(str(key), KNOWN)}")
    return found
