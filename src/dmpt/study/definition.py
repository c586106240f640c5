"""What a study is: a YAML file of rows (studies/README.md)."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from dmpt.base.errors import UserError, nearest
from dmpt.base.files import expanded
from dmpt.base.yaml import read_mapping
from dmpt.paper.cells import cells
from dmpt.settings.numbers import AboveZero, Positive
from dmpt.settings.shipped import folder
from dmpt.settings.values import checked
from dmpt.study.reading import listed, placed, require, settings_in, shipped_settings

Split = Literal["test", "validation"]
MOST = 1000  # training seeds, at most
TRIAL = 1000  # the seed of training with which learning rates are tried, and no other run is made
RANK, EQUAL = "lora.rank", "equal"
"""What a row may write instead of a rank: the one that trains as many parameters as the base, on any data."""

_FIXED = {"train.seed": "a study gives each run its seed", "train.select": "a study tests the last epoch"}


@dataclass(frozen=True)
class Row:
    """One line of the table: its keys are those of the file."""

    name: str  # as the table shows it
    config: tuple[str, ...] = ()  # files of ``configs/`` that ``change`` comes on top of; once read, it holds them too
    change: dict[str, Any] = field(default_factory=dict)  # settings that are not the base's, as dotted keys
    on: dict[str, dict[str, Any]] = field(default_factory=dict)  # what else it changes on some data, by their name
    lr: tuple[AboveZero, ...] = ()  # of these learning rates the best on validation identities; empty = the base's
    paper: str | None = None  # the paper's cell that it mirrors (``dmpt.paper.cells``); None = none does

    def changes(self, data: str) -> dict[str, Any]:
        """Settings in which it differs from the base on some data, as dotted keys."""
        return {**self.change, **self.on.get(data, {})}


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """What a study's file says."""

    caption: str  # what it shows
    mirrors: str  # the paper's table
    reference: tuple[str, ...]  # rows that the others are compared with: the first of them that has results
    data: tuple[str, ...]  # what it was made for; the first is the default
    rows: tuple[Any, ...]  # in the order of the table
    pairs: tuple[tuple[str, str], ...] = ()  # rows that are compared with each other too: the second against the first
    seeds: Positive = 3  # number of training seeds, by default
    lr: tuple[AboveZero, ...] = ()  # learning rates of the rows that have none of their own
    missing: bool = False  # whether it is also tested with modalities missing
    any_to_any: tuple[str, ...] = ()  # rows whose any-to-any is shown, 7 x 7
    timed: bool = False  # whether it is about the time of a step: it takes no other study's runs, and draws a map of it
    split: Split = "test"  # what rows are measured on; ``validation``: identities held out from training
    base: dict[str, Any] = field(default_factory=dict)  # settings of all rows, on the data's; flags come on top of both


@dataclass(frozen=True, kw_only=True)
class Study(_Keys):
    """A table to be."""

    rows: tuple[Row, ...]
    file: Path  # where it was read

    @property
    def name(self) -> str:
        """Its file's name without the ending."""
        return self.file.stem


def slug(name: str) -> str:
    """A name as files may be called, in any script; ``dmpt+`` is plus, and ``S + bind`` is and."""
    plain = re.sub(r"(?<=\w)\+", " plus ", name.lower()).replace("+", " and ")
    return re.sub(r"[^\w.]+", "-", plain).strip("-.")


def studies() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in folder("studies").glob("*.yaml"))


def name_of_data(given: str) -> str:
    """What data are called: by their name, or by that of their file without its ending."""
    return Path(given).stem if given.endswith(".yaml") else given


def find(name: str) -> Study:
    """The study of a name or in a file.

    Raises:
        UserError: there is none, or the file is not as it must be.
    """
    path = _file_of(name)
    content = read_mapping(path, str(path))
    with placed(path):
        keys = checked(_Keys, listed(content, "reference", "data", "any_to_any"))
        require(keys.rows, "rows is empty; give a list, each with a name")
        require(keys.data, "data is empty; name what the study runs on")
        require(keys.reference, "reference is empty; name the row that the others are compared with")
        rows = tuple(_row(number, row, keys) for number, row in enumerate(keys.rows, 1))
        names, slugs = [row.name for row in rows], [slug(row.name) for row in rows]
        for row, its in zip(names, slugs, strict=True):
            require(slugs.count(its) == 1, f"two rows would share the folder {its}; rename {row!r}")
        for row in keys.reference:
            require(row in names, f"reference {row!r} is no row; rows are {', '.join(names)}")
        for pair in keys.pairs:
            require({*pair} <= {*names}, f"pairs: {list(pair)} must be two rows, of {', '.join(names)}")
        for row in keys.any_to_any:
            require(row in names, f"any_to_any {row!r} is no row; rows are {', '.join(names)}")
        require(keys.missing or not keys.any_to_any, "any_to_any needs missing: true; set it, or leave out any_to_any")
        tried = sorted({len(row.lr) for row in rows} - {0})
        require(len(tried) < 2, f"rows try {tried} learning rates; give each that tries any the same number of them")
        require(not (keys.missing and keys.split != "test"), "missing: true needs split: test; remove one of them")
        with placed("base"):
            return Study(**vars(keys) | {"rows": rows, "base": settings_in(keys.base)}, file=path)


def _file_of(name: str) -> Path:
    if not name.endswith(".yaml"):
        if name in studies():
            return folder("studies") / f"{name}.yaml"
        otherwise = f"; there are {', '.join(studies())}; or give a .yaml file"
        raise UserError(f"there is no study {name!r}{nearest(name, studies(), otherwise)}")
    path = expanded(name)
    if path.stem in studies() and path.resolve() != (folder("studies") / path.name).resolve():
        raise UserError(f"{path}: {path.stem} is a study of dmpt's own, and results go by the name; rename the file")
    return path


def _row(number: int, content: Any, keys: _Keys) -> Row:
    require(isinstance(content, dict), f"row {number} is {content!r}; give keys and values, a name among them")
    with placed(f"row {content.get('name', number)}"):
        row = checked(Row, {"lr": list(keys.lr), **listed(content, "config")})
        require(slug(row.name), "its name has no letter or digit")
        require(";" not in row.name, "a name has no semicolon: --rows separates names by it")
        alike = len(row.lr) == 1 or len({*row.lr}) < len(row.lr)
        require(not alike, f"lr is {list(row.lr)}; give two or more learning rates, or [] for none")
        known = row.paper is None or row.paper in cells()
        require(known, f"the paper has no cell {row.paper!r}; dmpt reproduce --list names them")
        change: dict[str, Any] = {}
        for config in row.config:
            change |= shipped_settings(config)
        change |= settings_in(row.change)
        on: dict[str, dict[str, Any]] = {}
        for data, own in row.on.items():
            with placed(f"on {data}"):
                require(data in keys.data, f"is not among the study's data {', '.join(keys.data)}")
                on[name_of_data(data)] = settings_in(own)
        for key in (key for changed in (change, *on.values()) for key in changed):
            require(key not in _FIXED, f"{key} cannot be set here: {_FIXED.get(key)}")
            require(key != "train.lr" or not row.lr, f"{key} cannot be set here: the row has a grid, lr")
    return replace(row, change=change, on=on)
