"""What a study runs on: data set, backbone, recipe (``studies/data/``, ``configs/``, or a file)."""

from dataclasses import dataclass
from typing import Any

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.yaml import read_mapping
from dmpt.settings.shipped import folder, settings_file
from dmpt.settings.values import flatten
from dmpt.study import reading
from dmpt.study.definition import name_of_data
from dmpt.study.reading import KNOWN, mapping_in, names_of, require, settings_in

_ASKED = ("data.root", "backbone.weights")  # settings that a file may ask the user for


@dataclass(frozen=True)
class Data:
    """What a study runs on: data set, backbone, recipe."""

    name: str  # as the table shows it
    settings: dict[str, Any]  # the base, as dotted keys; all that are known
    world: dict[str, Any] | None = None  # of drawn data: its identities, seed and object; None = the user's own
    asks: tuple[str, ...] = ()  # settings that the user must give


def find_data(given: str) -> Data:
    """The data of a name: one of ``studies/data/``, a settings file of ``configs/``, or a path to either.

    Raises:
        UserError: there is none, or the file is not as it must be.
    """
    entries = folder("studies") / "data"
    path = expanded(given) if given.endswith(".yaml") else entries / f"{given}.yaml"
    if not given.endswith(".yaml") and not path.is_file():
        shipped = settings_file(given)
        if shipped is None:
            known = [entry.stem for entry in sorted(entries.glob("*.yaml"))]
            raise UserError(
                f"--on {given}: no such data; there are {', '.join(known)}, the files of configs/, or a .yaml file"
            )
        path = shipped
    content = read_mapping(path, str(path))
    if not {"config", "settings", "world", "asks"} & set(content):  # plain settings
        content = {"settings": content, "asks": ["data.root"]}
    reading.check_keys(path, "", content, (), ("caption", "config", "settings", "world", "asks"))
    if "world" in content:
        drawn, ids = content["world"], ("train_ids", "test_ids")
        reading.check_keys(path, "world: ", drawn, ids, ("seed", "object"))
        for key, least in (*((name, 2) for name in ids), ("seed", 0)):
            number = drawn.get(key, least)
            require(path, reading.is_whole(number, least), f"world: {key} is {number!r}; give a number")
        kind = drawn.get("object", "person")
        require(path, kind in ("person", "vehicle"), f"world: object is {kind!r}; write person or vehicle")
    asks = names_of(content.get("asks", []))
    for name in asks:
        require(path, name in _ASKED, f"asks {name}; what can be asked for is {' and '.join(_ASKED)}")
    settings = dict(KNOWN)
    if "config" in content:
        settings |= reading.shipped_settings(path, content["config"])
    settings |= settings_in(path, "settings", flatten(mapping_in(path, "settings", content.get("settings", {}))))
    return Data(name_of_data(given), settings, content.get("world"), asks)
