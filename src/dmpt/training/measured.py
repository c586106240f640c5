"""What a run measures of itself, beside its losses."""

import sys
from collections.abc import Sequence
from typing import Any

import torch


def epoch_line(step: int, epoch: int, seconds: float, steps: Sequence[float]) -> dict[str, Any]:
    """The line of ``metrics.jsonl`` at the end of an epoch.

    Args:
        step: the last of it.
        epoch: from 0.
        seconds: that the whole of it takes.
        steps: seconds of its steps.
    """
    return {
        "step": step,
        "epoch": epoch,
        "epoch_seconds": round(seconds, 2),
        # loading, forward and backward; a tenth of the steps took less: the machine may have other work meanwhile
        "step_seconds": round(sorted(steps)[len(steps) // 10], 5),
        "peak_memory_bytes": peak_memory(),
    }


def peak_memory() -> int | None:
    """The most bytes that were in use: of the GPU where there is one, else by this process; None on Windows."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
