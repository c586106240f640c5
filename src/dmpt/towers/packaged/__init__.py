"""Files that come with the package: a tiny CLIP of our own (docs/tiny_clip.md).

Settings name them ``package:FILE``, which means the same on every machine.
"""

import json
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.files import expanded, sha256

_FOLDER = Path(__file__).parent
_PREFIX = "package:"


def local(path: str) -> Path:
    """A path in a setting: a file of this machine, or the package's own, checked to be the one that was shipped.

    Raises:
        UserError: no such file comes with the package, or it was changed.
    """
    if not path.startswith(_PREFIX):
        return expanded(path)
    name, card = path.removeprefix(_PREFIX), _FOLDER / "tiny_clip.json"
    try:
        known = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError) as error:
        raise UserError(f"{card}: cannot be read ({error}); install dmpt again") from error
    if name not in known:
        raise UserError(f"{path}: no such file comes with dmpt; there are {', '.join(sorted(known))}")
    if sha256(_FOLDER / name) != known[name]:
        raise UserError(
            f"{_FOLDER / name}: is not the file that dmpt was shipped with (another sha256); install dmpt again"
        )
    return _FOLDER / name
