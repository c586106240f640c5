"""Whether a plain value is what a field asks for: types, choices and ranges, for flags, YAML, JSON and study files."""

import json
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.yaml import load

_MISFITS = (ValueError, OverflowError)


def is_section(hint: Any) -> bool:
    """Whether a type is a dataclass, with fields of its own."""
    return isinstance(hint, type) and is_dataclass(hint)


def hints_of(thing: Any) -> dict[str, Any]:
    """Types of a dataclass's fields or of a function's parameters, with their ranges."""
    return get_type_hints(thing, include_extras=True)


def fitted(value: Any, hint: Any, where: str) -> Any:
    """A plain value as a field of this type holds it: a tuple for a list, 1.0 for 1.

    Args:
        value: as JSON or YAML holds it.
        hint: the field's type.
        where: what a message calls it.

    Raises:
        UserError: it is of another type, or out of range.
    """
    try:
        return _fitted(value, hint)
    except _MISFITS:
        raise UserError(f"{where} is {written(value)}; it must be {words(hint)}") from None


def typed(text: str, hint: Any, where: str) -> Any:
    """As ``fitted``, of what stands on the command line: YAML; where text is meant, as it stands."""
    try:
        value = load(text)
    except (yaml.YAMLError, ValueError):  # the latter of thousands of digits
        value = text
    if isinstance(value, str) or (value is None and text != "null"):
        value = text
    with suppress(*_MISFITS):
        return _fitted(value, hint)
    with suppress(*_MISFITS):  # digits, say, where a name is meant
        return _fitted(text, hint)
    return fitted(value, hint, where)


def _fitted(value: Any, hint: Any) -> Any:
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        value = _fitted(value, parts[0])
        fits = parts[1].holds(value)
    elif kind in (Union, UnionType):
        for part in parts:
            with suppress(ValueError):
                return _fitted(value, part)
        fits = False
    elif kind is tuple and isinstance(value, list | tuple):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_fitted(one, part) for one, part in zip(value, kinds, strict=True))
    elif kind is dict and isinstance(value, dict):
        return {key: _fitted(one, parts[1]) for key, one in value.items()}
    elif hint is Any:
        return value
    elif kind is Literal:
        fits = value in parts
    elif hint is Path and isinstance(value, str):
        return expanded(value)
    elif hint is float and type(value) is int:
        return float(value)
    else:
        fits = isinstance(value, kind or hint) and (hint is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError
    return value


def words(hint: Any) -> str:
    """A type as a user would say it, with its range."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return str(parts[1].words)
    if kind in (Union, UnionType, Literal):
        *others, last = [choice for part in parts for choice in _choices(part)]
        comma = "," if any("," in other for other in others) else ""
        return f"{', '.join(others)}{comma} or {last}" if others else last
    if kind is tuple:
        number = "" if parts[-1] is Ellipsis else f" of {len(parts)}"
        example = ",".join("abcd"[: len(parts)])
        return f"a list{number} as in [{example}], each {words(parts[0])}"
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return plain.get(hint, "null" if hint is NoneType else "keys and values as in {a: 1}")


def _choices(part: Any) -> list[str]:
    if part is bool:
        return ["true", "false"]
    if get_origin(part) is Literal:
        return list(get_args(part))
    return [part if isinstance(part, str) else words(part)]


def written(value: Any) -> str:
    """A value as a user writes it; text in quotes."""
    return json.dumps(value, ensure_ascii=False, default=str)
