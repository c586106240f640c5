"""Runs that go on with what they did not begin with: another plan, another number of processes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dmpt.adapter.folder import load_card, save_card
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.training.schedule import learning_rate
from dmpt.training.state import is_finished
from dmpt.training.trainer import Trainer
from runs import change_state, dying, fit, flags, log, processes_of, same_state, settings


def steps(out: Path) -> list[dict[str, Any]]:
    return [line for line in log(out) if "losses" in line]


def test_a_finished_run_goes_on_with_more_epochs(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    fit(settings(data, epochs=2), out)
    first, more = steps(out), settings(data, epochs=4)
    trainer = fit(more, out, resume=True, replan=True)
    said = capfd.readouterr().err
    now = learning_rate(0.5, more)
    assert f"train.epochs was 2, now it is 4: from here on the learning rate is that of 4 epochs (now {now:.1e}" in said
    counts = [len(trainer.data.sampler.epoch(epoch)) for epoch in range(4)]
    both = steps(out)
    assert both[: len(first)] == first
    assert len(both) == sum(counts)
    wanted = [learning_rate((e + i / n) / 4, more) for e, n in enumerate(counts) for i in range(n)]
    assert [line["lr"] for line in both[len(first) :]] == pytest.approx(wanted[len(first) :])
    event = {"step": len(first) + 1, "train.epochs": [2, 4]}
    assert [line for line in log(out) if "train.epochs" in line] == [{"epoch": 2, **event}]
    assert load_card(out / "last").history == (event,)
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["epochs"] == 4
    assert is_finished(out)


def test_batches_of_more_epochs_are_those_of_any_run(data: Path, tmp_path: Path) -> None:
    """With a learning rate that a plan does not move, the run is that of more epochs from its start, bit for bit."""
    flat = {"warmup": 0.0, "final": 1.0}
    fit(settings(data, epochs=2, **flat), tmp_path / "run")
    fit(settings(data, epochs=3, **flat), tmp_path / "run", resume=True, replan=True)
    fit(settings(data, epochs=3, **flat), tmp_path / "whole")
    assert same_state(tmp_path / "run", tmp_path / "whole")
    assert steps(tmp_path / "run") == steps(tmp_path / "whole")


def test_another_plan_that_was_killed_is_not_told_twice(data: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "run", settings(data, epochs=3, save_every=100)
    fit(settings(data, epochs=1), out)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            dying(Trainer(more, out, resume=True, replan=True), 1).fit()
    fit(more, out, resume=True, replan=True)
    fit(settings(data, epochs=4), out, resume=True, replan=True)
    told = [[1, 3], [3, 4]]
    assert [line["train.epochs"] for line in log(out) if "train.epochs" in line] == told
    assert [event["train.epochs"] for event in load_card(out / "last").history] == told
    numbers = [line["step"] for line in steps(out)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_fewer_epochs_than_are_done_are_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(settings(data, epochs=2), out)
    before = log(out)
    for epochs in (0, 1):
        with pytest.raises(UserError, match=f"2 of 2 epochs are done, and train.epochs is {epochs}; give more than 2"):
            Trainer(settings(data, epochs=epochs), out, resume=True, replan=True)
    assert log(out) == before


def test_a_plan_may_be_cut_short_but_not_below_what_is_done(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    epoch = len(Trainer(settings(data), tmp_path / "other").data.sampler.epoch(0))
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(settings(data, epochs=9, save_every=1), out), epoch + 1).fit()
    with pytest.raises(UserError, match="1 of 9 epochs are done"):
        Trainer(settings(data, epochs=1), out, resume=True, replan=True)
    fit(settings(data, epochs=2), out, resume=True, replan=True)
    assert steps(out)[-1]["epoch"] == 1
    assert is_finished(out)


def test_only_who_asks_for_it_takes_another_plan(data: Path, tmp_path: Path) -> None:
    """A study, a reproduction: their numbers are those of the settings from the start."""
    fit(settings(data, epochs=1), tmp_path / "run")
    with pytest.raises(UserError, match=r"train\.epochs was 1, now it is 2"):
        Trainer(settings(data, epochs=2), tmp_path / "run", resume=True)


def test_a_run_that_saved_nothing_takes_another_plan_from_its_start(data: Path, tmp_path: Path) -> None:
    Trainer(settings(data, epochs=1), tmp_path / "run").close()
    fit(settings(data, epochs=2), tmp_path / "run", resume=True, replan=True)
    fit(settings(data, epochs=2), tmp_path / "whole")
    assert same_state(tmp_path / "run", tmp_path / "whole")
    assert load_card(tmp_path / "run/last").history == ()
    assert (tmp_path / "run/config.yaml").read_text() == (tmp_path / "whole/config.yaml").read_text()


def test_a_finished_run_says_that_it_is_finished(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, out = settings(data, epochs=1), tmp_path / "run"
    fit(config, out)
    before = log(out)
    main(["train", *flags(config), f"--out={out}", "--resume"])
    assert "finished: all 1 epochs are done" in capfd.readouterr().err
    assert log(out) == before


def test_the_best_so_far_stays_the_best_under_another_plan(data: Path, tmp_path: Path) -> None:
    own: dict[str, Any] = {"select": "val", "val_share": 0.5, "ids": 2}
    fit(settings(data, epochs=1, **own), tmp_path / "run")
    change_state(tmp_path / "run", progress=lambda said: said | {"best": 100.0, "best_step": 1})
    best = (tmp_path / "run/best/adapter.safetensors").read_bytes()
    trainer = fit(settings(data, epochs=2, **own), tmp_path / "run", resume=True, replan=True)
    assert (trainer.progress.best, trainer.progress.best_step) == (100.0, 1)
    assert (tmp_path / "run/best/adapter.safetensors").read_bytes() == best


def test_another_number_of_processes_is_told(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, out = settings(data, epochs=2, save_every=1), tmp_path / "run"
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(config, out), 3).fit()
    change_state(out, identity=lambda said: said | {"number of processes": 2})
    fit(config, out, resume=True)
    said = capfd.readouterr().err
    assert "number of processes was 2, now it is 1: equal up to rounding, no longer bit for bit" in said
    event = {"step": 4, "number of processes": [2, 1]}
    assert load_card(out / "last").history == (event,)
    assert {"epoch": 0, **event} in log(out)
    assert processes_of(out) == 1
    fit(config, out, resume=True)  # finished: nothing new is told
    assert load_card(out / "last").history == (event,)


def test_states_and_cards_from_before_there_was_a_history_are_read(data: Path, tmp_path: Path) -> None:
    config, out = settings(data, epochs=1, save_every=1), tmp_path / "run"
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(config, out), 2).fit()
    change_state(out, progress=lambda said: {key: value for key, value in said.items() if key != "history"})
    fit(config, out, resume=True)
    fit(config, tmp_path / "whole")
    assert same_state(out, tmp_path / "whole")
    card = json.loads((out / "last/config.json").read_text())
    assert card.pop("history") == []
    (out / "last/config.json").write_text(json.dumps(card))
    assert load_card(out / "last").history == ()
    save_card(out / "copy", load_card(out / "last"))
    assert load_card(out / "copy") == load_card(out / "last")


def test_the_scale_of_fp16s_gradients_goes_on(data: Path, tmp_path: Path) -> None:
    trainer = fit(settings(data, epochs=1), tmp_path / "run")
    then, now = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0))
    replace(trainer.state, scaler=then).save(trainer.progress)
    replace(trainer.state, scaler=now).load(replan=False)
    assert now.state_dict() == then.state_dict()
