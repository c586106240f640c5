"""Training: the recipe, the run folder, interruption and resumption."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmpt.adapter.folder import chosen_by, load_card, metadata_of
from dmpt.base import stopping
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data import loader
from dmpt.data.layouts import load_dataset
from dmpt.data.loader import SampleDataset
from dmpt.data.records import Record, names_in
from dmpt.data.sampler import PKSampler
from dmpt.data.split import hold_out
from dmpt.data.transforms import TrainTransform
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.method.network import Output
from dmpt.settings.config import Config, TrainConfig
from dmpt.settings.values import flatten
from dmpt.towers.image import build_vit
from dmpt.training.log import cut_log, read_log
from dmpt.training.schedule import learning_rate
from dmpt.training.state import HARMLESS, fixed_settings, refuse_change
from dmpt.training.trainer import Trainer
from runs import fit, flags, log, same_state, settings, toy, with_


def test_learning_rate_warms_up_linearly_then_falls_as_a_cosine() -> None:
    config = Config(train=TrainConfig(lr=2e-3))
    assert learning_rate(0.0, config) == pytest.approx(2e-4)
    assert learning_rate(1 / 12, config) == pytest.approx((2e-4 + 2e-3) / 2)
    assert learning_rate(1 / 6, config) == pytest.approx(2e-3)
    assert learning_rate(1 / 6 + 5 / 12, config) == pytest.approx(2e-3 * (1 + 1e-3) / 2)
    assert learning_rate(1 - 1e-9, config) == pytest.approx(2e-6, rel=1e-3)
    assert learning_rate(0.5, Config(train=TrainConfig(warmup=1.0))) == pytest.approx(1e-3 * 0.55)


def test_a_run_folder_holds_what_it_promises(data: Path, tmp_path: Path) -> None:
    trainer = fit(settings(data), tmp_path / "run")
    out = tmp_path / "run"
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "state.safetensors",
        "last/adapter.safetensors",
        "last/config.json",
        ".lock",
    }
    lines = [line for line in log(out) if "losses" in line]
    assert [line["step"] for line in lines] == list(range(1, trainer.progress.step + 1))
    assert all(set(line["losses"]) == {"ce", "metric", "centre"} for line in lines)
    assert lines[-1]["loss"] == pytest.approx(sum(lines[-1]["losses"].values()))
    environment = json.loads((out / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    adapter = load_file(out / "last" / "adapter.safetensors")
    assert not any(name.startswith("backbone.") for name in adapter)
    moved = trainer.network.own_state()
    assert all(torch.equal(adapter[name], moved[name]) for name in adapter)


def test_the_frozen_backbone_does_not_move_and_what_is_trained_does(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(data), tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.network.named_parameters()}
    trainer.fit()
    for name, parameter in trainer.network.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_interrupted_and_resumed_equals_unbroken(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=2, save_every=1, select="val", val_share=0.5, ids=2)
    fit(config, tmp_path / "whole")
    steps = len([line for line in log(tmp_path / "whole") if "losses" in line])
    for stop in (1, steps // 2, steps - 1):
        out = tmp_path / f"broken{stop}"
        trainer = Trainer(config, out)
        step, calls = trainer._step, 0

        def dying(*arguments: object, limit: int = stop, inner: object = step) -> object:
            nonlocal calls
            if calls == limit:
                raise RuntimeError("killed")
            calls += 1
            return inner(*arguments)  # type: ignore[operator]

        trainer._step = dying  # type: ignore[assignment, method-assign]
        with pytest.raises(RuntimeError, match="killed"):
            trainer.fit()
        fit(config, out, resume=True)
        assert same_state(tmp_path / "whole", out)
        assert log(tmp_path / "whole") == log(out)
        tensors = Path("last") / "adapter.safetensors"
        assert (tmp_path / "whole" / tensors).read_bytes() == (out / tensors).read_bytes()


@pytest.mark.long
def test_kill_9_at_random_moments_loses_nothing(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=10, save_every=3)
    fit(config, tmp_path / "whole")
    out, chance = tmp_path / "killed", random.Random(0)
    command = [sys.executable, "-m", "dmpt", "train", *flags(config), f"--out={out}", "--resume"]
    kills = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        seen = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
        while process.poll() is None and time.monotonic() < until:
            path = out / "metrics.jsonl"
            if path.exists() and path.read_text().count("\n") > seen + 2:
                break
            time.sleep(0.02)
        time.sleep(chance.random() * 0.3)
        if process.poll() is None:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 2
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert same_state(tmp_path / "whole", out)
    assert log(tmp_path / "whole") == log(out)


def test_the_number_of_workers_changes_nothing(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "none")
    fit(with_(config, data={"workers": 2}), tmp_path / "two")
    assert same_state(tmp_path / "none", tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"lr": 0.5}}, "train.lr was 0.001, now it is 0.5"),
        ({"semantic": {"length": 2}}, "semantic.length was 3, now it is 2"),
    ],
)
def test_resume_refuses_changed_settings(
    data: Path, tmp_path: Path, change: dict[str, dict[str, float]], said: str
) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run")
    with pytest.raises(UserError, match=said):
        Trainer(with_(config, **change), tmp_path / "run", resume=True)


def test_resume_refuses_changed_data_and_identities(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run")
    for changes in ({"images": 5}, {"train_ids": 7}):
        other = toy(tmp_path / str(changes), **changes)
        with pytest.raises(UserError, match=r"cannot resume .*(training data|number of identities) was"):
            Trainer(with_(config, data={"root": str(other)}), tmp_path / "run", resume=True)


def test_a_used_folder_is_an_error_unless_resumed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="is in use; give another folder, or --resume"):
        Trainer(settings(data), tmp_path / "used")
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="is a file"):
        Trainer(settings(data), tmp_path / "used" / "precious.txt")


def test_resume_touches_nothing_but_a_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.yaml").write_text("mine")
    with pytest.raises(UserError, match="no run to resume"):
        Trainer(settings(data), tmp_path / "project", resume=True)
    assert (tmp_path / "project" / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    "left", [[], [".lock"], [".environment.json.x1"], ["environment.json"], ["environment.json", ".config.yaml.x1"]]
)
def test_killed_in_its_first_moments_begins_again(data: Path, tmp_path: Path, left: list[str]) -> None:
    config = settings(data, epochs=1)
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name).write_text("{")
    trainer = Trainer(config, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run/environment.json").read_text())["torch"] == torch.__version__
    trainer.fit()


def test_a_run_folder_with_an_empty_config_says_so(data: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "environment.json"):
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=r"config.yaml is damaged \(.*\); remove its folder and run again"):
        Trainer(settings(data), tmp_path, resume=True)


def test_one_process_per_run_folder(data: Path, tmp_path: Path) -> None:
    config, run = settings(data, epochs=1), tmp_path / "run"
    run.mkdir()
    source = (
        "import pathlib, sys, time; from dmpt.base.lock import Lock\n"
        "lock = Lock(pathlib.Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", source, str(run / ".lock")], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="another process is training there; wait until it has ended"):
            Trainer(config, run)
        assert [path.name for path in run.iterdir()] == [".lock"]
    finally:
        other.kill()
        other.wait()
    Trainer(config, run).fit()  # the lock went with the process


@pytest.mark.parametrize("save_every", [2, 1000])
def test_a_run_in_progress_loses_nothing_to_another_that_would_resume_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_every: int
) -> None:
    config = settings(data, epochs=2, save_every=save_every)
    first = Trainer(config, tmp_path / "run")
    step, refused = first._step, []

    def interfered(*arguments: Any) -> Any:
        line = step(*arguments)
        if line["step"] == 3:
            with pytest.raises(UserError, match="another process is training there") as error:
                Trainer(config, tmp_path / "run", resume=True)
            refused.append(error)
        return line

    monkeypatch.setattr(first, "_step", interfered)
    first.fit()
    assert len(refused) == 1
    steps = [line["step"] for line in log(tmp_path / "run") if "losses" in line]
    assert steps == list(range(1, first.progress.step + 1))


def test_what_a_kill_left_half_written_is_swept_away(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run")
    half = [
        *(tmp_path / "run" / f".{name}.x1" for name in ("state.safetensors", "metrics.jsonl", "config.yaml")),
        *(tmp_path / "run/last" / name for name in (".adapter.safetensors.x2", ".tmpA1b2C3")),
    ]
    mine = tmp_path / "run/.tmp_notes.txt"
    for path in (*half, mine):
        path.write_text("half")
    Trainer(config, tmp_path / "run", resume=True)
    assert not any(path.exists() for path in half)
    assert mine.exists()


def test_resume_refuses_a_setting_that_came_to_it(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run")
    other = with_(config, backbone={"overrides": {**config.backbone.overrides, "act_layer": "relu"}})
    with pytest.raises(UserError, match=r"cannot resume .* backbone\.overrides was .*act_layer"):
        Trainer(other, tmp_path / "run", resume=True)


def test_resume_takes_a_setting_that_is_younger_than_the_run_for_its_default(tmp_path: Path) -> None:
    now = fixed_settings(Config())
    old = {key: value for key, value in now.items() if key != "train.ema"}
    refuse_change(old, now, tmp_path)
    with pytest.raises(UserError, match=r"train\.ema was 0\.0, now it is 0\.9"):
        refuse_change(old, now | {"train.ema": 0.9}, tmp_path)


def test_resume_knows_that_positions_were_a_square_before_their_grid_was_a_setting(tmp_path: Path) -> None:
    now = fixed_settings(with_(Config(), backbone={"grid": (8, 8)}))
    old = {key: value for key, value in now.items() if key != "backbone.grid"}
    refuse_change(old, now, tmp_path)
    with pytest.raises(UserError, match=r"backbone\.grid was \[8, 8\], now it is \[16, 4\]"):
        refuse_change(old, fixed_settings(with_(Config(), backbone={"grid": (16, 4)})), tmp_path)
    refuse_change(old, fixed_settings(Config()), tmp_path)  # random weights have none


def test_resume_refuses_other_validation_data(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1, select="test")
    fit(config, tmp_path / "run")
    other = toy(tmp_path / "other", test_ids=3)
    with pytest.raises(UserError, match="evaluated data was"):
        Trainer(with_(config, data={"root": str(other)}), tmp_path / "run", resume=True)


def test_resume_knows_the_sizes_of_files_where_the_run_did(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1, select="test")
    fit(config, tmp_path / "run")
    recoded = shutil.copytree(data, tmp_path / "recoded")
    for image in recoded.rglob("train_8/*/*.jpg"):
        Image.open(image).save(image, quality=50)
    other = with_(config, data={"root": str(recoded)})
    with pytest.raises(UserError, match=r"training data was \w{8}, now it is \w{8}; resume"):
        Trainer(other, tmp_path / "run", resume=True)
    path = tmp_path / "run" / "state.safetensors"
    tensors, metadata = load_file(path), metadata_of(path)
    who = json.loads(metadata["identity"])
    who |= {what: names_in(who[what]) for what in ("training data", "evaluated data")}  # of before
    save_file(tensors, path, metadata | {"identity": json.dumps(who)})
    Trainer(other, tmp_path / "run", resume=True).close()
    with pytest.raises(UserError, match="evaluated data was"):
        Trainer(with_(config, data={"root": str(toy(tmp_path / "few", test_ids=3))}), tmp_path / "run", resume=True)


def test_held_out_images_do_not_find_themselves(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A protocol that ignores nothing is for query and gallery that have no view in common."""
    listed = load_dataset("rgbnt201", data, settings(data).data)
    cameras = {camera: "query" if number else "gallery" for number, camera in enumerate({1, 2})}
    rows = [(record, "train") for record in listed.train] + [(r, cameras[r.camera]) for r in listed.gallery]
    lines = [",".join([*map(str, r.paths.values()), str(r.pid), str(r.camera), split]) for r, split in rows]
    (tmp_path / "manifest.csv").write_text("\n".join(["rgb,nir,tir,pid,camera,split", *lines]) + "\n")
    config = settings(data, select="val", val_share=0.5, ids=2)
    own = with_(config, data={"root": str(tmp_path), "layout": "manifest", "protocol": "none"})
    trainer = Trainer(own, tmp_path / "run")
    said = capfd.readouterr().err
    assert "queries valid, protocol same_camera" in said
    batches = len(trainer.data.sampler.epoch(0))
    assert f"{len(trainer.data.records)} samples of 4 identities; the first epoch has {batches} batches of 2 x" in said
    assert trainer.validate().protocol == "same_camera"


def test_a_log_with_foreign_lines_is_read_and_cut(tmp_path: Path) -> None:
    text = b'{"step": 1, "loss": 2.0}\n\xff\xfe\n[]\n{"loss": 3.0}\n{"step": 2, "loss": 1.5}\n{"step": 3'
    (tmp_path / "metrics.jsonl").write_bytes(text)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]
    cut_log(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'


def test_killed_before_the_first_save_begins_again_without_double_steps(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=2, save_every=1000)
    fit(config, tmp_path / "whole")
    trainer = Trainer(config, tmp_path / "killed")
    trainer._save = lambda: (_ for _ in ()).throw(RuntimeError("killed"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit()
    assert log(tmp_path / "killed")
    with pytest.raises(UserError, match=r"train\.lr was 0\.001, now it is 0\.5"):
        Trainer(with_(config, train={"lr": 0.5}), tmp_path / "killed", resume=True)
    fit(config, tmp_path / "killed", resume=True)
    assert log(tmp_path / "killed") == log(tmp_path / "whole")


def test_resume_notices_other_weights_in_the_same_place(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    file = tmp_path / "tower.safetensors"
    vit, _ = build_vit(config.backbone, (32, 32))
    save_file(vit.state_dict(), file)
    config = with_(config, backbone={"weights": str(file), "grid": (2, 2)})
    fit(config, tmp_path / "run")
    file.rename(tmp_path / "moved.safetensors")
    Trainer(with_(config, backbone={"weights": str(tmp_path / "moved.safetensors")}), tmp_path / "run", resume=True)
    save_file({name: tensor + 1e-3 for name, tensor in vit.state_dict().items()}, file)
    with pytest.raises(UserError, match="sha256 of the backbone's weights was"):
        Trainer(config, tmp_path / "run", resume=True)


def test_a_second_ctrl_c_does_not_claim_a_save(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def impatient(self: Trainer) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(stopping, "_ECHO", 0.0)
    monkeypatch.setattr(Trainer, "_save", impatient)
    with pytest.raises(SystemExit) as stop:
        main(["train", *flags(settings(data, save_every=1)), f"--out={tmp_path / 'run'}"])
    assert stop.value.code == 130
    said = capsys.readouterr().err
    assert "what was saved before is kept" in said
    assert "--resume" not in said


def test_disk_full_while_logging_is_one_line(data: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    trainer = Trainer(settings(data), tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left .* what was saved is intact"):
        trainer.fit()


def test_selection_without_a_valid_query_is_refused_before_training(tmp_path: Path) -> None:
    one_camera = toy(tmp_path / "data", cameras=1)
    with pytest.raises(UserError, match="camera"):
        Trainer(settings(one_camera, select="test"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_ids": 1}, "identities in the training set: 1"),
        ({"train_ids": 3}, r"train\.ids asks for 4; set it to at most 3"),
    ],
)
def test_too_few_identities(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Trainer(settings(toy(tmp_path / "data", **changes)), tmp_path / "run")


def test_fewer_images_than_instances_are_filled_up(tmp_path: Path) -> None:
    fit(settings(toy(tmp_path / "data", images=2), epochs=1, instances=4), tmp_path / "run")


def test_what_the_weights_file_holds_in_vain_is_said(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(data, epochs=0)
    vit, _ = build_vit(config.backbone, (32, 32))
    save_file(vit.state_dict(), tmp_path / "tower.safetensors")
    shorter = {"weights": str(tmp_path / "tower.safetensors"), "grid": (2, 2), "blocks": 1, "norm": "plain"}
    trainer = fit(with_(config, backbone=shorter), tmp_path / "run")
    assert "not used of the weights file: blocks.1, norm" in capfd.readouterr().err
    assert trainer.model.tower.unused == ("blocks.1", "norm")


def test_resume_without_a_saved_state_starts_anew(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last" / "adapter.safetensors").exists()


def test_a_damaged_state_is_named(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run")
    state = tmp_path / "run" / "state.safetensors"
    save_file({"x": torch.zeros(1)}, tmp_path / "bare")
    save_file({"x": torch.zeros(1)}, tmp_path / "odd", {"identity": "{}", "progress": '{"epochs": 1}'})
    damages = {"": state.read_bytes()[:1000], "lacks 'identity'": (tmp_path / "bare").read_bytes()}
    damages["'epochs'"] = (tmp_path / "odd").read_bytes()
    for said, content in damages.items():
        state.write_bytes(content)
        with pytest.raises(UserError, match=rf"state.safetensors is damaged \(.*{said}.*\); copy it again"):
            Trainer(config, tmp_path / "run", resume=True)


def test_disk_full_leaves_the_previous_save_whole(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(data, epochs=1)
    fit(config, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    trainer = Trainer(config, tmp_path / "run", resume=True)

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dmpt.towers.tensors.save_file", full)
    with pytest.raises(UserError, match="No space left on device; what was there is untouched"):
        trainer._save()
    after = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert after == before


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(data: Path, tmp_path: Path) -> None:
    def broken(*arguments: object) -> dict[str, torch.Tensor]:
        return {"ce": torch.tensor(1.0, requires_grad=True), "metric": torch.tensor(float("inf"))}

    trainer = Trainer(settings(data), tmp_path / "run")
    trainer.objective = broken  # type: ignore[assignment]
    with pytest.raises(UserError, match="loss term metric is inf at step 1"):
        trainer.fit()


def test_a_gradient_that_is_not_finite_moves_nothing(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(data), tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}

    def explosive(*arguments: object) -> dict[str, torch.Tensor]:
        parameter = next(iter(trainer.trained.values()))
        return {"ce": (parameter - parameter.detach()).abs().sqrt().sum()}  # 0, with an infinite slope

    trainer.objective = explosive  # type: ignore[assignment]
    with pytest.raises(UserError, match="the gradient is not finite at step 1"):
        trainer.fit()
    assert all(torch.equal(p, before[name]) for name, p in trainer.trained.items())


def test_fp16_is_refused_on_a_cpu(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"train\.precision fp16 needs a GPU"):
        Trainer(settings(data, precision="fp16"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bf16_trains_and_holds_frozen_weights_in_bf16(data: Path, tmp_path: Path) -> None:
    trainer = fit(settings(data, precision="bf16"), tmp_path / "run")
    assert {p.dtype for p in trainer.network.backbone.vit.blocks.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in trainer.trained.values()} == {torch.float32}
    losses = [line["loss"] for line in log(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]


def test_accumulation_steps_once_per_group_and_warns(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(settings(data, epochs=1, accumulate=2, ids=4), tmp_path / "run")
    lines = [line for line in log(tmp_path / "run") if "losses" in line]
    assert len(lines) % 2 == 1  # the last group is shorter
    assert ["grad_norm" in line for line in lines] == [i % 2 == 1 or i == len(lines) - 1 for i in range(len(lines))]
    adam = next(iter(trainer.optimizer.optimizer.state.values()))
    assert int(adam["step"]) == (len(lines) + 1) // 2
    assert "still see 4 x 2 at a time" in capfd.readouterr().err


def test_clipping_limits_the_gradient(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(data, epochs=1, clip=1e-4), tmp_path / "run")
    norms = []
    step = trainer.optimizer.step

    def spy() -> None:
        norms.append(torch.cat([p.grad.flatten() for p in trainer.trained.values() if p.grad is not None]).norm())
        step()

    trainer.optimizer.step = spy  # type: ignore[method-assign]
    trainer.fit()
    assert norms
    assert all(norm <= 1.001e-4 for norm in norms)


def test_validation_holds_out_identities_of_two_cameras_and_keeps_the_best(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(settings(data, select="val", val_share=0.25, ids=2, epochs=4), tmp_path / "run")
    assert trainer.data.evaluated is not None
    held = {r.pid for r in trainer.data.evaluated[0]}
    assert len(held) == 2
    assert not held & {r.pid for r in trainer.data.records}
    scores = [line["val"]["mAP"] for line in log(tmp_path / "run") if "val" in line]
    assert len(scores) == 4
    assert trainer.progress.best == max(scores)
    assert "queries valid" in capfd.readouterr().err
    from dmpt.adapter.folder import load_tensors

    assert load_tensors(tmp_path / "run" / "best")[1] == trainer.progress.best_step


@pytest.mark.parametrize(("enough", "select", "held"), [(2, "val", 2), (3, "last", 0)])
def test_identities_are_held_out_where_there_are_enough(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enough: int, select: str, held: int
) -> None:
    monkeypatch.setattr("dmpt.training.data._ENOUGH", enough)
    config = settings(data, select="auto", val_share=0.25, ids=2, epochs=1)
    trainer = fit(config, tmp_path / "run")
    assert trainer.config.train.select == select
    assert len({r.pid for r in trainer.data.dataset.train} - {r.pid for r in trainer.data.records}) == held
    assert any(f"train.select auto: {select}, since" in line and "2 identities" in line for line in trainer.data.notes)
    folder = tmp_path / "run" / ("best" if held else "last")
    assert load_card(folder).config.train.select == select
    again = Trainer(config, tmp_path / "run", resume=True)
    assert again.config == trainer.config
    again.close()


def test_selecting_on_the_test_set_goes_by_that_name(data: Path, tmp_path: Path) -> None:
    fit(settings(data, select="test", epochs=1), tmp_path / "run")
    shutil.copytree(tmp_path / "run/best", tmp_path / "mine")
    for folder, said in (("run/last", "last step"), ("run/best", "test"), ("mine", "test")):
        assert chosen_by(tmp_path / folder, load_card(tmp_path / folder)) == said
    assert any("test" in line for line in log(tmp_path / "run"))
    assert (tmp_path / "run" / "best" / "adapter.safetensors").exists()


def test_hold_out_needs_two_cameras() -> None:
    one = [Record({"rgb": Path(f"{pid}")}, pid, 1) for pid in range(9)]
    with pytest.raises(UserError, match="two or more cameras, and 0 are"):
        hold_out(one, 0.2, 0)
    two = one + [Record({"rgb": Path(f"{pid}b")}, pid, 2) for pid in range(6)]
    train, held = hold_out(two, 0.5, 0)
    assert len({r.pid for r in held}) == 3
    assert {r.pid for r in held} <= set(range(6))
    assert len(train) + len(held) == len(two)
    assert hold_out(two, 0.5, 0) == (train, held)


def test_hold_out_needs_two_scenes_where_the_protocol_looks_at_them() -> None:
    records = [
        Record({"rgb": Path(f"{pid}_{i}")}, pid, camera=i, scene=i * (pid < 4)) for pid in range(9) for i in (0, 1)
    ]
    _, held = hold_out(records, 1.0, 0, "same_scene")
    assert {r.pid for r in held} == {0, 1, 2, 3}
    with pytest.raises(UserError, match="two or more scenes, and 0 are"):
        hold_out([r for r in records if r.pid >= 4], 0.2, 0, "same_scene")
    assert len({r.pid for r in hold_out(records, 1.0, 0)[1]}) == 9


def test_skip_broken_leaves_samples_out_and_lists_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = toy(tmp_path / "data")
    victim = sorted((data / "train_8" / "TI").iterdir())[3]
    victim.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{victim.name} is empty .*--skip-broken"):
        Trainer(settings(data), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    trainer = Trainer(settings(data, epochs=1), tmp_path / "run", skip_broken=True)
    assert len(trainer.data.records) == len(load_dataset("rgbnt201", data).train) - 1
    said = capfd.readouterr().err.replace("\n", "")
    assert "skipped 1" in said
    assert victim.name in said


def test_full_fine_tuning_moves_the_backbone(data: Path, tmp_path: Path) -> None:
    config = with_(
        settings(data, epochs=1),
        backbone={"tune": "full"},
        semantic={"length": 0},
        modality={"length": 0},
        bind={"depth": 0},
    )
    trainer = Trainer(config, tmp_path / "run")
    before = trainer.network.backbone.vit.blocks[0].mlp.fc1.weight.detach().clone()
    trainer.fit()
    assert not torch.equal(before, trainer.network.backbone.vit.blocks[0].mlp.fc1.weight)
    assert any(name.startswith("backbone.") for name in load_file(tmp_path / "run" / "last" / "adapter.safetensors"))


def test_settings_that_change_no_number_may_change_on_resume() -> None:
    config = Config(train=replace(TrainConfig(), save_every=7))
    for name in HARMLESS:
        assert name in flatten(json.loads(json.dumps(_plain(config))))
        assert name not in fixed_settings(config)


def _plain(config: Config) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(config)


def test_the_optimiser_steps_at_the_scheduled_learning_rate(data: Path, tmp_path: Path) -> None:
    config = settings(data, epochs=2)
    trainer = Trainer(config, tmp_path / "run")
    used, step = list[float](), trainer.optimizer.step

    def spy() -> None:
        used.append(trainer.optimizer.param_groups[0]["lr"])
        step()

    trainer.optimizer.step = spy  # type: ignore[method-assign]
    trainer.fit()
    counts = [len(trainer.data.sampler.epoch(epoch)) for epoch in range(2)]
    expected = [learning_rate((e + i / n) / 2, config) for e, n in enumerate(counts) for i in range(n)]
    assert used == pytest.approx(expected)
    assert [line["lr"] for line in log(tmp_path / "run") if "lr" in line] == used


def test_weight_decay_reaches_the_optimiser(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(data, weight_decay=0.3), tmp_path / "run")
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.3]


def test_accumulated_gradients_are_the_mean_of_their_batches(data: Path, tmp_path: Path) -> None:
    def gradients(accumulate: int) -> list[Tensor]:
        config = settings(data, epochs=1, lr=1e-12, accumulate=accumulate)  # so that all batches see the same weights
        trainer = Trainer(config, tmp_path / str(accumulate))
        found, step = list[Tensor](), trainer.optimizer.step

        def spy() -> None:
            found.append(torch.cat([p.grad.flatten() for p in trainer.trained.values() if p.grad is not None]))
            step()

        trainer.optimizer.step = spy  # type: ignore[method-assign]
        trainer.fit()
        return found

    one, two = gradients(1), gradients(2)
    assert len(one) % 2 == 1  # the last group is shorter
    expected = [torch.stack(one[i : i + 2]).mean(dim=0) for i in range(0, len(one), 2)]
    torch.testing.assert_close(two, expected, rtol=1e-3, atol=1e-6)


def test_validation_comes_every_few_epochs_and_after_the_last(data: Path, tmp_path: Path) -> None:
    fit(settings(data, select="val", val_share=0.5, ids=2, epochs=3, eval_every=2), tmp_path / "run")
    assert [line["epoch"] for line in log(tmp_path / "run") if "val" in line] == [1, 2]


def test_a_resumed_run_knows_its_best(data: Path, tmp_path: Path) -> None:
    config = settings(data, select="val", val_share=0.5, ids=2, epochs=1)
    trainer = fit(config, tmp_path / "run")
    assert trainer.progress.best is not None
    assert Trainer(config, tmp_path / "run", resume=True).progress == trainer.progress


def test_heads_and_losses_are_in_float32_whatever_the_precision(data: Path, tmp_path: Path) -> None:
    seen = set[torch.dtype]()
    trainer = Trainer(settings(data, epochs=1, precision="bf16"), tmp_path / "run")
    own = trainer.objective

    def spy(output: Output, labels: Tensor) -> dict[str, Tensor]:
        seen.update(x.dtype for head in own.heads(output, labels).values() for x in (head.feature, head.logits))
        terms = own(output, labels)
        seen.update(term.dtype for term in terms.values())
        return terms

    trainer.objective = spy  # type: ignore[assignment]
    trainer.fit()
    assert seen == {torch.float32}


def test_settings_and_seed_reach_what_a_run_reads(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mean, std, span, ranges = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (100.0, 900.0), set[Any]()
    read = loader.read_record
    monkeypatch.setattr(loader, "read_record", lambda record, own: ranges.add(own) or read(record, own))
    config = with_(
        settings(data, seed=5), data={"mean": mean, "std": std, "value_range": span}, missing={"dropout": 0.4}
    )
    trainer = Trainer(config, tmp_path / "run")
    batch = next(trainer.data.batches(trainer.config, 1, 0, 0, 1))
    assert ranges == {span}
    labels = [trainer.data.labels[record.pid] for record in trainer.data.records]
    indices = PKSampler(labels, 4, 2, 5).epoch(1)[0]
    transform = TrainTransform(config.data, mean, std, 5)
    expected = SampleDataset(trainer.data.records, transform, span, labels, 0.4, 5).batch(1, indices)
    assert all(torch.equal(one, other) for one, other in zip(batch, expected, strict=True))


def test_a_run_holds_out_what_its_protocol_can_judge(data: Path, tmp_path: Path) -> None:
    """Identities 1 to 4 are seen in two scenes, the others by two cameras in one."""
    listed = load_dataset("rgbnt201", data)
    rows = [
        [*r.paths.values(), r.pid, r.camera, r.camera * (r.pid < 5 or split == "test"), split]
        for split, records in (("train", listed.train), ("test", listed.gallery))
        for r in records
    ]
    lines = ["rgb,nir,tir,pid,camera,scene,split", *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    config = with_(
        settings(data, select="val", val_share=1.0, ids=2),
        data={"root": str(tmp_path), "layout": "manifest", "protocol": "same_scene"},
    )
    trainer = Trainer(config, tmp_path / "run")
    assert trainer.data.evaluated is not None
    assert {r.pid for r in trainer.data.evaluated[0]} == {1, 2, 3, 4}


def test_the_numbers_say_how_their_adapter_was_chosen(data: Path, tmp_path: Path) -> None:
    fit(settings(data, select="test", epochs=1), tmp_path / "run")
    said = {
        which: evaluate(tmp_path / "run", Conditions(which=which)).provenance["chosen_by"] for which in ("best", "last")
    }
    assert said == {"best": "test", "last": "last step"}
