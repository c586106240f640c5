"""What the verbs share: a parser whose errors are one line, the settings as flags, and tables."""

import difflib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.terminal import warn
from dmpt.base.yaml import load
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.shipped import settings_file
from dmpt.settings.values import renamed

PLAIN = {
    r'^Parser key "([\w.]+)":': r"\1:",
    r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: ": r"expected one of \1. Got value: ",
    r"Expected a <class 'tuple'>\.": "expected a list, as in [a,b].",
    r"Expected a tuple with (\d) elements": r"expected a list of \1",
    r"Not of type \w+: (.*) does not conform to restriction v([<>=]+)(\S+)": r"\1 is not \2 \3",
    r"Expected a <class 'int'>\.": "expected a whole number.",
    r"Expected a <class 'float'>\.": "expected a number.",
    r"Expected a typing\.Literal\[(.*?)\]\.": r"expected one of \1.",
    r"<class 'int'>": "a whole number",
    r"<class 'float'>": "a number",
    r"<class 'str'>": "text",
    r"<class 'bool'>": "true or false",
    r"<class 'NoneType'>": "null",
    r"tuple\[float, float, float\]": "a list of three numbers",
    r"tuple\[float, float\]": "a list of two numbers",
    r"tuple\[int, int\]": "a list of two whole numbers",
    r"typing\.Literal\[(.*?)\]": r"\1",
}
"""What the parser says of a wrong value, in words."""
SECTIONS = tuple(f.name for f in fields(Config) if is_dataclass(f.type))

register_type(Path, deserializer=expanded)  # ~ in every flag that is a path


class Parser(ArgumentParser):
    """Ends with one line and exit code 2, and names the nearest setting when one is unknown."""

    file: str | None = None  # the YAML that was given, for the message when it cannot be parsed
    # the first argument names settings; called with it and the flags
    preset: tuple[str, Callable[[str, Mapping[str, str]], Mapping[str, Any]]] | None = None

    def parse_args(self, args: Sequence[str], **options: Any) -> Namespace:  # type: ignore[override]
        """Parse, and remember the file. ``--config NAME`` is a file of the package; a second one changes the first."""
        args = [_today(arg) for arg in args]
        flags = dict(itertools.pairwise(part for arg in args for part in arg.split("=", 1)))
        args = list(args)
        for place, name in list(_configs(args)):
            self.file = name
            args[place] = args[place].replace(name, str(expanded(name)))
            if not expanded(name).is_file() and (shipped := settings_file(name)):
                args[place] = args[place].replace(name, str(shipped))
            elif not _holds_settings(expanded(name)):
                break  # the file of the error that follows
        first = self._preset(args[0], flags) if self.preset and args and not args[0].startswith("-") else None
        try:
            parsed: Namespace = super().parse_args(list(args), **options)
        except UnicodeDecodeError:
            self.error(f"--config {self.file}: is no UTF-8 text; save it as UTF-8")
        if self.preset and parsed[self.preset[0]] != first:
            self.error(f"give the {self.preset[0]} first, then its settings: {self.prog} {parsed[self.preset[0]]} ...")
        if self.preset and parsed.get("on") != flags.get("--on"):
            self.error("give --on as a flag, not in a file: it says which settings the file changes")
        for name in SECTIONS:
            if not any(option.startswith(f"{name}.") for option in self._settings()):
                continue  # a flag of this verb by the same name
            if name in parsed and not isinstance(parsed[name], Namespace):
                self.error(f"{name} is a group of settings, not {parsed[name]!r}; write {name}: {{key: value}}")
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what was wrong and end."""
        text = " ".join(str(message).split())
        unknown = re.search(r"[Uu]nrecognized arguments: --([\w.-]+)", text)
        in_group = re.search(r"Group '([\w.]+)' does not accept option '([\w.-]+)'", text)
        key = re.search(r"[Oo]ption '([\w.-]+)' is not accepted|does not accept option '([\w.-]+)'", text)
        wrong = None
        if unknown:
            wrong = unknown[1]
        elif in_group:
            wrong = f"{in_group[1]}.{in_group[2]}"
        elif key:
            wrong = key[1] or key[2]
        if wrong is not None:
            text = f"unknown setting {wrong}" + _nearest(wrong, self._settings())
        elif text.startswith("Problems parsing config:"):
            where = re.search(r'in "<unicode string>", (line \d+)', text)
            why = re.sub(r' in "<unicode string>".*', "", text.removeprefix("Problems parsing config:"))
            text = f"--config {self.file}, {where[1] if where else 'as a whole'}: no YAML ({why.strip()})"
        elif text.startswith("Unexpected config:"):
            text = f"--config {self.file}: must hold settings, as in train: {{epochs: 60}}"
        elif "File does not exist" in text and self.file is not None:
            text = f"--config {self.file} does not exist; those of dmpt go by their bare names, as in --config rgbnt201"
        else:
            for jargon, plain in PLAIN.items():
                text = re.sub(jargon, plain, text)
            text = re.sub(r"^[\w.]+(?=: )", self._typed, text)
            text = re.sub(r"^(the following arguments are required: )(.*)", self._all_typed, text)
        sys.stderr.write(f"{self.prog}: error: {text}\n")
        raise SystemExit(2)

    def _preset(self, name: str, flags: Mapping[str, str]) -> str:
        """Make the named settings the defaults that flags and files override."""
        assert self.preset is not None
        try:
            self.set_defaults(dict(self.preset[1](name, flags)))
        except UserError as error:
            self.error(str(error))
        return name

    def _typed(self, name: re.Match[str]) -> str:
        """What the parser calls an argument, as the user writes it."""
        flags = [flag for flag in (name[0].replace("_", "-"), name[0]) if flag in self._settings()]
        return f"--{flags[0]}" if flags else name[0]

    def _all_typed(self, sentence: re.Match[str]) -> str:
        return sentence[1] + re.sub(r"[\w.]+", self._typed, sentence[2])

    def _settings(self) -> list[str]:
        return [option[2:] for action in self._actions for option in action.option_strings if option.startswith("--")]


def load_settings(text: str) -> Any:
    """What YAML holds, with settings by their names of today."""
    content = load(text)
    return renamed(content, warn) if isinstance(content, dict) else content


def _today(arg: str) -> str:
    """A flag by its name of today."""
    name, equals, value = arg.removeprefix("--").partition("=")
    return f"--{next(iter(renamed({name: None}, warn)))}{equals}{value}" if arg.startswith("--") else arg


def _configs(args: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Each file of ``--config``, and the argument that holds it."""
    for place, arg in enumerate(args):
        if arg.startswith("--config="):
            yield place, arg.removeprefix("--config=")
        elif arg == "--config" and place + 1 < len(args):
            yield place + 1, args[place + 1]


def _holds_settings(file: Path) -> bool:
    try:
        return isinstance(load(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError, yaml.YAMLError):
        return False


def _nearest(wrong: str, known: Sequence[str]) -> str:
    """The settings that the user may have meant, as the end of a sentence."""
    tails = {name: name.rsplit(".", 1)[-1] for name in known}
    near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
    near = near or [name for name, tail in tails.items() if tail == wrong.rsplit(".", 1)[-1]]
    return f"; did you mean {near[0]}?" if near else "; --help lists them all"


TEST_DATA = {
    "layout": "How files and names are arranged, where they are others than those of training.",
    "object": "What they show; the words of the prompts stay those of training.",
    "protocol": "What a query ignores. Numbers by another one than the run's are kept apart.",
    "test_share": "Share of the identities that are tested, for own data that names no splits.",
    "split_seed": "Of that split.",
}
"""Settings of the data that may differ from those of training where a model is judged."""


def add_test_data(parser: Parser) -> None:
    """Flags for the data that a model is judged on; what is not given is as in training."""
    parser.add_argument("--data.root", type=str, default=None, help="Data folder; default: where training found it.")
    types = {field.name: field.type for field in fields(DataConfig)}
    for name, help in TEST_DATA.items():
        kind: Any = types[name]
        parser.add_argument(f"--data.{name}", type=kind | None, default=None, help=help)


def test_data_of(arguments: Namespace) -> dict[str, Any]:
    """What these flags say; None where they are not given."""
    return {name: arguments[f"data.{name}"] for name in ("root", *TEST_DATA)}


def add_settings(parser: Parser) -> None:
    """``--config`` and a flag for every setting."""
    parser.add_argument("--config", action="config", help="YAML file of settings; later flags override it.")
    parser.add_class_arguments(Config)


def config_of(arguments: Namespace) -> Config:
    """The settings among the arguments."""
    return Config(**{f.name: arguments[f.name] for f in fields(Config)})
