"""What a study is: a YAML file of rows (studies/README.md)."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dmpt.base.errors import UserError, nearest
from dmpt.base.files import expanded
from dmpt.base.yaml import read_mapping
from dmpt.paper.cells import cells
from dmpt.settings.shipped import folder
from dmpt.study import reading
from dmpt.study.reading import names_of, require, settings_in

Split = Literal["test", "validation"]
MOST = 1000  # training seeds, at most
TRIAL = 1000  # the seed of training with which learning rates are tried, and no other run is made
RANK, EQUAL = "lora.rank", "equal"
"""What a row may write instead of a rank: the one that trains as many parameters as the base, on any data."""
_RUNS = ("train.seed", "train.select")  # what a study gives its runs
_NEEDED = ("caption", "mirrors", "reference", "rows", "data")
_OPTIONAL: dict[str, Any] = {"pairs": [], "seeds": 3, "missing": False, "timed": False}
_OPTIONAL |= {"lr": (), "split": "test", "base": {}}


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str  # as the table shows it
    change: dict[str, Any] = field(default_factory=dict)  # settings that are not the base's, as dotted keys
    on: dict[str, dict[str, Any]] = field(default_factory=dict)  # what else it changes on some data, by their name
    lr: tuple[float, ...] = ()  # learning rates of which the best on validation identities is taken; () = the base's
    paper: str | None = None  # the paper's cell that it mirrors (``dmpt.paper.cells``); None = none does

    def changes(self, data: str) -> dict[str, Any]:
        """Settings in which it differs from the base on some data, as dotted keys."""
        return {**self.change, **self.on.get(data, {})}


@dataclass(frozen=True)
class Study:
    """A table to be."""

    name: str  # its file's name without the ending
    caption: str  # what it shows
    mirrors: str  # the paper's table
    reference: tuple[str, ...]  # rows that the others are compared with: the first of them that has results
    rows: tuple[Row, ...]  # in the order of the table
    pairs: tuple[tuple[str, str], ...]  # rows that are compared with each other too: the second against the first
    data: tuple[str, ...]  # what it was made for; the first is the default
    seeds: int  # number of training seeds, by default
    missing: bool  # whether it is also tested with modalities missing
    timed: bool  # whether it is about the time of a step: then it takes no other study's runs, and draws mAP against it
    split: Split  # what rows are measured on; ``validation``: identities held out from training
    base: dict[str, Any]  # settings of all rows, on top of the data's; the user's flags come on top of both
    file: Path  # where it was read


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
    reading.check_keys(path, "", content, _NEEDED, _OPTIONAL)
    given = _OPTIONAL | content
    data, reference, listed = names_of(given["data"]), names_of(given["reference"]), given["rows"]
    require(path, isinstance(listed, list) and listed, f"rows is {listed!r}; give a list, each with a name")
    require(path, data, "data is empty; name what the study runs on")
    rows = tuple(_row(path, row, given["lr"], data) for row in listed)
    tried = sorted({len(row.lr) for row in rows} - {0})
    require(path, len(tried) < 2, f"rows try {tried} learning rates; give each that tries any the same number of them")
    names, slugs = [row.name for row in rows], [slug(row.name) for row in rows]
    for row, its in zip(names, slugs, strict=True):
        require(path, slugs.count(its) == 1, f"two rows would share the folder {its}; rename {row!r}")
    require(path, reference, "reference is empty; name the row that the others are compared with")
    for row in reference:
        require(path, row in names, f"reference {row!r} is no row; rows are {', '.join(names)}")
    pairs, seeds, split, missing = (given[key] for key in ("pairs", "seeds", "split", "missing"))
    require(path, isinstance(pairs, list), f"pairs is {pairs!r}; give a list of pairs of rows")
    for pair in pairs:
        named = isinstance(pair, list) and len(pair) == 2 and all(row in names for row in pair)
        require(path, named, f"pairs: {pair!r} must be two rows, of {', '.join(names)}")
    few = reading.is_whole(seeds, 1) and seeds <= MOST
    require(path, few, f"seeds is {seeds!r}; give a whole number from 1 to {MOST}")
    for key in ("missing", "timed"):
        require(path, isinstance(given[key], bool), f"{key} is {given[key]!r}; write true or false")
    require(path, split in get_args(Split), f"split is {split!r}; write {' or '.join(get_args(Split))}")
    require(path, not (missing and split != "test"), "missing: true needs split: test; remove one of them")
    return Study(
        **{key: given[key] for key in ("seeds", "split", "missing", "timed")},
        name=path.stem,
        caption=str(given["caption"]),
        mirrors=str(given["mirrors"]),
        reference=reference,
        rows=rows,
        pairs=tuple((before, after) for before, after in pairs),
        data=data,
        base=settings_in(path, "base", given["base"]),
        file=path,
    )


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


def _row(path: Path, content: Any, grid: Any, data: Sequence[str]) -> Row:
    reading.check_keys(path, "a row: ", content, ("name",), ("config", "change", "on", "lr", "paper"))
    name, paper, lr = str(content["name"]), content.get("paper"), content.get("lr", grid)
    require(path, slug(name), f"row {name!r}: its name has no letter or digit")
    require(path, ";" not in name, f"row {name!r}: a name has no semicolon: --rows separates names by it")
    change: dict[str, Any] = {}
    for config in names_of(content.get("config", [])):
        change |= reading.shipped_settings(path, config)
    change |= settings_in(path, f"row {name}", content.get("change", {}))
    valid = isinstance(lr, (list, tuple)) and all(isinstance(rate, float) and 0 < rate < math.inf for rate in lr)
    if not valid or len(lr) == 1 or len(set(lr)) < len(lr):
        raise UserError(f"{path}, row {name}: lr is {lr}; give two or more learning rates, or [] for none")
    on: dict[str, dict[str, Any]] = {}
    for key, own in reading.mapping_in(path, f"row {name}: on", content.get("on", {})).items():
        require(path, key in data, f"row {name}: on {key}: is not among the study's data {', '.join(data)}")
        on[name_of_data(key)] = settings_in(path, f"row {name}: on {key}", own)
    for changed in (change, *on.values()):
        _refuse_keys(path, f"row {name}", changed, _RUNS, "a study gives each run its seed, and tests the last epoch")
        if lr:
            _refuse_keys(path, f"row {name}", changed, ("train.lr",), "the row has a grid, lr")
    known = paper is None or (isinstance(paper, str) and paper in cells())
    require(path, known, f"row {name}: the paper has no cell {paper!r}; dmpt reproduce --list names them")
    return Row(name, change, on, tuple(lr), paper)


def _refuse_keys(path: Path, where: str, change: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
    for key in keys:
        require(path, key not in change, f"{where}: {key} cannot be set here: {why}")
