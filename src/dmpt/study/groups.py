"""The rows of a table: results that belong together, refused where they do not, and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dmpt.base.errors import UserError
from dmpt.data.records import names_in, sizes_in
from dmpt.retrieval.statistics import Comparison, bootstrap, holm
from dmpt.study.definition import EQUAL, RANK, Row, Study
from dmpt.study.results import Result, check_row_of, comparable, difference

PLANNED = {"train.lr", "train.seed", "train.eval_every"}
"""What ``dmpt.study.plan`` sets for each run, whatever the base."""
TOWER = {"backbone.name", "backbone.weights"}
"""What a row changes that has weights of its own."""


@dataclass(frozen=True)
class Group:
    """A row and its seeds.

    Attributes:
        row: of the study.
        change: the settings in which it differs from the base on these data, as dotted keys.
        results: one per seed, in ascending order.
    """

    row: Row
    change: dict[str, Any]
    results: tuple[Result, ...]

    @property
    def name(self) -> str:
        """Of its row."""
        return self.row.name

    def values(self, *keys: str) -> list[float]:
        """A number of each seed, by its path in ``metrics.json``; empty where a seed has none."""
        found: list[Any] = [result.numbers for result in self.results]
        for key in keys:
            found = [content.get(key) if isinstance(content, dict) else None for content in found]
        return [] if None in found else [float(value) for value in found]

    def seconds(self) -> list[float]:
        """Of a step, for each seed that was run for this study; what another study took says nothing here."""
        own = (result.numbers["study"] for result in self.results if "taken_from" not in result.numbers["study"])
        return [study["seconds_per_step"] for study in own if study.get("seconds_per_step") is not None]


def groups_of(study: Study, data: str, found: Sequence[Result]) -> list[Group]:
    """Rows that have been tested, in the order of the study."""
    groups = []
    for row in study.rows:
        own = [result for result in found if result.slug == row.slug and not result.chooses]
        if own:
            groups.append(Group(row, row.changes(data), tuple(sorted(own, key=lambda result: result.seed))))
    _check_alike(groups)
    _check_equal(groups)
    return groups


def _check_alike(groups: Sequence[Group]) -> None:
    """Refuse to compare what was made from different data, weights or bases, and to average different settings.

    Raises:
        UserError: names the first that differs.
    """
    seen: dict[str, tuple[Any, Result]] = {}  # of everything that its row does not change: the first, and whose it is
    for group in groups:
        for result, again in pairwise(group.results):
            if result.seed == again.seed:
                raise UserError(f"{again.folder} is of seed {again.seed}, as {result.folder} is; remove one of them")
        for result in group.results:
            check_row_of(result, group.change)
            differs = difference(group.results[0].config, result.config, {"train.seed"})
            if differs is not None:
                _refuse_mix(group.results[0], result, *differs)
            base = {k: v for k, v in comparable(result.config).items() if k not in group.change.keys() | PLANNED}
            data = result.numbers["study"]["data_fingerprint"]
            base["data_fingerprint"] = names_in(data)
            if sizes_in(data):
                base["data_fingerprint with sizes"] = data
            # random weights are drawn anew for each seed, and those of a row's own tower are the row's
            if result.config["backbone.weights"] != "random":
                own = f" of {group.name}" if TOWER & group.change.keys() else ""
                base[f"backbone_sha256{own}"] = result.numbers["study"]["backbone_sha256"]
            for key, now in base.items():
                before, first = seen.setdefault(key, (now, result))
                if before != now:
                    _refuse_mix(first, result, key, before, now)


def _check_equal(groups: Sequence[Group]) -> None:
    """Refuse results of a row of equal count that was of another rank; the row that changes nothing is the measure.

    Raises:
        UserError: names the first.
    """
    plain = next((group.results[0] for group in groups if not group.change), None)
    if plain is None:
        return
    wanted = plain.numbers["study"]["trained"]
    for result in (r for group in groups if group.change.get(RANK) == EQUAL for r in group.results):
        trained = result.numbers["study"]["trained"]
        if abs(trained - wanted) > wanted / 100:
            raise UserError(
                f"{result.folder}: trains {trained:,} parameters, not as many as the {wanted:,} of {plain.row}; remove "
                "it and run again"
            )


def _refuse_mix(first: Result, other: Result, key: str, before: Any, now: Any) -> None:
    raise UserError(
        f"{other.folder}: {key} is {now}, but {before} in {first.folder}, of the same table; remove "
        "one of them and run again, or keep them apart by another --results"
    )


def compare(pairs: Sequence[tuple[Group, Group]]) -> list[tuple[Comparison, float]]:
    """How far the second of each pair is ahead of the first, with p corrected over all pairs.

    Raises:
        UserError: they were tested on other queries.
    """
    pids: Any = None
    values: dict[str, Any] = {}
    for group in (group for pair in pairs for group in pair):
        if group.name not in values:
            pids, values[group.name] = _queries(group, pids)
    found = [bootstrap(values[first.name], values[second.name], pids) for first, second in pairs]
    corrected = holm([comparison.p for comparison in found])
    return list(zip(found, corrected, strict=True))


def _queries(group: Group, expected: Any) -> tuple[Any, Any]:
    """Identities ``(Q,)`` and average precision ``(seeds, Q)``."""
    rows = []
    for result in group.results:
        pids, values = result.queries()
        if expected is not None and not np.array_equal(pids, expected):
            raise UserError(
                f"{result.folder}: was tested on other queries than {group.results[0].folder} or the reference; see "
                "which is damaged, remove its folder and run again"
            )
        expected = pids
        rows.append(values)
    return expected, np.stack(rows)
