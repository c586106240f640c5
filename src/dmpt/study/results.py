"""Finished runs, as small files that outlive their folders: ``studies/results/NAME/DATA/ROW/RUN/``.

config.yaml    the settings, without paths of the machine
metrics.json   the numbers, and where they come from
queries.csv    average precision of each query, in percent; empty where there is nothing to find
"""

import csv
import io
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.base.files import write_text
from dmpt.data.records import same_data, short
from dmpt.retrieval.metrics import MEASURES
from dmpt.settings.config import Config
from dmpt.settings.places import named, without_places
from dmpt.settings.saved import CONFIG, read_settings, write_settings
from dmpt.settings.values import difference as settings_differing
from dmpt.settings.values import dotted
from dmpt.study.definition import EQUAL, RANK
from dmpt.study.reading import KNOWN
from dmpt.training.state import HARMLESS, unread

METRICS, QUERIES = "metrics.json", "queries.csv"
NEEDED = (
    *("data", "row", "kind", "trained", "seconds_per_epoch", "peak_memory_bytes", "jobs"),
    *("data_fingerprint", "backbone_sha256"),
)
"""What ``study`` in ``metrics.json`` must hold."""


@dataclass(frozen=True)
class Result:
    """One finished run.

    Attributes:
        folder: where it is kept.
        numbers: ``metrics.json``: the metrics, and under ``study`` what the run was for.
        config: its settings, as dotted keys.
    """

    folder: Path
    numbers: dict[str, Any]
    config: dict[str, Any]

    @property
    def row(self) -> str:
        """Name of its row."""
        return str(self.numbers["study"]["row"])

    @property
    def slug(self) -> str:
        """Its row's folder: a row that was renamed may still have it."""
        return self.folder.parent.name

    @property
    def seed(self) -> int:
        """Of training."""
        return int(self.config["train.seed"])

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return float(self.config["train.lr"])

    @property
    def chooses(self) -> bool:
        """Whether it chose a learning rate, on validation identities; else it was tested."""
        return bool(self.numbers["study"]["kind"] == "choice")

    @property
    def diverged(self) -> bool:
        """Whether its training ended in numbers that are not finite; its measures are 0 then."""
        return "diverged" in self.numbers

    def queries(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Identity and average precision of each query, ``(Q,)`` each; NaN where there is nothing to find.

        Raises:
            UserError: the file is missing or damaged.
        """
        path = self.folder / QUERIES
        try:
            with path.open(encoding="utf-8", newline="") as file:
                lines = list(csv.DictReader(file))
            pids = np.array([int(line["pid"]) for line in lines], dtype=np.int64)
            return pids, np.array([float(line["average_precision"] or "nan") for line in lines])
        except (OSError, ValueError, OverflowError, KeyError, TypeError) as error:
            raise UserError(f"{path} is missing or damaged ({error!r}); remove its folder and run again") from error


def keep(folder: Path, config: Config, numbers: Mapping[str, Any], per_query: Mapping[str, Any]) -> None:
    """Write a result; ``metrics.json`` comes last, so that a folder with one is whole.

    Raises:
        UserError: it cannot be written.
    """
    write_settings(folder, without_places(config))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pid", "average_precision"])
    for pid, value in zip(per_query["pids"], per_query["average_precision"], strict=True):
        writer.writerow([pid, "" if value is None else f"{value:.4f}"])
    write_text(folder / QUERIES, text.getvalue())
    write_text(folder / METRICS, json.dumps(numbers, indent=1) + "\n")


def read(folder: Path) -> Result | None:
    """The result in a folder; None where there is none yet, or the numbers are of a run outside any study.

    Raises:
        UserError: it is damaged.
    """
    if not (folder / METRICS).is_file():
        return None
    try:
        numbers = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if isinstance(numbers, dict) and "study" not in numbers:
            return None
        result = Result(folder, numbers, read_settings(folder))
        _ = result.row, result.seed, result.lr, result.chooses, dict(numbers["provenance"])
        _ = [numbers["study"][key] for key in NEEDED]
        if not all(math.isfinite(numbers[key]) for key in MEASURES):
            raise ValueError("a measure is no number")
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is damaged ({error!r}); remove its folder and run again") from error


def read_all(folder: Path) -> list[Result]:
    """All results below a folder, in the order of their paths."""
    found = (read(path.parent) for path in sorted(folder.rglob(METRICS)))
    return [result for result in found if result is not None]


def check_settings_of(folder: Path, config: Config) -> None:
    """Refuse a run or result in ``folder`` that was made with other settings; none there is fine.

    Raises:
        UserError: names the setting that differs.
    """
    if not (folder / CONFIG).is_file():
        return
    differs = difference(read_settings(folder), dotted(config))
    if differs is not None:
        refuse(folder, *differs)


def difference(
    old: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()
) -> tuple[str, Any, Any] | None:
    """The first setting in which two runs differ: its name, then and now; None where they do not.

    Args:
        old: settings of a kept run, as dotted keys.
        now: settings of another, or those at hand.
        free: settings in which they may differ.
    """
    before, after = comparable(old), comparable(now)
    # what one of them leaves to be measured on the data, which are compared by themselves, is what the other measured
    left = {key for key in after if key not in before or "auto" in (before[key], after[key])}
    differs = settings_differing(before, after, {*left, *free})
    return next(((key, *pair) for key, pair in differs.items()), None)


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, as dotted keys, as far as they say which numbers come out.

    A setting that is younger than a run had its default; ``data.mean`` and ``data.std`` that are the tower's count as
    not set; a text tower that nobody reads is left out; text files count by their names, wherever they are; what the
    backbone's file holds, its grid of positions included, is compared by hash (``check_inputs_of``), which random
    weights have none of.
    """
    whole = {key: settings.get(key, default) for key, default in KNOWN.items()}
    found = {key: value for key, value in whole.items() if key not in HARMLESS}
    found |= {key: None for key, own in _normalisation(whole["backbone.name"]).items() if found[key] == own}
    found |= {key: named(key, whole[key]) for key in ("text.tower", "text.weights", "text.file")}
    found["backbone.weights"] = "random" if whole["backbone.weights"] == "random" else "from a file"
    for key in ("backbone.grid", *unread(whole)):
        del found[key]
    return found


@cache
def _normalisation(name: str) -> dict[str, list[float]]:
    """What training fills in where they are null; empty = such a tower is not known, and never was trained."""
    import timm

    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError:
        return {}
    return {} if known is None else {"data.mean": list(known.mean), "data.std": list(known.std)}


def check_row_of(result: Result, change: Mapping[str, Any]) -> None:
    """Refuse a result that was made when its row was another.

    Args:
        result: what is kept.
        change: what the row changes now, as dotted keys.

    Raises:
        UserError: names the setting that differs.
    """
    fixed = {key: value for key, value in change.items() if (key, value) != (RANK, EQUAL)}  # that rank is the base's
    differs = difference(result.config, {**result.config, **fixed})
    if differs is not None:
        refuse(result.folder, *differs)


def check_inputs_of(result: Result, data: str, backbone: str | None) -> None:
    """Refuse a result on other data or another backbone.

    Args:
        result: what is kept.
        data: fingerprint of the data at hand.
        backbone: sha256 of the weights at hand; None where they are random, and so follow from the settings.

    Raises:
        UserError: names what differs.
    """
    old = result.numbers["study"]
    if not same_data(old["data_fingerprint"], data):
        refuse(result.folder, "the data's fingerprint", short(old["data_fingerprint"]), short(data))
    if backbone is not None and old["backbone_sha256"] != backbone:
        refuse(result.folder, "sha256 of the backbone's weights", str(old["backbone_sha256"])[:12], backbone[:12])


def refuse(folder: Path, what: str, before: Any, now: Any) -> None:
    """Say what differs.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"{folder}: {what} was {before}, now it is {now}; go on with what it began with, give another "
        "--results and --out, or remove this folder"
    )
