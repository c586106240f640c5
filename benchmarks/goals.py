"""What every benchmark here shares: paired timing, facts about the machine, and a line per goal."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple


class Ratio(NamedTuple):
    """Two callables compared: median of the paired ratios a / b, and the median seconds of each."""

    ratio: float
    a: float
    b: float


def median_ratio(a: Callable[[], object], b: Callable[[], object], repeats: int) -> Ratio:
    """Time ``a`` and ``b`` in turns, so that a slow minute of the machine hits both.

    Both run once untimed before; every repeat also swaps which goes first.
    """
    a(), b()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            second = seconds(b)
            pairs.append((seconds(a), second))
        else:
            pairs.append((seconds(a), seconds(b)))
    return Ratio(
        statistics.median(x / y for x, y in pairs),
        statistics.median(x for x, _ in pairs),
        statistics.median(y for _, y in pairs),
    )


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def goal(name: str, measured: float, limit: float, at_most: bool = True) -> bool:
    """Print ``GOAL name measured <= limit ok`` (or ``short``) and return whether it is met."""
    met = measured <= limit if at_most else measured >= limit
    print(f"GOAL {name} {measured:.3g} {'<=' if at_most else '>='} {limit:g} {'ok' if met else 'short'}")
    return met


def machine() -> str:
    """One line: processor kind, cores this process may use, Python, torch and numpy versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, {packages}"
