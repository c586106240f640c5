"""The paper's cells: each is a valid setting that differs from its table's base in what the table varies."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dmpt.base.errors import UserError
from dmpt.base.yaml import load
from dmpt.cli import main
from dmpt.data.layouts import DATASETS
from dmpt.paper.cells import cells, find, settings
from dmpt.paper.reproduce import _UNPRINTED, _deviations
from dmpt.settings import shipped
from dmpt.settings.rules import check
from dmpt.settings.values import flatten
from dmpt.training.state import STATE, is_finished
from dmpt.training.trainer import Trainer
from layouts import Facts, write_market1501_mm, write_msvr310, write_rgbnt100
from runs import TOWER, change_state, toy, with_

SETS = ("rgbnt201", "market1501_mm", "rgbnt100", "msvr310")
SMALL = [
    *("--data.size", "[32,16]", "--data.pad", "2", "--data.workers", "0"),
    *("--backbone.name", "vit_small_patch16_224", "--backbone.weights", "random"),
    *("--backbone.overrides", json.dumps(TOWER), "--backbone.projection", "trained", "--backbone.projection_dim", "12"),
    *("--semantic.length", "3", "--modality.source", "learned", "--modality.width", "16", "--text.loss", "off"),
    *("--train.epochs", "1", "--train.ids", "4", "--train.instances", "2"),
]
"""A cell on a tower that trains in a second."""


def plain(name: str) -> dict[str, Any]:
    return flatten(asdict(settings(find(name))))


def print_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The settings that a command line comes to."""
    with pytest.raises(SystemExit):
        main([*arguments, "--print_config"])
    printed: dict[str, Any] = load(capsys.readouterr().out)
    return printed


def test_all_cells_of_the_tables_are_there() -> None:
    where = [part for cell in cells().values() for part in cell.where.split("; ")]
    assert {name for name in cells() if name.endswith(("-clip", "-vit"))} == {
        f"{data}-{backbone}" for data in SETS for backbone in ("clip", "vit")
    }
    assert sorted(part for part in where if part.startswith("Table 3")) == [f"Table 3 ({n})" for n in range(1, 5)]
    assert sorted(part for part in where if part.startswith("Table 4")) == [f"Table 4, k = {n}" for n in range(3)]
    assert sorted(part for part in where if part.startswith("Table 5")) == [f"Table 5, M = {n}" for n in range(4)]
    assert sum(part == "Table 1" for part in where) == 4
    assert sum(part == "Table 2" for part in where) == 4
    assert sum("Baseline" in part for part in where) == 4


@pytest.mark.parametrize("name", list(cells()))
def test_a_cell_is_a_valid_setting(name: str) -> None:
    config, cell = settings(find(name)), find(name)
    check(config)
    assert config.train.select == "last"
    assert config.data.layout == (cell.config.removesuffix("_vit"))
    assert ("augreg_in21k" in config.backbone.name) == cell.config.endswith("_vit")
    # section 4.2
    assert config.data.size == (256, 128)
    assert config.semantic.length == 32
    assert (config.train.lr, config.train.weight_decay) == (1e-3, 1e-4)
    assert set(cell.paper) in ({"mAP", "rank1"}, {"mAP", "rank1", "rank5", "rank10"})


@pytest.mark.parametrize("name", [f"{data}-{backbone}" for data in SETS for backbone in ("clip", "vit")])
def test_main_cells_are_the_whole_method(name: str) -> None:
    config = settings(find(name))
    assert (config.modality.length, config.modality.source, config.bind.depth) == (1, "words", 1)
    assert (config.bind.external, config.text.loss) == (True, "modality")


OFF = {"modality.length": 0, "bind.depth": 0, "text.loss": "off"}


@pytest.mark.parametrize(
    ("name", "base", "varied"),
    [
        ("table3-s", "rgbnt201-clip", OFF),
        ("table3-s-bind", "rgbnt201-clip", {"modality.length": 0, "text.loss": "off"}),
        ("table3-s-m-bind", "rgbnt201-clip", {"text.loss": "off"}),
        ("table4-k0", "rgbnt201-clip", {"bind.depth": 0}),
        ("table4-k2", "rgbnt201-clip", {"bind.depth": 2}),
        ("table5-m0", "rgbnt201-clip", {"modality.length": 0}),
        ("table5-m2", "rgbnt201-clip", {"modality.length": 2}),
        ("table5-m3", "rgbnt201-clip", {"modality.length": 3}),
        ("rgbnt201-baseline1", "rgbnt201-vit", OFF),
        ("rgbnt201-baseline2", "rgbnt201-vit", {"modality.length": 0, "bind.depth": 0}),
        ("market1501_mm-baseline1", "market1501_mm-vit", OFF),
        ("market1501_mm-baseline2", "market1501_mm-vit", {"modality.length": 0, "bind.depth": 0}),
    ],
)
def test_an_ablation_differs_in_what_its_table_varies(name: str, base: str, varied: dict[str, Any]) -> None:
    own, full = plain(name), plain(base)
    assert {key: value for key, value in own.items() if value != full[key]} == varied


def test_what_the_paper_prints_of_ablations() -> None:
    assert find("table4-k0").paper == {"mAP": 72.1, "rank1": 75.9, "rank5": 86.1, "rank10": 89.2}
    assert find("table4-k2").paper == {"mAP": 75.2, "rank1": 79.2, "rank5": 86.6, "rank10": 90.2}
    printed = {name: tuple(cell.paper.values()) for name, cell in cells().items() if name[:6] in ("table3", "table5")}
    assert printed == {
        "table3-s": (71.7, 74.4),
        "table3-s-bind": (73.5, 76.9),
        "table3-s-m-bind": (76.7, 80.6),
        "table5-m0": (75.1, 77.2),
        "table5-m2": (77.2, 82.1),
        "table5-m3": (75.6, 78.9),
    }


def test_changed_settings_are_deviations_but_not_the_free_ones() -> None:
    config = settings(find("table4-k2"))
    assert _deviations("table4-k2", config) == []
    free = with_(config, data={"root": "x", "workers": 9}, train={"seed": 5, "save_every": 7, "tensorboard": True})
    assert _deviations("table4-k2", free) == []
    assert set(_UNPRINTED) <= set(plain("table4-k2"))
    changed = with_(config, bind={"depth": 1}, train={"epochs": 3})
    assert _deviations("table4-k2", changed) == ["bind.depth: 2 -> 1", "train.epochs: 60 -> 3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table4-k1"], "the paper has no cell 'table4-k1'; did you mean table4-k2?"),
        (["rgbnt201-clip"], "give --out"),
        ([], "give a cell"),
        (["--out", "x", "table4-k2"], "no data: give --data.root"),
        (["table4-k2", "--out", "x"], "no data: give --data.root"),
        (["table4-k2", "--bind.dpeth", "1"], "did you mean bind.depth?"),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["reproduce", *arguments])
    captured = capsys.readouterr()
    assert (stop.value.code, captured.out, captured.err.count("\n")) == (2, "", 1)
    assert said in captured.err
    assert list(tmp_path.iterdir()) == []


def test_a_flag_overrides_the_cell_even_with_a_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_config(capsys, "reproduce", "table4-k2")["bind"]["depth"] == 2
    printed = print_config(capsys, "reproduce", "table4-k2", "--bind.depth", "1")
    assert (printed["bind"]["depth"], printed["heads"]) == (1, "paper")


def test_the_list_names_cells_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["reproduce", "--list"])
    text = capsys.readouterr().out
    assert all(name in text for name in cells())
    line = next(line for line in text.splitlines() if "table5-m2" in line)
    assert "77.2" in line
    assert "82.1" in line
    assert "--modality.length 2" in line
    main(["reproduce", "--list", "--json"])
    assert json.loads(capsys.readouterr().out)["msvr310-vit"]["paper"] == {"mAP": 35.2, "rank1": 47.3}


def test_settings_files_are_found_in_a_wheel_and_in_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_config(capsys, "params", "--config", "rgbnt201_peer")["data"]["mean"] == [0.5] * 3
    assert print_config(capsys, "params", "--config=rgbnt201_peer")["data"]["mean"] == [0.5] * 3
    (tmp_path / "mine.yaml").write_text("bind: {rank: 32}\n")
    both = print_config(capsys, "params", "--config", "rgbnt201_peer", f"--config={tmp_path / 'mine.yaml'}")
    assert (both["train"]["lr"], both["bind"]["rank"], both["bind"]["share"]) == (2e-3, 32, True)
    assert shipped.settings_file("rgbnt20") is None
    assert shipped.settings_file("../configs/rgbnt201") is None
    package = tmp_path / "src" / "dmpt"
    (package / "configs").mkdir(parents=True)
    monkeypatch.setattr(shipped, "__file__", str(package / "settings" / "shipped.py"))
    assert shipped.folder() == package / "configs"
    (package / "configs").rmdir()
    assert shipped.folder() == tmp_path / "configs"
    with pytest.raises(UserError, match=r"rgbnt201\.yaml does not exist"):
        settings(find("rgbnt201-clip"))


def test_a_cell_from_end_to_end_on_a_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = toy(tmp_path / "data"), tmp_path / "run"
    command = ["reproduce", "rgbnt201-clip", *SMALL, "--data.root", str(data), "--out", str(out)]
    main(command)
    text = capsys.readouterr().out
    written = json.loads((out / "reproduction.json").read_text())
    metrics = json.loads((out / "metrics.json").read_text())
    assert written["paper"] == {"mAP": 78.5, "rank1": 81.3, "rank5": 90.4, "rank10": 93.5}
    assert written["ours"] == {key: metrics[key] for key in written["paper"]}
    for key, printed in written["paper"].items():
        assert written["difference"][key] == pytest.approx(metrics[key] - printed)
        assert f"{metrics[key]:.1f}" in text
        assert f"{metrics[key] - printed:+.1f}" in text
    assert written["provenance"]["data"] == "rgbnt201"
    assert "other data: 48 train samples, not 3951" in written["deviations"]
    assert "other data: 24 query samples, not 836" in written["deviations"]
    changed = {line.split(":")[0] for line in written["deviations"]} - {"other data"}
    assert changed == {flag[2:] for flag in SMALL if flag.startswith("--")} - set(_UNPRINTED)
    assert "not the paper's setting:" in text
    assert "train.epochs: 60 -> 1" in text

    # finished: only evaluated, and the same numbers
    log = (out / "metrics.jsonl").read_bytes()
    (out / "reproduction.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", lambda *_: pytest.fail("trained again"))
        main([*command, "--json"])
    again = json.loads(capsys.readouterr().out)
    assert (again["ours"], again["deviations"]) == (written["ours"], written["deviations"])
    assert json.loads((out / "reproduction.json").read_text()) == again
    assert (out / "metrics.jsonl").read_bytes() == log

    # a run that was planned otherwise at first is no reproduction
    change_state(out, progress=lambda said: said | {"history": [{"step": 3, "train.epochs": [1, 2]}]})
    main([*command, "--json"])
    assert "from step 3 on: train.epochs" in json.loads(capsys.readouterr().out)["deviations"]

    # a run of other settings is not passed off as this one's
    with pytest.raises(SystemExit) as stop:
        main([*command, "--bind.depth", "2"])
    assert stop.value.code == 2
    assert "bind.depth was 1, now it is 2" in capsys.readouterr().err


def test_a_file_left_out_counts_once(tmp_path: Path) -> None:
    data, out = toy(tmp_path / "data"), tmp_path / "run"
    next((data / "train_8" / "NI").iterdir()).unlink()  # both training and evaluation meet it
    next((data / "test" / "RGB").iterdir()).write_bytes(b"no image")
    main(["reproduce", "rgbnt201-clip", *SMALL, "--data.root", str(data), "--out", str(out), "--skip-broken"])
    written = json.loads((out / "reproduction.json").read_text())
    assert "other data: 2 missing or broken files left out" in written["deviations"]


@pytest.mark.parametrize("backbone", ["clip", "vit"])
@pytest.mark.parametrize(
    ("data", "write"),
    [("market1501_mm", write_market1501_mm), ("rgbnt100", write_rgbnt100), ("msvr310", write_msvr310)],
)
def test_every_main_cell_on_a_stand_in_of_its_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, write: Callable[[Path], Facts], backbone: str
) -> None:
    facts, out = write(tmp_path / "data"), tmp_path / "run"
    command = ["reproduce", f"{data}-{backbone}", *SMALL, "--data.root", str(tmp_path / "data"), "--out", str(out)]
    main([*command, "--train.ids", "2"])
    result, cell = json.loads((out / "reproduction.json").read_text()), find(f"{data}-{backbone}")
    assert result["paper"] == cell.paper
    assert result["protocol"] == DATASETS[data].protocol
    known = DATASETS[data].known
    assert f"other data: {len(facts.train)} train samples, not {known['train'].samples}" in result["deviations"]
    assert f"{cell.paper['mAP']:.1f}" in capsys.readouterr().out


def test_an_unfinished_run_goes_on_only_when_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmpt.base.stopping import Stopped

    data, out = toy(tmp_path / "data"), tmp_path / "run"
    command = ["reproduce", "table4-k0", *SMALL, "--data.root", str(data), "--out", str(out), "--train.epochs", "2"]

    def stop_early(self: Trainer) -> None:
        self._save()
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", stop_early)
        with pytest.raises(SystemExit) as stop:
            main(command)
    assert stop.value.code == 130
    assert "go on with the same command and --resume" in capsys.readouterr().err
    assert not is_finished(out)
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert "--resume" in capsys.readouterr().err
    main([*command, "--resume"])
    assert is_finished(out)
    assert json.loads((out / "reproduction.json").read_text())["cell"] == "table4-k0"
    (out / STATE).write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        is_finished(out)


def test_the_docs_list_every_cell_with_the_papers_numbers() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text().splitlines()
    for name, cell in cells().items():
        line = next(line for line in lines if line.startswith(f"| `{name}` |"))
        changed = "".join(f", `{key} {value}`" for key, value in cell.change.items())
        assert f"| {cell.where} | `configs/{cell.config}.yaml`{changed} |" in line
        assert f"| {cell.paper['mAP']} / {cell.paper['rank1']} |" in line
