"""Finished runs: one file for a study and its data, ``RESULTS/STUDY/DATA.jsonl.gz``, that outlives their folders.

A line of JSON for each run: ``settings`` without paths of the machine, ``numbers`` and where they come from, and
``per_query``: identities and average precisions in percent, null where there is nothing to find. The line before them
says what the study was asked for last, which its table shows (``Kept``).
"""

import gzip
import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically
from dmpt.base.lock import Lock, Taken
from dmpt.data.records import same_data
from dmpt.retrieval.metrics import MEASURES
from dmpt.settings.config import Config
from dmpt.settings.places import named, without_places
from dmpt.settings.values import dotted, flatten, nest, renamed
from dmpt.study.definition import TRIAL, slug
from dmpt.study.reading import KNOWN
from dmpt.training.state import HARMLESS, unread

ENDING = ".jsonl.gz"
_NEEDED = (
    *("data", "row", "kind", "trained", "seconds_per_epoch", "peak_memory_bytes", "jobs"),
    *("data_fingerprint", "backbone_sha256"),
)
"""What ``study`` in a result's numbers must hold."""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    config: dict[str, Any]  # its settings, as dotted keys
    numbers: dict[str, Any]  # the metrics, where they come from, and under ``study`` what the run was for
    per_query: dict[str, list[Any]]  # ``pids`` and ``average_precision``

    @property
    def study(self) -> dict[str, Any]:
        """What the run was for."""
        return self.numbers["study"]  # type: ignore[no-any-return]

    @property
    def row(self) -> str:
        """Name of the row that asked for it."""
        return str(self.study["row"])

    @property
    def seed(self) -> int:
        """Of training."""
        return int(self.config["train.seed"])

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return float(self.config["train.lr"])

    @property
    def diverged(self) -> bool:
        """Whether its training, on validation identities, ended in numbers that are not finite; its measures are 0."""
        return "diverged" in self.numbers

    @property
    def place(self) -> tuple[str, str]:
        """Its row and run, by which results are in order."""
        return slug(self.row), run_name(self.config)

    @cached_property
    def content(self) -> dict[str, Any]:
        """Its settings, as ``content_of`` has them."""
        return content_of(self.config)

    def is_run_of(self, content: Mapping[str, Any], data: str, backbone: str | None) -> bool:
        """Whether it is a seed of these settings (``content_of``), whoever asked for it.

        Args:
            content: of the settings.
            data: fingerprint; empty = not looked at.
            backbone: sha256 of the weights; None = not looked at, or random, and so of the settings.
        """
        known = not data or same_data(self.study["data_fingerprint"], data)
        return known and backbone in (None, self.study["backbone_sha256"]) and self.content == content

    def as_of(self, **study: Any) -> "Result":
        """The same, with other words on what it was for."""
        return replace(self, numbers={**self.numbers, "study": {**self.study, **study}})

    def queries(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Identity and average precision of each query, ``(Q,)`` each; NaN where there is nothing to find."""
        values = np.array(self.per_query["average_precision"], dtype=np.float64)
        return np.array(self.per_query["pids"], dtype=np.int64), values


@dataclass(frozen=True)
class Kept:
    """The file of a study and its data: what was asked for last, and all that was found, for whatever settings."""

    base: dict[str, Any] = field(default_factory=dict)  # settings as dotted keys, without paths
    data: str = ""  # fingerprint
    backbones: dict[str, str] = field(default_factory=dict)  # sha256 of weights, by ``backbone_name``
    ranks: dict[str, int] = field(default_factory=dict)  # of LoRA, in rows that train as many parameters as the base
    results: tuple[Result, ...] = ()  # in the order of rows and runs


def run_name(config: Mapping[str, Any]) -> str:
    """How a run of these settings, as dotted keys, is called beside the others of its row."""
    seed = config["train.seed"]
    return f"lr-{config['train.lr']:g}" if seed == TRIAL else f"seed-{seed}"


def backbone_name(config: Config) -> str:
    """What ``Kept.backbones`` calls a backbone: its architecture and file."""
    return f"{config.backbone.name} {named('backbone.weights', config.backbone.weights)}"


def read(path: Path) -> Kept:
    """What is kept in a file; nothing where there is none."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            asked, *lines = map(json.loads, file)
        results = tuple(
            _checked(renamed(flatten(line["settings"])), line["numbers"], line["per_query"]) for line in lines
        )
        return Kept(renamed(flatten(asked["base"])), asked["data"], asked["backbones"], asked["ranks"], results)
    except FileNotFoundError:
        return Kept()
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}); put a copy in its place, or remove it and run again: runs whose folders "
            "are there are only evaluated"
        ) from error


def _checked(config: dict[str, Any], numbers: dict[str, Any], per_query: dict[str, list[Any]]) -> Result:
    result = Result(config, numbers, per_query)
    _ = result.place, result.seed, result.lr, dict(numbers["provenance"]), [result.study[key] for key in _NEEDED]
    if not all(math.isfinite(numbers[key]) for key in MEASURES):
        raise ValueError("a measure is no number")
    if result.queries()[0].shape != result.queries()[1].shape:
        raise ValueError("not every query has an identity and a precision")
    return result


def keep(path: Path, found: Iterable[Result] = (), **asked: Any) -> Kept:
    """Add results to a file, in place of those of the same runs; or say what is asked for, as ``Kept`` has it."""
    lock = _alone(path.parent)
    try:
        before = read(path)
        results = list(before.results)
        for new in found:
            known = new.content, new.study["data_fingerprint"], new.study["backbone_sha256"]
            results = [old for old in results if old.seed != new.seed or not old.is_run_of(*known)]
            results.append(new)
        after = replace(before, **asked, results=tuple(sorted(results, key=lambda result: result.place)))
        if after != before or not path.exists():
            write_atomically(path, lambda temporary: temporary.write_bytes(_packed(after)))
        return after
    finally:
        if lock is not None:
            lock.release()


def _packed(kept: Kept) -> bytes:
    """The file's bytes: the same for the same content."""
    first = {"base": nest(kept.base), "data": kept.data, "backbones": kept.backbones, "ranks": kept.ranks}
    lines = [{"settings": nest(r.config), "numbers": r.numbers, "per_query": r.per_query} for r in kept.results]
    return gzip.compress("".join(f"{json.dumps(line)}\n" for line in (first, *lines)).encode(), mtime=0)


def _alone(folder: Path) -> Lock | None:
    """Wait for others that write there; None where no lock can be made, and then nothing can be written."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return Lock(folder / ".lock")
        except Taken:
            time.sleep(0.05)
        except OSError:
            return None


def content_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, as dotted keys, as far as they say which numbers come out; all but the seed.

    A setting that is younger than a run had its default; ``data.mean`` and ``data.std`` that are the tower's count as
    not set; a text tower that nobody reads is left out; text files count by their names, wherever they are; what the
    backbone's file holds, its grid of positions included, is compared by hash, which random weights have none of.
    """
    whole = {key: settings.get(key, default) for key, default in KNOWN.items()}
    found = {key: value for key, value in whole.items() if key not in HARMLESS}
    found |= {key: None for key, own in _normalisation(whole["backbone.name"]).items() if found[key] == own}
    found |= {key: named(key, whole[key]) for key in ("text.tower", "text.weights", "text.file")}
    found["backbone.weights"] = "random" if whole["backbone.weights"] == "random" else "from a file"
    for key in ("train.seed", "backbone.grid", *unread(whole)):
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


def settings_to_keep(config: Config) -> dict[str, Any]:
    """As dotted keys, without paths of the machine."""
    return dotted(without_places(config))
