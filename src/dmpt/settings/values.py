"""Settings as plain values, as JSON and YAML hold them, and back: unknown keys and wrong types are refused."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dmpt.base.errors import UserError
from dmpt.settings.config import Config
from dmpt.settings.places import named

Section = TypeVar("Section")
RENAMED = {"loss.triplet": "loss.metric_weight", "train.average": "train.ema", "backbone.lora_rank": "lora.rank"}
"""Settings of older files, and what they are called now."""


def renamed(content: Mapping[str, Any], say: Callable[[str], object] | None = None) -> dict[str, Any]:
    """Settings by the names of today, nested or as dotted keys.

    Args:
        content: as a file has them.
        say: is told of each name that is no longer used.

    Raises:
        UserError: a setting stands there by both names.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}

    def places(setting: str) -> list[tuple[dict[str, Any], str]]:
        """Where it stands, dotted or nested."""
        section, _, name = setting.partition(".")
        inside = found[section] if isinstance(found.get(section), dict) else {}
        return [(place, key) for place, key in ((found, setting), (inside, name)) if key in place]

    for old, new in RENAMED.items():
        here = places(old)
        if len(here) + len(places(new)) > 1 and here:
            raise UserError(f"{old} is now called {new}, and both are given; remove {old}")
        for place, key in here:
            section, _, name = new.partition(".")
            value = place.pop(key)
            if place is found:
                found[new] = value
            else:
                found.setdefault(section, {})[name] = value
            if say is not None:
                say(f"{old} is now called {new}; the old name still works")
    return found


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and not key.endswith("overrides"):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


def dotted(config: Config) -> dict[str, Any]:
    """All settings as dotted keys, ``train.lr`` among them; tuples as lists."""
    return flatten(asdict(config))


def difference(
    old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """What of ``new`` is not as it was: by name, then and now.

    A setting that is younger than ``old`` had its default. A file counts by its name, wherever it lies.

    Args:
        old: settings as dotted keys; other facts may stand among them.
        new: the same; what it lacks is not looked at.
        free: names that may differ.
    """
    defaults = dotted(Config())
    was = {key: old.get(key, defaults.get(key, now)) for key, now in new.items()}
    return {
        key: (was[key], now) for key, now in new.items() if key not in free and named(key, was[key]) != named(key, now)
    }


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as nested settings: what ``flatten`` began with."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[section] = value
    return nested


def from_dict(content: Any) -> Config:
    """The settings of ``dataclasses.asdict(config)`` after a trip through JSON.

    Raises:
        UserError: a key or a choice is unknown, or a value of another type.
    """
    return checked(Config, content, "settings")


def checked(kind: type[Section], content: Any, where: str) -> Section:
    """A dataclass, and those within it, from a mapping; lists become tuples.

    Args:
        kind: the dataclass.
        content: its fields by name.
        where: what a message calls it.

    Raises:
        UserError: a key or a choice is unknown, or a value of another type.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: must be a mapping, not {content!r}")
    if kind is Config:
        content = renamed(content)
    hints, values = get_type_hints(kind), {}
    for name, value in content.items():
        hint = hints.get(name)
        if hint is None:
            raise UserError(f"{where}: unknown key {name}; it was written by another version of dmpt")
        if isinstance(hint, type) and is_dataclass(hint):
            value = checked(hint, value, f"{where}.{name}")
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise UserError(f"{where}.{name}: unknown choice {value!r}; it was written by another version of dmpt")
        elif not _fits(value, hint):
            raise UserError(f"{where}.{name}: must be {_words(hint)}, not {value!r}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple and parts[-1] is Ellipsis:
        return isinstance(value, (list, tuple)) and all(_fits(v, parts[0]) for v in value)
    if kind is tuple:
        return isinstance(value, (list, tuple)) and len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else kind or hint)


def _words(hint: Any) -> str:
    """A field's type as a user would say it."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_words, parts))
    if kind is Literal:
        return " or ".join(map(str, parts))
    if kind is tuple and parts[-1] is Ellipsis:
        return f"a list, each {_words(parts[0])}"
    if kind is tuple:
        return f"a list of {len(parts)}, each {_words(parts[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(hint, "keys and values")
