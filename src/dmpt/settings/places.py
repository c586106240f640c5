"""Settings that name a file or folder of this machine: whole where a run keeps them, never in what is shared."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmpt.base.files import expanded
from dmpt.settings.config import Config

PLACES = ("data.root", "backbone.weights", "text.tower", "text.weights", "text.file")
"""Settings that can name one."""


def is_place(setting: str, value: Any) -> bool:
    """Whether a setting names a file or folder of this machine.

    ``hub``, ``hub:OWNER/REPO/FILE``, ``package:FILE``, ``random``, and the names of open_clip's towers and weights mean
    the same everywhere.
    """
    if setting not in PLACES or value is None:
        return False
    if setting == "data.root":
        return True
    if value.startswith(("hub:", "package:")):
        return False
    if setting == "backbone.weights":
        return value not in ("hub", "random")
    if setting == "text.tower":
        return bool(value.endswith(".json"))
    if setting == "text.weights":  # open_clip's tags have neither a folder nor an ending
        return Path(value).name != value or Path(value).suffix != "" or value.startswith("~")
    return True


def absolute(config: Config) -> Config:
    """The settings that mean the same in any working directory.

    Raises:
        UserError: ``~`` of a user whom this machine does not know.
    """
    return _replaced(config, lambda _, value: str(expanded(value).absolute()))


def without_places(config: Config) -> Config:
    """The settings for any machine: files by their names alone, no data folder."""
    return _replaced(config, named)


def named(setting: str, value: Any) -> Any:
    """A setting for any machine: of a file its name, of the data folder nothing, anything else as it is."""
    if not is_place(setting, value):
        return value
    return None if setting == "data.root" else Path(value).name


def placed(config: Config, places: Mapping[str, str | None]) -> Config:
    """The settings with these files and folders.

    Args:
        config: the settings.
        places: values of ``PLACES``, as far as they are known.
    """
    for setting, value in places.items():
        section, _, name = setting.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
    return config


def _replaced(config: Config, change: Callable[[str, str], str | None]) -> Config:
    settings = {setting: _value(config, setting) for setting in PLACES}
    return placed(config, {key: change(key, value) for key, value in settings.items() if is_place(key, value)})


def _value(config: Config, setting: str) -> Any:
    section, _, name = setting.partition(".")
    return getattr(getattr(config, section), name)
