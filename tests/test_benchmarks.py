"""The benchmarks run; what they measure is not a test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def goals(out: str) -> dict[str, str]:
    """By name, the rest of each line."""
    found = dict(line.removeprefix("GOAL ").split(" ", 1) for line in out.splitlines() if line.startswith("GOAL "))
    assert found
    assert all(line.endswith((" ok", " short")) and (" <= " in line or " >= " in line) for line in found.values())
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ["prompt_forms.py", "--quick"],
        ["train_memory.py", "--quick"],
        ["first_layer.py", "--quick"],
        ["low_rank.py", "--quick"],
        ["loading.py", "--quick"],
        ["search.py", "--quick"],
        ["index.py", "--quick"],
        ["gallery.py", "--quick"],
        ["embed.py", "--quick"],
        ["serve.py", "--quick"],
        ["export.py", "--quick"],
        ["evaluate.py", "--queries", "60", "--gallery", "300", "--width", "16", "--repeats", "1"],
    ],
    ids=lambda command: command[0],
)
def test_a_benchmark_prints_its_goals(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / command[0], *command[1:]], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    goals(done.stdout)


@pytest.mark.long
def test_every_part_for_a_gpu_runs_in_miniature(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "gpu.py", "--smoke"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.json"]
    parts = report["parts"]
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(
        ("forms", "resume", "step", "forward", "loader", "configs"), "done"
    )
    assert report["smoke"]
    assert report["machine"].keys() >= {"torch", "timm", "accelerate", "dmpt", "commit", "device", "cores"}
    for folder in (tmp_path, Path.home(), FOLDER.parent):
        assert str(folder) not in json.dumps(report)  # it is meant to be shared
    assert {goal["name"] for goal in report["goals"]} == goals(done.stdout).keys()

    assert 0 <= parts["forms"]["fp32"]["prefix_from_token_features"] < 1e-4
    assert 0 < parts["forms"]["bf16"]["baked_from_fp32_on_the_cpu"] < 3e-2
    killed = parts["resume"]["fp32"]["as it is"]
    assert 0 < killed["killed after step"] < killed["steps"] == 12
    assert (killed["unbroken differ"], killed["differ"]) == (0, 0)
    assert killed["tensors"] > 100
    assert parts["step"]["losses"] == ["ce", "metric", "centre", "text"]
    assert parts["step"]["seconds"].keys() == {"DMPT", "full fine-tuning, ours", "full fine-tuning, timm fused"}
    assert parts["forward"]["forward"]["DMPT, bf16"]["share_of_matrix_peak"] > 0
    assert {"0", "1"} <= parts["loader"]["loader_samples_per_second"].keys()
    assert parts["loader"]["fed_samples_per_second"] > 0
    shipped = {path.stem for path in (FOLDER.parent / "configs").glob("*.yaml")}
    runs = parts["configs"]["runs"]
    assert runs.keys() == {f"{name} {precision}" for name in shipped for precision in ("bf16", "fp32")}
    assert all(run["state"] == "trained" and run["steps"] == 4 for run in runs.values())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("DMPT_CACHE", "")  # which it sets, to be put back
    return pytest.importorskip("gpu")


def broken(bench: Any) -> None:
    bench.found["before"] = 1
    raise ValueError(f"{bench.scratch}/file is broken")


def false(bench: Any) -> None:
    bench.must("difference", 2.0, 1.0)
    bench.found["behind"] = 2


def stopped(bench: Any) -> None:
    bench.found["begun"] = True
    raise KeyboardInterrupt


def test_a_part_that_fails_is_named_and_the_others_go_on(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dict.fromkeys(gpu.PARTS, lambda bench: bench.found.update(seen=bench.device))
    monkeypatch.setattr(gpu, "PARTS", whole | {"resume": broken, "forward": false})
    assert gpu.main(["--smoke", "--out", str(tmp_path / "found.json")]) == 1
    out = capsys.readouterr().out
    assert "FAILED resume: ValueError: SCRATCH/file is broken\n" in out
    assert "FAILED forward: difference is 2\n" in out
    assert out.endswith("failed: resume, forward\n")
    report = json.loads((tmp_path / "found.json").read_text())
    states = {name: part["state"] for name, part in report["parts"].items()}
    assert states == dict.fromkeys(gpu.PARTS, "done") | {"resume": "failed", "forward": "failed"}
    assert report["parts"]["resume"]["before"] == 1
    assert report["parts"]["forward"]["behind"] == 2
    assert report["goals"] == [{"name": "difference", "measured": 2.0, "limit": 1.0, "at_most": True, "met": False}]


def test_ctrl_c_leaves_what_there_is(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"forms": lambda bench: None, "step": stopped, "loader": broken})
    assert gpu.main(["--smoke", "--out", str(tmp_path / "found.json"), "--parts", "forms", "step", "loader"]) == 130
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert [part["state"] for part in parts.values()] == ["done", "interrupted", "not run"]
    assert parts["step"]["begun"]


def test_without_a_gpu_only_the_miniature_runs(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "torch finds no GPU here; --smoke" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_halved(gpu: Any, tmp_path: Path) -> None:
    import torch

    def measure(samples: int) -> int:
        if samples > 16:
            raise torch.OutOfMemoryError
        return samples

    bench = gpu.Bench("cpu", True, tmp_path, 0.0)
    assert bench.fitting(64, measure) == 16
    with pytest.raises(torch.OutOfMemoryError):
        bench.fitting(64, lambda samples: measure(samples + 16))


@pytest.mark.long
def test_the_last_rung_of_determinism_runs(gpu: Any, tmp_path: Path) -> None:
    """Where two unbroken runs differ, which no CPU shows: with torch's deterministic algorithms."""
    import gpu_resume

    rung = list(gpu_resume.RUNGS)[-1]
    found = gpu_resume.climb(gpu.Bench("cpu", True, tmp_path, 0.0), rung, ["fp32"])["fp32"]
    assert 0 < found["killed after step"] < found["steps"]
    assert (found["unbroken differ"], found["differ"], found["not deterministic"]) == (0, 0, [])


def test_a_config_that_fails_is_named_and_the_others_train(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu_checks

    def train(bench: Any, name: str, precision: str) -> dict[str, float]:
        if (name, precision) == ("tiny", "bf16"):
            raise ValueError("tensors on meta")
        return {"first": 2.0, "last": 1.0, "seconds": 0.1}

    monkeypatch.setattr(gpu_checks, "train", train)
    bench = gpu.Bench("cpu", True, tmp_path, float("inf"))
    gpu_checks.configs(bench)
    said = capsys.readouterr().out
    count = 2 * len([*(FOLDER.parent / "configs").glob("*.yaml")])
    assert bench.broken == [f"1 of {count} runs, the first with ValueError: tensors on meta"]
    assert "tiny bf16                 FAILED ValueError: tensors on meta\n" in said
    assert goals(said)["configs_trained"] == f"{count - 1} >= {count} short"

    late = gpu.Bench("cpu", True, tmp_path, 0.0)
    gpu_checks.configs(late)
    assert "not reached in time: decoupled bf16, " in capsys.readouterr().out
    assert not late.broken
