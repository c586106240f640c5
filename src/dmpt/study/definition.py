"""What a study is: a YAML file of rows (docs/study.md)."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.paper.cells import cells
from dmpt.settings.shipped import folder
from dmpt.study.reading import (
    check_keys,
    is_whole,
    mapping_in,
    names_of,
    read_yaml,
    require,
    settings_in,
    shipped_settings,
)

Split = Literal["test", "validation"]
MOST = 1000
"""Training seeds, at most."""
RUNS = ("train.seed", "train.select")
"""Settings that a study gives its runs."""
RANK, EQUAL = "lora.rank", "equal"
"""What a row may write instead of a rank: the one that trains as many parameters as the base, on any data."""
GRID = 3
"""Learning rates that a row may try: the same number for every row that tries any."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: as the table shows it.
        change: settings in which it differs from the base, as dotted keys; those of its ``config`` among them.
        on: what else it changes on some data, by their name.
        lr: learning rates to choose from on validation identities; empty = the base's.
        paper: the paper's cell that it mirrors (``dmpt.paper.cells``); None = none does.
    """

    name: str
    change: dict[str, Any] = field(default_factory=dict)
    on: dict[str, dict[str, Any]] = field(default_factory=dict)
    lr: tuple[float, ...] = ()
    paper: str | None = None

    @property
    def slug(self) -> str:
        """Its folder's name."""
        return slug(self.name)

    def changes(self, data: str) -> dict[str, Any]:
        """Settings in which it differs from the base on some data, as dotted keys."""
        return {**self.change, **self.on.get(data, {})}


@dataclass(frozen=True)
class Choice:
    """How learning rates are chosen.

    Attributes:
        seed: of training; no seed of the table's runs.
        change: settings of these runs alone, e.g. fewer epochs.
    """

    seed: int = 1000
    change: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A table to be.

    Attributes:
        name: its file's name without the ending.
        caption: what it shows.
        mirrors: the paper's table.
        reference: rows that the others are compared with: the first of them that has results on the data.
        rows: in the order of the table.
        pairs: names of rows that are compared with each other too: the second against the first.
        data: what it was made for; the first is the default.
        seeds: number of training seeds, by default.
        choice: of learning rates.
        missing: whether it is also tested with modalities missing.
        timed: whether it is about the time of a step: then nothing is taken over from another study, whose runs shared
            the machine otherwise, and mAP is drawn against it.
        split: what the rows are measured on: ``test``, or identities held out from training, ``validation``.
        base: settings of all rows, on top of those of the data; the user's flags come on top of both.
        file: where it was read.
    """

    name: str
    caption: str
    mirrors: str
    reference: tuple[str, ...]
    rows: tuple[Row, ...]
    pairs: tuple[tuple[str, str], ...]
    data: tuple[str, ...]
    seeds: int
    choice: Choice
    missing: bool
    timed: bool
    split: Split
    base: dict[str, Any]
    file: Path


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


def _refuse_keys(path: Path, where: str, change: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
    for key in keys:
        require(path, key not in change, f"{where}: {key} cannot be set here: {why}")


def find(name: str) -> Study:
    """The study of a name or in a file.

    Raises:
        UserError: there is none, or the file is not as it must be.
    """
    path = expanded(name)
    if not name.endswith(".yaml"):
        path = folder("studies") / f"{name}.yaml"
        if name not in studies():
            near = difflib.get_close_matches(name, studies(), n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(studies())}; or give a .yaml file"
            raise UserError(f"there is no study {name!r}; {hint}")
    elif path.stem in studies() and path.resolve() != (folder("studies") / path.name).resolve():
        raise UserError(f"{path}: {path.stem} is a study of dmpt's own, and results go by the name; rename the file")
    content = read_yaml(path)
    needed = ("caption", "mirrors", "reference", "rows", "data")
    known = {*needed, "pairs", "seeds", "choice", "missing", "timed", "lr", "split", "base"}
    check_keys(path, "", content, known, needed)
    data, reference = names_of(content["data"]), names_of(content["reference"])
    listed = content["rows"]
    require(path, isinstance(listed, list) and listed, f"rows is {listed!r}; give a list, each with a name")
    require(path, data, "data is empty; name what the study runs on")
    rows = tuple(_row(path, row, content.get("lr", ()), data) for row in listed)
    slugs = [row.slug for row in rows]
    for row in rows:
        require(path, slugs.count(row.slug) == 1, f"two rows would share the folder {row.slug}; rename {row.name!r}")
    names = [row.name for row in rows]
    require(path, reference, "reference is empty; name the row that the others are compared with")
    for name in reference:
        require(path, name in names, f"reference {name!r} is no row; rows are {', '.join(names)}")
    pairs = content.get("pairs", [])
    require(path, isinstance(pairs, list), f"pairs is {pairs!r}; give a list of pairs of rows")
    for pair in pairs:
        named = isinstance(pair, list) and len(pair) == 2 and all(name in names for name in pair)
        require(path, named, f"pairs: {pair!r} must be two rows, of {', '.join(names)}")
    seeds, split = content.get("seeds", 3), content.get("split", "test")
    missing, timed = content.get("missing", False), content.get("timed", False)
    require(path, is_whole(seeds, 1) and seeds <= MOST, f"seeds is {seeds!r}; give a whole number from 1 to {MOST}")
    for key, value in (("missing", missing), ("timed", timed)):
        require(path, isinstance(value, bool), f"{key} is {value!r}; write true or false")
    require(path, split in get_args(Split), f"split is {split!r}; write {' or '.join(get_args(Split))}")
    choice = content.get("choice", {})
    check_keys(path, "choice: ", choice, {"seed", "change"})
    require(path, is_whole(choice.get("seed", 0), 0), f"choice: seed is {choice.get('seed')!r}; give a whole number")
    settings_in(path, "choice", choice.get("change", {}))
    _refuse_keys(path, "choice", choice.get("change", {}), ("train.lr", *RUNS), "it is what choosing varies or fixes")
    require(path, not (missing and split != "test"), "missing: true needs split: test; remove one of them")
    return Study(
        name=path.stem,
        caption=str(content["caption"]),
        mirrors=str(content["mirrors"]),
        reference=reference,
        rows=rows,
        pairs=tuple((before, after) for before, after in pairs),
        data=data,
        seeds=seeds,
        choice=Choice(**choice),
        missing=missing,
        timed=timed,
        split=split,
        base=settings_in(path, "base", content.get("base", {})),
        file=path,
    )


def _row(path: Path, content: Any, grid: Any, data: Sequence[str]) -> Row:
    check_keys(path, "a row: ", content, {"name", "config", "change", "on", "lr", "paper"}, ("name",))
    name = str(content["name"])
    require(path, slug(name), f"row {name!r}: its name has no letter or digit")
    require(path, ";" not in name, f"row {name!r}: a name has no semicolon: --rows separates names by it")
    change: dict[str, Any] = {}
    for config in names_of(content.get("config", [])):
        change |= shipped_settings(path, config)
    change |= settings_in(path, f"row {name}", content.get("change", {}))
    lr = content.get("lr", grid)
    valid = isinstance(lr, (list, tuple)) and all(isinstance(rate, float) and 0 < rate < math.inf for rate in lr)
    if not valid or len(lr) not in (0, GRID) or len(set(lr)) < len(lr):
        raise UserError(f"{path}, row {name}: lr is {lr}; give {GRID} learning rates, as every row, or [] for none")
    on: dict[str, dict[str, Any]] = {}
    for key, own in mapping_in(path, f"row {name}: on", content.get("on", {})).items():
        require(path, key in data, f"row {name}: on {key}: is not among the study's data {', '.join(data)}")
        on[name_of_data(key)] = settings_in(path, f"row {name}: on {key}", own)
    for changed in (change, *on.values()):
        _refuse_keys(path, f"row {name}", changed, RUNS, "a study gives each run its seed, and tests the last epoch")
        if lr:
            _refuse_keys(path, f"row {name}", changed, ("train.lr",), "the row has a grid, lr")
    paper = content.get("paper")
    known = paper is None or (isinstance(paper, str) and paper in cells())
    require(path, known, f"row {name}: the paper has no cell {paper!r}; dmpt reproduce --list names them")
    return Row(name, change, on, tuple(lr), paper)
