"""Files that come with the package: a tiny CLIP of our own (docs/tiny_clip.md).

Settings name them ``package:FILE``, which means the same on every machine.
"""

import json
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.files import expanded, sha256
from dmpt.settings.config import BackboneConfig, TextConfig

FOLDER = Path(__file__).parent
PREFIX = "package:"
_CARD = "tiny_clip.json"


def tiny_clip() -> tuple[BackboneConfig, TextConfig]:
    """Settings of the tiny CLIP: image tower, text tower, and what that says of the fixed prompts.

    Raises:
        UserError: the package is not whole.
    """
    card = _card()
    backbone = BackboneConfig(name=card["name"], weights=f"{PREFIX}vit.safetensors", overrides=card["overrides"])
    tower, weights, file = (
        f"{PREFIX}{name}" for name in ("text_tower.json", "text_tower.safetensors", "text.safetensors")
    )
    return backbone, TextConfig(tower=tower, weights=weights, file=file)


def packaged(name: str) -> Path:
    """The file that comes with the package under this name, checked to be the one that was shipped.

    Raises:
        UserError: there is none, or it was changed.
    """
    known = _card()["sha256"]
    if name not in known:
        raise UserError(f"{PREFIX}{name}: no such file comes with dmpt; there are {', '.join(sorted(known))}")
    path = FOLDER / name
    if sha256(path) != known[name]:
        raise UserError(f"{path}: is not the file that dmpt was shipped with (another sha256); install dmpt again")
    return path


def local(path: str) -> Path:
    """A path in a setting: a file of this machine, or ``package:FILE``.

    Raises:
        UserError: as ``packaged``.
    """
    return packaged(path.removeprefix(PREFIX)) if path.startswith(PREFIX) else expanded(path)


def _card() -> Any:
    try:
        return json.loads((FOLDER / _CARD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{FOLDER / _CARD}: cannot be read ({error}); install dmpt again") from error
