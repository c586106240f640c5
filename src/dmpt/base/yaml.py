"""YAML as people write settings: ``off`` is a word and ``1e-3`` a number (YAML 1.2; PyYAML reads 1.1)."""

import re
from pathlib import Path
from typing import Any

import yaml

from dmpt.base.errors import UserError

_NUMBER = re.compile(r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|nan))$")
_TRUTH = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")


def _with_words(safe: Any) -> Any:
    """A safe loader for which ``off`` is a word, and a key that stands twice in a mapping a mistake."""
    resolvers = {
        first: [(tag, regexp) for tag, regexp in known if not tag.endswith((":bool", ":float", ":timestamp"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self: Any, node: Any, deep: bool = False) -> Any:
        lines: dict[str, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"):
            if key.value in lines:
                problem = f"the key {key.value!r} is there already in line {lines[key.value]}; remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return safe.construct_mapping(self, node, deep)

    own = {"yaml_implicit_resolvers": resolvers, "construct_mapping": construct_mapping}
    loader: Any = type("Loader", (safe,), own)
    loader.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))
    loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
    return loader


_CAREFUL = _with_words(yaml.SafeLoader)
_FAST = _with_words(getattr(yaml, "CSafeLoader", yaml.SafeLoader))
"""In C where PyYAML was built with it: 7 times as fast."""


def load(text: str) -> Any:
    """Plain values, lists and mappings of a YAML text.

    Raises:
        yaml.YAMLError: it does not parse, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_FAST)
    except yaml.YAMLError:
        return yaml.load(text, Loader=_CAREFUL)  # raises again; the C parser says the wrong line


def read_mapping(path: Path, called: str) -> dict[str, Any]:
    """Keys and values of a file.

    Args:
        path: of the file.
        called: what a message calls it.

    Raises:
        UserError: it cannot be read, or holds something else; names the line.
    """
    try:
        content = load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{called}: cannot be read ({error.strerror}); correct the path, or its rights") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{called}: is no UTF-8 text; save it as UTF-8") from error
    except (ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        said = [getattr(error, "context", None), getattr(error, "problem", None)] if mark else [str(error)]
        why = " ".join(" ".join(filter(None, said)).split())
        raise UserError(f"{called}, {f'line {mark.line + 1}' if mark else 'as a whole'}: no YAML ({why})") from error
    if not isinstance(content, dict):
        raise UserError(f"{called}: must hold keys and values, as in train: {{epochs: 60}}")
    return content
