"""What only a GPU can show, in under five minutes on one.

    python benchmarks/gpu.py             # wants a GPU, and nothing but the installed package
    python benchmarks/gpu.py --smoke     # every part in miniature, on any machine

Weights are random and pictures are drawn, so nothing is downloaded. The parts, in the order in which they run:

forms      prefixes equal tokens, baked prompts equal unbaked ones, features equal the CPU's: in every precision
resume     training is killed in its middle and resumed; the adapter equals an unbroken run's bit for bit, or which
           setting of torch that takes
step       a training step of rgbnt201.yaml with 64 x 3 images beside full fine-tuning of the plain tower under the same
           losses: time and peak memory
forward    samples per second, and which share of a large matrix product's FLOPs per second that is
loader     how many loader processes feed such a step
configs    every shipped config trains 20 steps in bf16, fp16 and fp32, as far as the five minutes allow

A part that fails is named and the others go on. What was found is printed, a line per goal, and written as one JSON
file, anew after every part. A file of a card that is not yet in docs/benchmarks is welcome there.
"""

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dmpt.base.environment import environment
from dmpt.base.files import write_text
from goals import cores
from gpu_bench import Bench
from gpu_checks import configs, forms
from gpu_resume import resume
from gpu_speed import forward, loader, step

PARTS: dict[str, Callable[[Bench], None]] = {
    "forms": forms,
    "resume": resume,
    "step": step,
    "forward": forward,
    "loader": loader,
    "configs": configs,
}
LIMIT = 280.0
"""Seconds after which no other config is begun."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when a part failed, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="every part in miniature; what it measures says nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="only some")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file to write (gpu.json)")
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.smoke:
        parser.error("torch finds no GPU here; --smoke tries every part in miniature on the CPU")
    began = time.monotonic()
    report: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "smoke": args.smoke,
        "seed": 0,
        "machine": machine(device),
        "parts": {name: {"state": "not run"} for name in args.parts},
        "goals": [],
    }
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    stopped = False
    with tempfile.TemporaryDirectory(prefix="dmpt-gpu-", ignore_cleanup_errors=True) as scratch:
        os.environ["DMPT_CACHE"] = str(Path(scratch) / "cache")  # what is kept there would be of drawn pictures
        bench = Bench(
            device, args.smoke, Path(scratch), math.inf if args.smoke else began + LIMIT, goals=report["goals"]
        )
        for name in args.parts:
            own = replace(bench, found={}, broken=[])
            report["parts"][name] = run(name, PARTS[name], own)
            stopped = report["parts"][name]["state"] == "interrupted"
            report["seconds"] = round(time.monotonic() - began, 1)
            write_text(args.out, json.dumps(finite(report), indent=2) + "\n")
            if stopped:
                break
    failed = [name for name, part in report["parts"].items() if part["state"] == "failed"]
    print(f"\n{report['seconds']:.0f} s; {args.out} holds it all; failed: {', '.join(failed) or 'nothing'}")
    return 130 if stopped else int(bool(failed))


def run(name: str, part: Callable[[Bench], None], bench: Bench) -> dict[str, Any]:
    """What a part found, and how it ended."""
    print(f"\n{name}")
    began, end = time.monotonic(), {"state": "done"}
    try:
        bench.free()  # what the part before used
        part(bench)
        if bench.broken:
            end = {"state": "failed", "why": "; ".join(bench.broken)}
    except KeyboardInterrupt:
        end = {"state": "interrupted"}
    except Exception as error:
        traceback.print_exc()
        end = {"state": "failed", "why": bench.said(error)}
    if "why" in end:
        print(f"FAILED {name}: {end['why']}")
    return {**end, "seconds": round(time.monotonic() - began, 1), **bench.found}


def machine(device: str) -> dict[str, Any]:
    """Versions and hardware; no name of a user, a host or a folder."""
    known = {key: value for key, value in environment().items() if key not in ("command", "threads")}
    known |= {name: version(name) for name in ("torchvision", "accelerate", "numpy")}
    known |= {"processor": platform.machine(), "cores": cores()}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        known |= {
            "memory_gib": round(card.total_memory / 2**30, 1),
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_convolution": torch.backends.cudnn.allow_tf32,
        }
    return known


def finite(value: Any) -> Any:
    """For JSON, which has no infinity."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main())
