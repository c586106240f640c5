"""Small training runs on the toy set, in this process and as a command."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dmpt.adapter.folder import load
from dmpt.data.layouts import load_dataset
from dmpt.evaluation.evaluate import evaluate
from dmpt.settings.config import (
    BackboneConfig,
    BindConfig,
    Config,
    DataConfig,
    ModalityConfig,
    SemanticConfig,
    TextConfig,
    TrainConfig,
)
from dmpt.training.trainer import Trainer
from toy import write_toy_set

TOWER = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def toy(root: Path, **changes: Any) -> Path:
    """A toy set of 8 training and 4 test identities, 6 samples each, 32x16 pixels."""
    settings: dict[str, Any] = {"train_ids": 8, "test_ids": 4, "images": 6, "cameras": 2, "size": (32, 16)}
    write_toy_set(root, **(settings | changes))
    return root


def own_data(folder: Path, source: Path, test_has: Any) -> Path:
    """A manifest of the toy set whose test samples lack what ``test_has`` says no to."""
    listed = load_dataset("rgbnt201", source, settings(source).data)
    rows = [",".join(map(str, [*r.paths.values(), r.pid, r.camera, "train"])) for r in listed.train]
    for record in listed.gallery:
        paths = [str(path) if test_has(record, name) else "" for name, path in record.paths.items()]
        rows.append(",".join([*paths, str(record.pid), str(record.camera), "test"]))
    folder.mkdir()
    (folder / "manifest.csv").write_text("\n".join(["rgb,nir,tir,pid,camera,split", *rows]) + "\n")
    return folder


def settings(root: Path, **train: Any) -> Config:
    """All components but the text side, in small."""
    recipe: dict[str, Any] = {"epochs": 3, "ids": 4, "instances": 2, "save_every": 2}
    return Config(
        data=DataConfig(root=str(root), size=(32, 16), pad=2, workers=0),
        backbone=BackboneConfig(name="vit_small_patch16_224", weights="random", overrides=dict(TOWER)),
        semantic=SemanticConfig(length=3),
        modality=ModalityConfig(source="learned", width=16),
        bind=BindConfig(depth=1),
        text=TextConfig(loss="off"),
        train=TrainConfig(**(recipe | train)),
    )


def with_(config: Config, **sections: dict[str, Any]) -> Config:
    """``config`` with some settings changed: ``with_(c, train={"lr": 1.0})``."""
    return replace(config, **{name: replace(getattr(config, name), **values) for name, values in sections.items()})


def fit(config: Config, out: Path, **options: Any) -> Trainer:
    """Train in this process."""
    trainer = Trainer(config, out, **options)
    trainer.fit()
    return trainer


def with_shared_part(folder: Path, epochs: int = 1) -> Path:
    """A run on a toy set, ``folder/run`` and ``folder/data``, whose model has a shared part."""
    fit(with_(settings(toy(folder / "data"), epochs=epochs), missing={"dropout": 0.3}), folder / "run")
    return folder / "run"


def dying(trainer: Trainer, steps: int) -> Trainer:
    """A trainer that is killed after so many steps."""
    step, left = trainer._step, iter(range(steps))

    def one(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("killed")
        return step(*arguments)

    trainer._step = one  # type: ignore[method-assign]
    return trainer


def flags(config: Config) -> list[str]:
    """The command line of a configuration."""
    from dataclasses import asdict

    from dmpt.settings.values import flatten

    def text(value: Any) -> str:
        return value if isinstance(value, str) else json.dumps(value)

    return [f"--{key}={text(value)}" for key, value in flatten(asdict(config)).items()]


def dmpt(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "dmpt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def torchrun(*arguments: str | Path, processes: int = 2, restarts: int = 0) -> list[str]:
    """The command that starts ``dmpt`` in several processes; accelerate's launcher starts one on a CPU, unnoticed."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launch, f"--max-restarts={restarts}", "-m", "dmpt", *map(str, arguments)]


def processes_of(run: Path) -> int:
    """How many processes a run's saved state says that it had."""
    with safe_open(run / "state.safetensors", framework="pt") as file:
        return int(json.loads(file.metadata()["identity"])["number of processes"])


def adapter_gives_what_was_trained(config: Config, folder: Path) -> None:
    """Train, load the adapter, and compare its features with the trained network's; evaluation reads it too."""
    trainer = fit(config, folder)
    network, card = load(folder / "last")
    assert card.config.backbone.tune == config.backbone.tune
    images = torch.randn(3, 2, 3, *config.data.size)
    trainer.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), trainer.network.embed(images))
    evaluate(folder)


def is_running(pid: int) -> bool:
    """Whether a process is there and has not ended: one that nobody has asked about yet is a zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def same_in_two_processes(config: Config, folder: Path, *, rtol: float, atol: float) -> None:
    """Train in this process and in two of torchrun's; compare what was trained and every loss."""
    fit(config, folder / "one")
    command = torchrun("train", *flags(config), f"--out={folder / 'two'}")
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    assert [processes_of(folder / name) for name in ("one", "two")] == [1, 2]
    same_up_to_rounding(folder / "one", folder / "two", rtol=rtol, atol=atol)


def same_up_to_rounding(a: Path, b: Path, *, rtol: float, atol: float) -> None:
    """Compare what two runs trained, and every loss."""
    one, two = (load_file(run / "last" / "adapter.safetensors") for run in (a, b))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    for key, rel in (("loss", 1e-4), ("grad_norm", 1e-3)):  # Adam forgives a gradient of another length
        found = [[x[key] for x in log(run) if key in x] for run in (a, b)]
        assert len(found[0]) > 3
        assert found[0] == pytest.approx(found[1], rel=rel)


def change_state(out: Path, **own: Any) -> None:
    """Rewrite what a state says beside its tensors: ``progress`` and ``identity`` are functions of what it said."""
    path = out / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        said = {key: json.loads(value) for key, value in file.metadata().items()}
    changed = {key: json.dumps(own.get(key, lambda same: same)(value)) for key, value in said.items()}
    save_file(load_file(path), path, changed)


def same_state(a: Path, b: Path) -> bool:
    """Whether two runs saved the same tensors, bit for bit."""
    left, right = load_file(a / "state.safetensors"), load_file(b / "state.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def log(out: Path) -> list[dict[str, Any]]:
    """``metrics.jsonl`` without what a clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("epoch_seconds", "step_seconds", "peak_memory_bytes")}
        for line in lines
    ]
