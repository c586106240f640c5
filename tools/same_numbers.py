"""Do two commits compute the same, bit for bit?

    python tools/same_numbers.py BEFORE AFTER

Every combination of settings that the shipped configs and studies of BEFORE use is trained by both commits for some 20
steps, scaled down to small towers and a drawn toy set, on one thread. Compared are each step's loss terms and gradient
norm, the trained tensors and Adam's moments at the end, and the test features of the saved adapter with all modalities
and with some of them. Adapters of BEFORE are also loaded by AFTER. Prints a line per combination and ends with exit
code 1 if any differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

TINY = {"backbone.name", "backbone.weights", "backbone.overrides", "text.file", "text.tower", "text.weights"}
CUTS = (("rgb", "nir", "tir"), ("nir", "tir"), ("tir",))


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys; ``on`` and ``off`` as the words that they are in our files."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and key != "overrides":
            found |= flat(value, f"{prefix}{key}.")
        else:
            off = value is False and f"{prefix}{key}" in ("text.loss",)
            number = isinstance(value, str) and value.replace(".", "").replace("e-", "").isdigit()
            found[f"{prefix}{key}"] = "off" if off else float(value) if number else value
    return found


def nest(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[section] = value
    return nested


def combinations(root: Path) -> dict[str, dict[str, Any]]:
    """Scaled-down settings by name, each combination once."""

    def read(path: Path) -> Any:
        # YAML 1.1 reads ``on`` as true: a row's changes for single data
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    tiny = flat(read(root / "configs/tiny.yaml"))
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "configs").glob("*.yaml")):
        found[path.stem] = flat(read(path))
        if path.stem.endswith(("201", "100", "310")):
            for change in ("dmpt+", "dmpt-fast"):
                found[f"{path.stem} {change}"] = flat(read(path)) | flat(read(root / f"configs/{change}.yaml"))
    bases = {}
    for path in sorted((root / "studies/data").glob("*.yaml")):
        content = read(path)
        config = flat(read(root / f"configs/{content['config']}.yaml")) if "config" in content else {}
        bases[path.stem] = config | flat(content.get("settings", {}))
    for path in sorted((root / "studies").glob("*.yaml")):
        study = read(path)
        for data in study["data"]:
            for row in study["rows"]:
                change = flat(row.get("change", {})) | flat((row.get("on") or row.get(True) or {}).get(data, {}))
                found[f"{path.stem} on {data}: {row['name']}"] = bases[data] | flat(study.get("base", {})) | change
    scaled, known = {}, set()
    for name, settings in found.items():
        own = _small(settings, tiny)
        if (key := json.dumps(own, sort_keys=True)) not in known:
            known.add(key)
            scaled[name] = own
    return scaled


def _small(settings: dict[str, Any], tiny: dict[str, Any]) -> dict[str, Any]:
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


def work(task: Path, out: Path) -> None:
    """In a process of its own, with one commit on the path: train every combination and keep what came of it."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    names = ("Trainer", "load_adapter", "extract", "load_dataset", "restrict", "from_dict")
    places = (
        ("training.trainer.Trainer", "train.Trainer"),
        ("adapter.folder.load", "adapter.load"),
        ("embed.extract.extract", "retrieval.features.extract"),
        ("data.layouts.load_dataset", "data.datasets.load_dataset"),
        ("data.missing.restrict", "data.subset.restrict"),
        ("settings.values.from_dict", "config_values.from_dict"),
    )
    dmpt = {name: _first(candidates) for name, candidates in zip(names, places, strict=True)}
    given = json.loads(task.read_text())
    for done, (number, settings) in enumerate(given["combinations"].items(), 1):
        folder = out / number
        try:
            config = dmpt["from_dict"](nest(settings | {"data.root": given["data"]}))
            trainer = dmpt["Trainer"](config, folder)
            trainer.fit()
            for adapter in [folder, *(Path(other) / number for other in given["others"])]:
                network, card = dmpt["load_adapter"](adapter / "last")
                data = replace(card.config.data, root=given["data"], workers=0)
                records = dmpt["load_dataset"](data.layout, data.root, data).query
                seen = {}
                for cut in CUTS:
                    for dtype in (torch.float32, torch.bfloat16):
                        found = dmpt["extract"](network, dmpt["restrict"](records, cut), data, precision=dtype)
                        shared = [] if found.shared is None else [found.shared]
                        seen[f"{'+'.join(cut)} {dtype}"] = np.concatenate([found.flat, *shared], axis=1)
                np.savez(folder / ("features.npz" if adapter == folder else "features-of-other.npz"), **seen)
        except Exception:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "error.txt").write_text(traceback.format_exc())
        sys.stderr.write(f"{done} of {len(given['combinations'])}\n")


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


def differences(before: Path, after: Path) -> list[str]:
    """What is not the same, in words."""
    import numpy as np
    from safetensors.numpy import load_file

    files = [folder / "error.txt" for folder in (before, after)]
    failed = {path.parent.parent.name: path.read_text().strip().splitlines()[-1] for path in files if path.exists()}
    if len({message.partition(": ")[2] for message in failed.values()}) == 1 and len(failed) == 2:
        return []  # rows that need a text tower, on data without one: refused by both
    if failed:
        return [f"{side}: {message}" for side, message in failed.items()]
    found = []
    clocks = ("epoch_seconds", "step_seconds", "peak_memory_bytes")

    def steps(folder: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        steps = [{k: v for k, v in line.items() if k not in clocks} for line in lines]
        # terms may have other names
        return [{**s, "losses": list(s["losses"].values())} if "losses" in s else s for s in steps]

    if steps(before) != steps(after):
        found.append("losses or gradients")
    one, two = (load_file(folder / "state.safetensors") for folder in (before, after))
    values = [Counter((x.shape, x.tobytes()) for x in state.values()) for state in (one, two)]  # names may change
    if values[0] != values[1] or not one:
        missing = [name for name, x in one.items() if (x.shape, x.tobytes()) not in values[1]]
        found.append(f"{len(missing)} of {len(one)} tensors" + f", {missing[0]} first" * bool(missing))
    for name in ("features.npz", "features-of-other.npz"):
        old, new = np.load(before / "features.npz"), np.load(after / name)
        if wrong := [key for key in old if old[key].shape != new[key].shape or not (old[key] == new[key]).all()]:
            off = max(float(abs(old[key] - new[key]).max()) for key in wrong if old[key].shape == new[key].shape)
            found.append(f"{name} at {', '.join(wrong)}, by {off:.1e}")
    return found


def main() -> None:
    """Compare two commits; ``.`` is the working tree."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--only", default="", help="combinations whose name holds this")
    parser.add_argument("--keep", default=None, help="a folder that keeps what BEFORE gave, for the next comparison")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as temporary:
        root, kept = Path(temporary), Path(arguments.keep) if arguments.keep else Path(temporary)
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
        for side, tree in trees.items():
            out = (kept if side == "before" else root) / side
            if side == "before" and (kept / "before.json").exists():
                held = json.loads((kept / "before.json").read_text())
                assert all(held.get(name) == number for name, number in numbers.items()), f"{kept} holds others"
                continue
            others = [str(kept / "before")] if side == "after" else []
            task = root / f"{side}.task.json"
            task.write_text(
                json.dumps(
                    {
                        "combinations": {n: found[name] for name, n in numbers.items()},
                        "data": str(root / "data"),
                        "others": others,
                    }
                )
            )
            command = [sys.executable, __file__, "--work", str(task), str(out)]
            place = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
            log = (root / f"{side}.log").open("w")
            subprocess.run(command, env=place, check=True, stdout=log, stderr=subprocess.STDOUT)
            if arguments.keep and side == "before":
                (kept / "before.json").write_text(json.dumps(numbers))
        wrong = 0
        for name, number in numbers.items():
            said = differences(kept / "before" / number, root / "after" / number)
            wrong += bool(said)
            print(f"{'DIFFERS' if said else 'same':8} {name}" + "".join(f"\n         {line}" for line in said))
        print(f"{len(numbers) - wrong} of {len(numbers)} combinations are the same, bit for bit")
        raise SystemExit(int(wrong > 0))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(*map(Path, sys.argv[2:4]))
    else:
        main()
