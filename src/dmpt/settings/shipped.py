"""YAML files that come with the package: the repository's ``configs/`` and ``studies/``, in the wheel beside this."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.yaml import read_mapping
from dmpt.settings.config import Config
from dmpt.settings.values import flatten, from_dict, nest


def folder(kind: str = "configs") -> Path:
    """Where they are; an editable install reads the repository's.

    Args:
        kind: ``configs`` or ``studies``.
    """
    package = Path(__file__).parents[1]
    return package / kind if (package / kind).is_dir() else package.parents[1] / kind


def settings_file(name: str) -> Path | None:
    """The file of a bare name, e.g. ``rgbnt201``; None when there is no such file or the name is a path."""
    path = folder() / f"{name}.yaml"
    return path if path.name == f"{name}.yaml" and path.is_file() else None


def shipped() -> list[str]:
    """Bare names of the settings files that come with the package."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def read_settings(path: Path, called: str) -> dict[str, Any]:
    """What a file sets, as dotted keys, on top of the files of the package that its key ``config`` names.

    Args:
        path: of the file.
        called: what a message calls it.

    Raises:
        UserError: it cannot be read, or names a file that the package does not have.
    """
    return settings_of(read_mapping(path, called), called)


def settings_of(content: Mapping[str, Any], called: str) -> dict[str, Any]:
    """The same, of what a file holds."""
    names = content.get("config", [])
    below: dict[str, Any] = {}
    for name in names if isinstance(names, list) else [names]:
        file = settings_file(str(name))
        if file is None:
            raise UserError(f"{called}: config {name!r} is no file of configs/; there are {', '.join(shipped())}")
        below |= read_settings(file, f"{called}: config {name}")
    return below | flatten({key: value for key, value in content.items() if key != "config"})


def read_config(file: str | Path, change: Mapping[str, Any] | None = None) -> Config:
    """The settings of a file, and what is changed in them.

    Args:
        file: a YAML file, or the bare name of one that comes with the package, e.g. ``rgbnt201``.
        change: settings by their dotted keys, as ``--train.epochs`` names them: ``{"train.epochs": 20}``.

    Raises:
        UserError: the file cannot be read, or a setting is unknown or of another type.
    """
    path = expanded(file)
    if not path.is_file():
        path = settings_file(str(file)) or path
    return from_dict(nest(read_settings(path, f"settings {path}") | dict(change or {})))
