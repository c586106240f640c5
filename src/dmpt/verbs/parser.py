"""The command line of a verb: its flags and their help are the signature and the docstring of a function.

``batch_size`` is the flag ``--batch-size``; what is False by default is a switch; what stands before ``/`` is a word
without a flag; a ``Sequence`` takes several. A dataclass is spread: its fields are flags; those of a dataclass in it
are dotted, and a field may name its flag in its metadata. So ``config: Config`` is every setting, with ``--config
FILE``, and ``Annotated[Config, {"data.protocol"}]`` that setting alone.
"""

import inspect
import json
import re
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, NoReturn, get_args, get_origin

import yaml

from dmpt.base.errors import UserError, nearest
from dmpt.base.files import expanded
from dmpt.base.terminal import warn
from dmpt.settings.config import Config
from dmpt.settings.fitting import fitted, hints_of, is_section, typed, words, written
from dmpt.settings.shipped import read_settings, settings_file
from dmpt.settings.values import checked, flatten, nest, renamed

_NEEDED = inspect.Parameter.empty


@dataclass(frozen=True)
class _Option:
    """What the command line can give; ``title`` is what its help stands under."""

    name: str
    hint: Any
    default: Any
    help: str
    title: str
    is_word: bool

    @property
    def flag(self) -> str:
        """As it is typed."""
        return self.name if self.is_word else f"--{self.name if '.' in self.name else self.name.replace('_', '-')}"

    @property
    def several(self) -> bool:
        return get_origin(self.hint) is Sequence

    @property
    def one(self) -> Any:
        """The type of what stands once."""
        return get_args(self.hint)[0] if self.several else self.hint

    def value(self, text: str) -> Any:
        return typed(text, self.one, self.flag)

    def given(self, text: str) -> dict[str, Any]:
        return {self.name: self.value(text)}


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def call(
    function: Callable[..., None],
    prog: str,
    arguments: Iterable[str],
    preset: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> None:
    """Run a verb's function with what the command line says.

    Args:
        function: of the verb; its docstring is the help.
        prog: what the help calls it.
        arguments: the command line after the verb.
        preset: the settings that go with what is given, by name, and that it overrides.

    Raises:
        UserError: a flag or a key is unknown, a value of another type or out of range, or something is lacking.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    options = {option.name: option for option in _options(function)}
    parser = _parser(function, prog, options)
    arguments = [_today(argument) for argument in arguments]
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        if flag not in parser._option_string_actions:
            if flag[2:] in options and options[flag[2:]].is_word:
                raise UserError(f"{flag[2:]} is given by its place, without {flag}; --help shows the order")
            raise UserError(_unknown(flag[2:], [option.flag.removeprefix("--") for option in options.values()]))
    found = {name: value for name, value in vars(parser.parse_intermixed_args(arguments)).items() if value}
    given = {name: value for part in found.pop("given", ()) for name, value in part.items()} | found
    printing = given.pop("print_config", False)
    given = {**(preset(given) if preset else {}), **given}
    if printing:
        defaults = {name: None if option.default is _NEEDED else option.default for name, option in options.items()}
        plain = json.loads(json.dumps(nest(defaults | given), default=str))
        print(yaml.safe_dump(plain, sort_keys=False), end="")
        raise SystemExit
    lacking = [option.flag for name, option in options.items() if option.default is _NEEDED and name not in given]
    if lacking:
        raise UserError(f"the following arguments are required: {', '.join(lacking)}")
    _call(function, nest(given) | given)


def _call(function: Callable[..., None], given: Mapping[str, Any]) -> None:
    """Each parameter by its name; a dataclass from its fields, or from the flags by which they go."""
    bound = inspect.signature(function).bind_partial()
    for name, hint in hints_of(function).items():
        kind, _ = _opened(hint)
        if is_section(kind):
            flags = _flags(kind)
            bound.arguments[name] = checked(kind, {own: given[flag] for own, flag in flags.items() if flag in given})
        elif name in given:
            bound.arguments[name] = given[name]
    bound.apply_defaults()
    function(*bound.args, **bound.kwargs)


def _opened(hint: Any) -> tuple[Any, Collection[str]]:
    """A type; of a dataclass also the settings in it that are asked for, empty = all."""
    return get_args(hint) if get_origin(hint) is Annotated and is_section(get_args(hint)[0]) else (hint, ())


def _flags(section: Any) -> dict[str, str]:
    """What the fields of a dataclass are called on the command line."""
    return {own.name: own.metadata.get("flag", own.name) for own in fields(section)}


def _options(thing: Any, prefix: str = "", title: str = "") -> Iterator[_Option]:
    """What a function or a dataclass takes, with what its docstring says of it."""
    section = re.search(r"^(?:Args|Attributes):\n((?: .*\n|\n)+)", f"{inspect.getdoc(thing)}\n", re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section[1] if section else "", re.MULTILINE)
    said = {name: " ".join(text.split()) for name, text in entries}
    made = thing() if is_section(thing) else None  # knows the defaults
    flags = _flags(thing) if made else {}
    for name, parameter in inspect.signature(thing).parameters.items():
        hint, only = _opened(hints_of(thing)[name])
        if is_section(hint):
            inner = _options(hint, f"{name}." if made else "", said[name])
            yield from (option for option in inner if not only or option.name in only)
        else:
            default = getattr(made, name) if made else parameter.default
            is_word = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            yield _Option(prefix + flags.get(name, name), hint, default, said[name], title, is_word)


def _parser(function: Callable[..., None], prog: str, options: Mapping[str, _Option]) -> _Parser:
    """Flags and files add what they say to the list ``given``: the order of the command line counts."""
    needed = [option for option in options.values() if option.is_word or option.default is _NEEDED]
    usage = [prog, *(one.name if one.is_word else f"{one.flag} {one.name.upper()}" for one in needed), "[flags]"]
    summary = (inspect.getdoc(function) or "").partition("\n\n")[0]
    parser = _Parser(prog=prog, usage=" ".join(usage), description=summary, allow_abbrev=False)
    add: dict[str, Any] = {"action": "append", "dest": "given"}
    switch: dict[str, Any] = {"action": "append_const", "dest": "given"}
    if Config in hints_of(function).values():
        said = "YAML file of settings; later flags override it."
        parser.add_argument("--config", type=partial(_read, options=options), metavar="FILE", help=said, **add)
        said = "Print all settings and exit; what is printed can be given to --config."
        parser.add_argument("--print_config", const={"print_config": True}, help=said, **switch)
        for name in {option.partition(".")[0] for option in options if "." in option}:  # a whole group at once
            parser.add_argument(f"--{name}", type=partial(_group, name=name, options=options), help=SUPPRESS, **add)
    groups: dict[str, Any] = {"": parser}
    for name, option in options.items():
        if option.title not in groups:
            groups[option.title] = parser.add_argument_group(option.title.rstrip("."))
        group, said = groups[option.title], option.help.replace("%", "%%")
        if option.default is False and "." not in name:
            group.add_argument(option.flag, const={name: True}, help=said, **switch)
            continue
        default = option.default if isinstance(option.default, str) else written(option.default)
        said += f" ({words(option.one)}; {'required' if option.default is _NEEDED else f'default: {default}'})"
        shown = {"help": said, "metavar": name if option.is_word else name.rpartition(".")[2].upper()}
        if option.is_word or option.several:
            number = "?" if not option.several else "*" if option.is_word else "+"
            again = {"action": "extend"} if option.several and not option.is_word else {}
            group.add_argument(option.flag, type=option.value, nargs=number, **shown, **again)
        else:
            group.add_argument(option.flag, type=option.given, **shown, **add)
    return parser


def _read(file: str, options: Mapping[str, _Option]) -> dict[str, Any]:
    """What a file sets; a bare name is a file of the package."""
    path, called = expanded(file), f"--config {file}"
    if not path.is_file():
        path = settings_file(file) or path
    if not path.exists():
        raise UserError(f"{called} does not exist; those of dmpt go by their bare names, as in --config rgbnt201")
    return _known(read_settings(path, called), called, options)


def _group(text: str, name: str, options: Mapping[str, _Option]) -> dict[str, Any]:
    """What ``--missing '{dropout: 0.3}'`` sets."""
    return _known({name: typed(text, dict, f"--{name}")}, f"--{name}", options)


def _known(nested: Mapping[str, Any], called: str, options: Mapping[str, _Option]) -> dict[str, Any]:
    """Settings by their dotted names, each as its field holds it."""
    content = flatten(renamed(nested, warn))
    for key in content:
        if key not in options:
            raise UserError(f"{called}: {_unknown(key, options)}")
    return {key: fitted(value, options[key].hint, f"{called}: {key}") for key, value in content.items()}


def _today(argument: str) -> str:
    """A flag by its name of today."""
    name, equals, value = argument.removeprefix("--").partition("=")
    return f"--{next(iter(renamed({name: None}, warn)))}{equals}{value}" if argument.startswith("--") else argument


def _unknown(name: str, known: Collection[str]) -> str:
    """What is said of a setting that there is not."""
    for inside in known:
        if inside.startswith(f"{name}."):
            return f"{name} is a group of settings, such as {inside}, and has no value of its own"
    same = [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    otherwise = f"; did you mean {same[0]}?" if same else "; --help lists them all"
    return f"unknown setting {name}{nearest(name, known, otherwise)}"
