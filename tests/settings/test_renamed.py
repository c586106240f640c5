"""Settings that have another name today: old files and flags still work, and say so once."""

import json
from pathlib import Path

import pytest

from dmpt.adapter.folder import load_card
from dmpt.base.errors import UserError
from dmpt.evaluation.evaluate import evaluate
from dmpt.settings.config import Config
from dmpt.settings.values import RENAMED, dotted, from_dict, renamed
from dmpt.training.trainer import Trainer
from runs import dmpt, fit, log, settings, toy, with_

NOTE = "note: {} is now called {}; the old name still works"


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_taken_nested_and_dotted(old: str, new: str) -> None:
    said: list[str] = []
    (section, _, key), (today, _, name) = old.partition("."), new.partition(".")
    value = 3 if isinstance(dotted(Config())[new], int) else 0.5
    assert old not in dotted(Config())
    moved = renamed({section: {key: value}}, said.append)
    assert {place: own for place, own in moved.items() if own} == {today: {name: value}}
    assert renamed({old: value, "train.lr": 1.0}, said.append) == {new: value, "train.lr": 1.0}
    assert [f"note: {line}" for line in said] == [NOTE.format(old, new)] * 2
    assert dotted(from_dict({section: {key: value}}))[new] == value
    for both in (
        {section: {key: value}, today: {name: value}} if section != today else {section: {key: value, name: value}},
        {old: value, new: value},
        {section: {key: value}, new: value},
        {today: {name: value}, old: value},
    ):
        with pytest.raises(UserError, match=rf"{old} is now called {new}, and both are given; remove {old}"):
            renamed(both)


def test_files_and_flags_by_the_old_name_say_so_once(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("loss: {triplet: 0.25}\ntrain: {average: 0.5}\nbackbone: {lora_rank: 3}\n")
    for arguments in (
        ["--config", str(tmp_path / "old.yaml")],
        ["--loss.triplet=0.25", "--train.average", "0.5", "--backbone.lora_rank", "3"],
        ["--loss.triplet", "0.25", "--train.average=0.5", "--backbone.lora_rank=3"],
    ):
        shown = dmpt("train", *arguments, "--out", "x", "--print_config")
        assert shown.returncode == 0, shown.stderr
        assert "metric_weight: 0.25" in shown.stdout
        assert "ema: 0.5" in shown.stdout
        assert "rank: 3" in shown.stdout
        for old, new in RENAMED.items():
            assert shown.stderr.count(NOTE.format(old, new)) == 1, shown.stderr


def test_runs_and_adapters_with_old_names_are_read(tmp_path: Path) -> None:
    data, run = toy(tmp_path / "data"), tmp_path / "run"
    config = with_(settings(data, ema=0.5), loss={"metric_weight": 0.75})
    fit(config, run)
    card = run / "last" / "config.json"
    content = json.loads(card.read_text())
    content["config"]["loss"]["triplet"] = content["config"]["loss"].pop("metric_weight")
    content["config"]["train"]["average"] = content["config"]["train"].pop("ema")
    card.write_text(json.dumps(content))
    read = load_card(run / "last").config
    assert (read.loss.metric_weight, read.train.ema) == (0.75, 0.5)
    assert evaluate(run).metrics.queries > 0
    own = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(own.replace("metric_weight:", "triplet:").replace("  ema:", "  average:"))
    steps = log(run)
    Trainer(config, run, resume=True).fit()
    assert log(run) == steps
