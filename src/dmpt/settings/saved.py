"""The settings of a run, as its folder keeps them."""

from pathlib import Path
from typing import Any

import yaml

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.base.yaml import load
from dmpt.settings.config import Config
from dmpt.settings.values import dotted, flatten, nest, renamed

CONFIG = "config.yaml"


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder's ``config.yaml``, as dotted keys.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    path = folder / CONFIG
    try:
        return renamed(flatten(load(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({error!r}); remove its folder and run again") from error


def write_settings(folder: Path, config: Config) -> None:
    """Write ``config.yaml``.

    Raises:
        UserError: the folder cannot be written.
    """
    write_text(folder / CONFIG, yaml.safe_dump(nest(dotted(config)), sort_keys=False))
