"""``init``: a run that starts from a trained adapter."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dmpt.adapter.folder import load, load_card
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.evaluation.evaluate import evaluate
from dmpt.settings.config import Config
from dmpt.towers.image import build_vit
from dmpt.training.trainer import Trainer
from runs import dying, fit, flags, log, same_state, settings, toy, with_


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other identities, and fewer."""
    return toy(tmp_path_factory.mktemp("other"), train_ids=6, test_ids=3, seed=1)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    fit(everything(settings(data, epochs=2)), out)
    return out


def everything(config: Config) -> Config:
    """With a shared part that has statistics, an interaction of low rank, shared prompts."""
    return with_(config, missing={"dropout": 0.3}, bind={"rank": 2}, semantic={"share": True})


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "adapter.safetensors")


def features(network: torch.nn.Module, config: Config) -> torch.Tensor:
    images = torch.randn(3, 4, 3, *config.data.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = network.eval().embed(images)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("neck", ["before", "after"])
def test_before_its_first_step_a_run_has_the_features_of_its_adapter(
    data: Path, other: Path, tmp_path: Path, neck: str
) -> None:
    config = settings(data, epochs=1)
    config = replace(config, neck=neck)
    fit(config, tmp_path / "first")
    new = with_(config, data={"root": str(other)}, train={"lr": 1e-4}, loss={"centre": 0.0})
    plain = Trainer(new, tmp_path / "plain")
    begun = Trainer(replace(new, init=str(tmp_path / "first")), tmp_path / "second")
    wanted = features(load(tmp_path / "first/last")[0], config)
    assert torch.equal(features(begun.network, config), wanted)
    assert not torch.equal(features(plain.network, config), wanted)


def test_what_is_of_identities_starts_anew_and_all_the_rest_is_taken(
    trained: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = everything(settings(other, epochs=0))
    fit(config, tmp_path / "plain")
    fit(replace(config, init=str(trained / "last")), tmp_path / "begun")
    said = capfd.readouterr().err
    begun, plain, before = (tensors(run) for run in (tmp_path / "begun", tmp_path / "plain", trained))
    anew = {name for name in begun if name.endswith("classifier.weight")}
    assert len(anew) == 5
    assert begun.keys() == before.keys()
    for name, tensor in begun.items():
        assert torch.equal(tensor, (plain if name in anew else before)[name]), name
    assert f"{len(begun) - 5} tensors are taken; anew: heads.necks.concat.classifier.weight, " in said


def test_the_history_says_where_a_run_started_without_a_path(trained: Path, other: Path, tmp_path: Path) -> None:
    config = everything(settings(other, epochs=1, ema=0.9))
    fit(replace(config, init=str(trained)), tmp_path / "run")
    hashed = hashlib.sha256((trained / "last/adapter.safetensors").read_bytes()).hexdigest()
    card = load_card(tmp_path / "run/last")
    (event,) = card.history
    assert event["step"] == 1
    assert event["init"]["sha256"] == hashed
    assert event["init"]["data"] == "rgbnt201"
    assert log(tmp_path / "run")[0] == {"epoch": 0, **event}
    assert str(trained.parent) not in (tmp_path / "run/last/config.json").read_text()
    assert evaluate(tmp_path / "run").provenance["history"] == [event]
    again = replace(config, init=str(tmp_path / "run"))
    third = Trainer(again, tmp_path / "third")
    assert third.progress.history[0]["init"]["history"] == [event]  # of what its start started from


def test_a_run_that_goes_on_starts_from_nothing_again(trained: Path, data: Path, tmp_path: Path) -> None:
    config = everything(settings(data, epochs=2, save_every=1, ema=0.9))
    begun = replace(config, init=str(trained))
    fit(begun, tmp_path / "whole")
    for name, resumed in (("same", begun), ("untold", config)):
        with pytest.raises(RuntimeError, match="killed"):
            dying(Trainer(begun, tmp_path / name), 3).fit()
        fit(resumed, tmp_path / name, resume=True)
        assert same_state(tmp_path / "whole", tmp_path / name)
        assert load_card(tmp_path / name / "last").history == load_card(tmp_path / "whole/last").history
        assert log(tmp_path / name) == log(tmp_path / "whole")
        assert yaml.safe_load((tmp_path / name / "config.yaml").read_text())["init"] == str(trained)
    with pytest.raises(UserError, match=r"init was .*run.*, now it is .*whole"):
        Trainer(replace(config, init=str(tmp_path / "whole")), tmp_path / "same", resume=True)


def test_a_run_killed_before_its_first_save_starts_there_again(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = everything(settings(data, epochs=1))
    begun = replace(config, init=str(trained))
    monkeypatch.chdir(trained.parent)
    Trainer(replace(config, init="run"), tmp_path / "killed").close()
    monkeypatch.chdir(tmp_path)
    fit(config, tmp_path / "killed", resume=True)
    fit(begun, tmp_path / "whole")
    assert same_state(tmp_path / "whole", tmp_path / "killed")


def test_it_comes_before_prompts_from_data(trained: Path, data: Path, tmp_path: Path) -> None:
    config = with_(everything(settings(data)), semantic={"init": "data"})
    begun = Trainer(replace(config, init=str(trained)), tmp_path / "run")
    name = "prompts.semantic.tokens"
    assert torch.equal(begun.network.own_state()[name], tensors(trained)[name])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"semantic": {"length": 2}}, r"fits another network: semantic\.length is 3 there and 2 here$"),
        ({"bind": {"rank": 3}, "missing": {"dropout": 0.0}}, r"bind\.rank is 2 .* 3 here; missing\.dropout is 0\.3"),
        ({"backbone": {"norm": "plain"}}, r"backbone\.norm is tower there and plain here$"),
        ({"data": {"modalities": ("rgb", "nir")}}, r"data\.modalities is \['rgb', 'nir', 'tir'\] there"),
        ({"train": {"seed": 1}}, r"with sha256 .*, but random has"),
    ],
)
def test_a_network_of_another_form_is_refused_by_the_setting(
    trained: Path, data: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    config = with_(everything(settings(data)), **change)
    with pytest.raises(UserError, match=rf"init {trained}/last .*{said}"):
        Trainer(replace(config, init=str(trained)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_positions_lie_on_the_same_grid(data: Path, tmp_path: Path) -> None:
    """An adapter from before the setting took them for a square."""
    config = settings(data, epochs=0)
    vit, _ = build_vit(config.backbone, (128, 32))
    save_file(vit.state_dict(), tmp_path / "tower.safetensors")
    config = with_(config, backbone={"weights": str(tmp_path / "tower.safetensors"), "grid": (4, 4)})
    fit(config, tmp_path / "first")
    card = tmp_path / "first" / "last" / "config.json"
    start: dict[str, Any] = {"init": str(card.parent)}
    other = with_(config, backbone={"grid": (8, 2)})
    for age in ("new", "old"):
        if age == "old":
            content = json.loads(card.read_text())
            del content["config"]["backbone"]["grid"]
            card.write_text(json.dumps(content))
        fit(replace(config, **start), tmp_path / age)
        with pytest.raises(UserError, match=r"backbone\.grid is \[4, 4\] there and \[8, 2\] here$"):
            Trainer(replace(other, **start), tmp_path / "run")


def test_a_folder_without_an_adapter_is_refused_before_data_are_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_(settings(data), data={"root": "nowhere"})
    with pytest.raises(SystemExit) as ended:
        main(["train", *flags(config), f"--init={tmp_path}", f"--out={tmp_path / 'run'}"])
    assert ended.value.code == 2
    assert "holds no trained adapter" in capsys.readouterr().err
