"""Settings as plain values, as JSON and YAML hold them, and back: unknown keys and wrong types are refused."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

from dmpt.base.errors import UserError, nearest
from dmpt.settings.config import Config
from dmpt.settings.fitting import fitted, hints_of, is_section, written
from dmpt.settings.places import named

_Section = TypeVar("_Section")
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
        UserError: a key is unknown, or a value of another type or out of range.
    """
    return checked(Config, content)


def checked(kind: type[_Section], content: Any, where: str = "") -> _Section:
    """A dataclass, and those within it, from a mapping; lists become tuples.

    Args:
        kind: the dataclass.
        content: its fields by name.
        where: what a message calls it.

    Raises:
        UserError: a key is unknown or lacking, or a value of another type or out of range.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where or 'settings'}: must be keys and values, not {written(content)}")
    if kind is Config:
        content = renamed(content)
    hints, values, prefix = hints_of(kind), {}, f"{where}." if where else ""
    for name, value in content.items():
        place = f"{prefix}{name}"
        if name not in hints:
            known = [prefix + known for known in hints]
            guess = nearest(place, known, f"; it has {', '.join(known)}")
            raise UserError(f"this version of dmpt has no {place}{guess}")
        inner = hints[name]
        values[name] = checked(inner, value, place) if is_section(inner) else fitted(value, inner, place)
    for own in fields(kind):  # type: ignore[arg-type]
        if own.name not in values and own.default is own.default_factory is MISSING:
            raise UserError(f"{f'{where}: ' if where else ''}lacks {own.name}")
    return kind(**values)
