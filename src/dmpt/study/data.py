"""What a study runs on: data set, backbone, recipe (``studies/data/``, ``configs/``, or a file)."""

from dataclasses import dataclass, field
from typing import Any, Literal

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.yaml import read_mapping
from dmpt.settings.config import Object
from dmpt.settings.numbers import Seed, Several
from dmpt.settings.shipped import folder, settings_file, settings_of
from dmpt.settings.values import checked, flatten
from dmpt.study.definition import name_of_data
from dmpt.study.reading import KNOWN, listed, placed, settings_in, shipped_settings
from dmpt.synthetic.setup import PLAIN, Setup

_SECTIONS = {key.partition(".")[0] for key in KNOWN}


@dataclass(frozen=True)
class World:
    """Drawn data, as ``dmpt.synthetic.cached.world`` takes them."""

    train_ids: Several
    test_ids: Several
    seed: Seed = 0
    object: Object = "person"
    setup: Setup = PLAIN


@dataclass(frozen=True)
class _Keys:
    """What a file of data says."""

    caption: str = ""
    config: str | None = None  # a file of ``configs/`` that ``settings`` come on top of
    settings: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] | None = None
    tested: dict[str, Any] | None = None  # another world, whose test identities are tested instead
    asks: tuple[Literal["data.root", "backbone.weights", "tested"], ...] = ()


@dataclass(frozen=True)
class Data:
    """What a study runs on: data set, backbone, recipe."""

    name: str  # as the table shows it
    settings: dict[str, Any]  # the base, as dotted keys; all that are known
    world: World | None = None  # None = the user's own data
    asks: tuple[str, ...] = ()  # settings that the user must give
    tested: World | None = None  # another world that is tested on; None = the same data, or the user's


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
    plain = any(str(key).partition(".")[0] in _SECTIONS for key in content)
    if plain or not {"config", "settings", "world", "tested", "asks"} & set(content):
        with placed(path):
            settings = KNOWN | settings_in(settings_of(content, "settings"))
        if settings["backbone.tune"] != "frozen" and path == settings_file(given):
            raise UserError(
                f"--on {given}: its design is not the paper's, whose rows a study changes; give --on "
                f"{given.removesuffix('_peer')} and, as flags, what else you want of {given}"
            )
        return Data(name_of_data(given), settings, asks=("data.root",))
    with placed(path):
        keys = checked(_Keys, listed(content, "asks"))
        drawn = None if keys.world is None else checked(World, keys.world, "world")
        tested = None if keys.tested is None else checked(World, keys.tested, "tested")
        settings = KNOWN | (shipped_settings(keys.config) if keys.config else {})
        with placed("settings"):
            return Data(name_of_data(given), settings | settings_in(flatten(keys.settings)), drawn, keys.asks, tested)
