"""Do two commits compute the same, bit for bit?

    python tools/same_numbers.py BEFORE AFTER

Every combination of settings that the shipped configs and studies of BEFORE use is trained by both commits for some 20
steps, scaled down to small towers and a drawn toy set, on one thread each. Compared are the gradients of the first
step, each step's loss terms and gradient norm, the trained tensors and Adam's moments at the end, and the test features
of the saved adapter with all modalities and with some of them. AFTER also loads the adapters of BEFORE. Prints a line
per combination, which is ``same``, ``DIFFERS`` or ``refused`` by both (a row that needs a text tower, on data without
one), and ends with exit code 1 if any differs. ``.`` is the working tree.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

TINY = {"backbone.name", "backbone.weights", "backbone.overrides", "text.file", "text.tower", "text.weights"}
CUTS = (("rgb", "nir", "tir"), ("nir", "tir"), ("tir",))
CLOCKS = ("epoch_seconds", "step_seconds", "peak_memory_bytes")
Settings = dict[str, Any]


def combinations(root: Path) -> dict[str, Settings]:
    """Scaled-down settings as dotted keys, by name, each combination once."""
    from dmpt.base.yaml import load
    from dmpt.settings.values import flatten

    def read(path: Path) -> Any:
        return load(path.read_text(encoding="utf-8"))

    def config(name: str) -> Settings:
        content = read(root / f"configs/{name}.yaml")
        below = config(content.pop("config")) if "config" in content else {}
        return {**below, **flatten(content)}

    found = {path.stem: config(path.stem) for path in sorted((root / "configs").glob("*.yaml"))}
    for name in [name for name in found if name.endswith(("201", "100", "310"))]:
        for change in ("dmpt+", "dmpt-fast"):
            found[f"{name} {change}"] = found[name] | found[change]
    bases = {}
    for path in sorted((root / "studies/data").glob("*.yaml")):
        content = read(path)
        base = config(content["config"]) if "config" in content else {}
        bases[path.stem] = base | flatten(content.get("settings", {}))
    for path in sorted((root / "studies").glob("*.yaml")):
        study = read(path)
        for data in study["data"]:
            for row in study["rows"]:
                change = row.get("change", {}) | row.get("on", {}).get(data, {})
                found[f"{path.stem} on {data}: {row['name']}"] = bases[data] | study.get("base", {}) | change
    scaled, known = {}, set()
    for name, settings in found.items():
        own = _small(settings, config("tiny"))
        if (key := json.dumps(own, sort_keys=True)) not in known:
            known.add(key)
            scaled[name] = own
    return scaled


def _small(settings: Settings, tiny: Settings) -> Settings:
    dino = "dinov2" in settings.get("backbone.name", "")
    drop = {"data.root", "data.layout", "data.object", "data.protocol", "train.epochs", "train.ids", "train.instances"}
    drop |= {"data.size", "data.pad", "data.test_share", "data.value_range", "backbone.projection_dim"}
    own = {key: value for key, value in settings.items() if key not in drop and (dino or key not in TINY)}
    own |= {"data.workers": 0, "train.ids": 4, "train.instances": 2}
    own["train.epochs"] = 0 if settings.get("train.epochs") == 0 else 4
    if dino:
        own |= {"backbone.weights": "random", "backbone.overrides": {"embed_dim": 48, "depth": 10, "num_heads": 3}}
        own |= {"data.size": [56, 28], "data.pad": 3}
    else:
        own |= {key: tiny[key] for key in TINY} | {"data.size": [64, 32], "data.pad": 3}
        own["backbone.projection_dim"] = 128
    if isinstance(own.get("backbone.lora_rank"), str):  # ``equal``: counted by the study
        own["backbone.lora_rank"] = 5
    return own


def work(task: Path) -> None:
    """In a process of its own, with one commit on the path: train every combination, or load another's adapters."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    names = ("Trainer", "load_adapter", "extract", "load_dataset", "restrict", "from_dict", "nest")
    places = (
        ("training.trainer.Trainer", "train.Trainer"),
        ("adapter.folder.load", "adapter.load"),
        ("embed.extract.extract", "retrieval.features.extract"),
        ("data.layouts.load_dataset", "data.datasets.load_dataset"),
        ("data.missing.restrict", "data.subset.restrict"),
        ("settings.values.from_dict", "config_values.from_dict"),
        ("settings.values.nest", "config_values.nest"),
    )
    dmpt = {name: _first(candidates) for name, candidates in zip(names, places, strict=True)}
    given = json.loads(task.read_text())

    def train(folder: Path, settings: Settings) -> None:
        trainer = dmpt["Trainer"](dmpt["from_dict"](dmpt["nest"](settings | {"data.root": given["data"]})), folder)
        with _first_gradients() as gradients:
            trainer.fit()
        np.savez(folder / "gradients.npz", **{str(i): gradient for i, gradient in enumerate(gradients)})
        look(folder / "last", folder / "features.npz")

    def look(adapter: Path, out: Path) -> None:
        network, card = dmpt["load_adapter"](adapter)
        data = replace(card.config.data, root=given["data"], workers=0)
        records = dmpt["load_dataset"](data.layout, data.root, data).query
        seen = {}
        for cut in CUTS:
            for dtype in (torch.float32, torch.bfloat16):
                found = dmpt["extract"](network, dmpt["restrict"](records, cut), data, precision=dtype)
                shared = [] if found.shared is None else [found.shared]
                seen[f"{'+'.join(cut)} {dtype}"] = np.concatenate([found.flat, *shared], axis=1)
        np.savez(out, **seen)

    for number, settings in given["combinations"].items():
        folder = Path(given["out"]) / number
        try:
            if given["others"] is None:
                train(folder, settings)
            elif (Path(given["others"]) / number / "last").exists():
                look(Path(given["others"]) / number / "last", folder / "features-of-before.npz")
        except Exception:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc())


class _first_gradients:
    """Inside, what Adam is given at its first step."""

    def __enter__(self) -> list[Any]:
        import torch

        self.step: Callable[..., Any] = torch.optim.Adam.step
        found: list[Any] = []

        def step(optimizer: Any, *arguments: Any, **options: Any) -> Any:
            if not found:
                given = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
                found.extend(gradient.detach().clone().numpy() for gradient in given)
            return self.step(optimizer, *arguments, **options)

        torch.optim.Adam.step = step  # type: ignore[method-assign]
        return found

    def __exit__(self, *_: object) -> None:
        import torch

        torch.optim.Adam.step = self.step  # type: ignore[method-assign]


def _first(candidates: tuple[str, ...]) -> Any:
    """Rooms were moved: the first of these places that exists."""
    from importlib import import_module

    for place in candidates:
        module, _, name = place.rpartition(".")
        try:
            return getattr(import_module(f"dmpt.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise SystemExit(f"this commit has none of {', '.join(candidates)}")


def verdict(before: Path, after: Path) -> tuple[str, list[str]]:
    """``same``, ``DIFFERS`` or ``refused``, and why."""
    import numpy as np
    from safetensors.numpy import load_file

    files = [folder / "error.txt" for folder in (before, after)]
    failed = {path.parent.parent.name: path.read_text().strip().splitlines()[-1] for path in files if path.exists()}
    said = [f"{side}: {message}" for side, message in failed.items()]
    if failed:
        alike = len(failed) == 2 and len({message.partition(": ")[2] for message in failed.values()}) == 1
        return ("refused", [said[0].partition(": ")[2]]) if alike else ("DIFFERS", said)

    def steps(folder: Path) -> list[Any]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        kept = [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]
        return [{**s, "losses": list(s["losses"].values())} if "losses" in s else s for s in kept]  # names may change

    def values(arrays: Any) -> Counter[Any]:  # whatever they are called
        return Counter((array.shape, array.tobytes()) for array in arrays)

    if steps(before) != steps(after):
        said.append("losses or gradient norms")
    one, two = (values(np.load(folder / "gradients.npz").values()) for folder in (before, after))
    if one != two:
        said.append(f"{(one - two).total()} of {one.total()} gradients of the first step")
    one, two = (values(load_file(folder / "state.safetensors").values()) for folder in (before, after))
    if one != two or not one:
        said.append(f"{(one - two).total()} of {one.total()} tensors at the end")
    for name in ("features.npz", "features-of-before.npz"):
        old, new = np.load(before / "features.npz"), np.load(after / name)
        if wrong := [key for key in old if not np.array_equal(old[key], new[key])]:
            said.append(f"{name} at {', '.join(wrong)}")
    return ("DIFFERS" if said else "same"), said


def main() -> None:
    """Compare two commits."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--only", default="", help="combinations whose name holds this")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        sys.path.insert(0, str(here / "tests"))
        from toy import write_toy_set

        write_toy_set(root / "data", train_ids=8, test_ids=6, images=6, cameras=2, size=(64, 32))
        trees = {}
        for side, commit in (("before", arguments.before), ("after", arguments.after)):
            trees[side] = here if commit == "." else root / f"tree-{side}"
            if commit != ".":
                trees[side].mkdir()
                archive = subprocess.run(["git", "-C", str(here), "archive", commit], capture_output=True, check=True)
                subprocess.run(["tar", "-x", "-C", str(trees[side])], input=archive.stdout, check=True)
        found = combinations(trees["before"])
        numbers = {name: str(number) for number, name in enumerate(found) if arguments.only in name}

        def start(side: str, others: Path | None = None) -> subprocess.Popen[bytes]:
            task = root / f"{side}-{others is not None}.json"
            content: dict[str, Any] = {"out": str(root / side), "data": str(root / "data")}
            content["others"] = None if others is None else str(others)
            content["combinations"] = {number: found[name] for name, number in numbers.items()}
            task.write_text(json.dumps(content))
            place = {**os.environ, "PYTHONPATH": str(trees[side] / "src"), "OMP_NUM_THREADS": "1"}
            log = task.with_suffix(".log").open("w")
            return subprocess.Popen([sys.executable, __file__, "--work", str(task)], env=place, stdout=log, stderr=log)

        for running in (start("before"), start("after")):  # both at once
            assert running.wait() == 0
        assert start("after", root / "before").wait() == 0
        counts: Counter[str] = Counter()
        for name, number in numbers.items():
            what, why = verdict(root / "before" / number, root / "after" / number)
            counts[what] += 1
            print(f"{what:8} {name}" + "".join(f"\n         {line}" for line in why))
        print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
        raise SystemExit(int(counts["DIFFERS"] > 0))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]))
    else:
        main()
