"""What every benchmark here shares: paired timing, facts about the machine, and a line per goal."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

STATUS = Path("/proc/self/status")


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


def rounds(variants: Mapping[str, Callable[[], object]], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Seconds of each of several callables, in rounds: every round runs all, and begins with another one.

    All run ``warm`` times untimed before.
    """
    for _ in range(warm):
        for call in variants.values():
            call()
    order = list(variants)
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(repeats):
        for name in order:
            times[name].append(seconds(variants[name]))
        order.append(order.pop(0))
    return times


def beside(times: Mapping[str, list[float]], name: str, others: Iterable[str]) -> float:
    """Median over the rounds of a callable's time / that of another; of several others the fastest counts."""
    return max(statistics.median(a / b for a, b in zip(times[name], times[other], strict=True)) for other in others)


def table(times: Mapping[str, list[float]]) -> None:
    """Print the median of each callable."""
    for name, taken in times.items():
        print(f"{name:60}{statistics.median(taken):10.3f} s")


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
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy"))
    return f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, {packages}"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def status(key: str) -> int:
    """One memory entry of this process, in bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])
