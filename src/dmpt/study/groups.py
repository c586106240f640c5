"""The rows of a table, and how they compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dmpt.base.errors import UserError
from dmpt.paper.cells import Cell
from dmpt.retrieval.statistics import Comparison, bootstrap, holm
from dmpt.study.results import Result


@dataclass(frozen=True)
class Group:
    """A row that was tested."""

    name: str  # of the row
    cell: Cell | None  # the paper's that it mirrors on these data
    results: Sequence[Result]  # one per seed, in ascending order

    def values(self, *keys: str) -> list[float]:
        """A number of each seed, by its path among the result's numbers; empty where a seed has none."""
        found: list[Any] = [result.numbers for result in self.results]
        for key in keys:
            found = [content.get(key) if isinstance(content, dict) else None for content in found]
        return [] if None in found else [float(value) for value in found]

    def seconds(self) -> list[float]:
        """Of a step, for each seed that was run for this study; what another study ran says nothing here."""
        own = (result.study for result in self.results if "taken_from" not in result.study)
        return [study["seconds_per_step"] for study in own if study.get("seconds_per_step") is not None]


def compare(pairs: Sequence[tuple[Group, Group]]) -> list[tuple[Comparison, float]]:
    """How far the second of each pair is ahead of the first, with p corrected over all pairs."""
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
                f"{group.name}, seed {result.seed}: was tested on other queries than the rows before it; one of the "
                "results is damaged: give another --results, and run again"
            )
        expected = pids
        rows.append(values)
    return expected, np.stack(rows)
