"""YAML files that come with the package: the repository's ``configs/`` and ``studies/``, in the wheel beside this."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    return from_dict(nest(flatten(read_mapping(path, f"settings {path}")) | dict(change or {})))
