"""The command line: the issue's lines work as written, and mistakes end with one line and exit code 2."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import yaml
from safetensors.torch import save_file

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_table
from dmpt.base.yaml import load
from dmpt.cli import main
from dmpt.settings.config import Config
from dmpt.settings.rules import check
from dmpt.settings.values import flatten, from_dict
from runs import dmpt, fit, settings, toy, with_

CLIP, DINO = "vit_base_patch16_clip_quickgelu_224", "vit_small_patch14_dinov2"
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        main([str(a) for a in arguments])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_line_error(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_settings_are_parsed_and_agree(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "params", "--config", path, "--ids", "171", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert set(result) >= {"trained", "in_memory", "paper_ratio", "components"}
    assert set(result["components"][0]) == {"name", "shape", "count", "trained"}


@pytest.mark.parametrize("layout", ["manifest", "folder", "wmveid863", "rgbn300"])
def test_identities_that_nobody_knows_are_asked_for(layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = one_line_error(run(capsys, "params", "--data.layout", layout))
    assert f"training identities of {layout} is not known; give --ids" in message


def test_none_is_a_protocol_and_null_the_layouts_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for written, expected in {"none": "none", "null": None, "same_scene": "same_scene"}.items():
        file = tmp_path / "a.yaml"
        file.write_text(f"data: {{protocol: {written}}}\n")
        for arguments in (["--data.protocol", written], ["--config", file]):
            _, out, _ = run(capsys, "params", *arguments, "--print_config")
            assert load(out)["data"]["protocol"] == expected


def test_every_setting_is_a_key_and_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "params", "--print_config")
    assert code == 0
    printed = yaml.safe_load(out)
    known = flatten(asdict(Config()))
    assert set(known) <= set(flatten(printed))
    _, out, _ = run(capsys, "train", "--help")
    for name in known:
        assert f"--{name}" in out


def test_flags_override_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("semantic: {length: 4}\nheads: paper\n")
    _, out, _ = run(
        capsys, "params", "--config", file, "--semantic.length", "8", "--data.size", "[112,64]", "--print_config"
    )
    printed = yaml.safe_load(out)
    assert printed["semantic"]["length"] == 8
    assert printed["heads"] == "paper"
    assert printed["data"]["size"] == [112, 64]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--out", "o", "--length", "3"], "did you mean semantic.length?"),
        (["train", "--config", "missing.yaml", "--out", "o"], "missing.yaml does not exist"),
        (["train", "--heads", "papr", "--out", "o"], "papr"),
        (["train", "--train.lr", "fast", "--out", "o"], "train.lr"),
        (["train", "--data.root", "."], "out"),
        (["train", "--out", "o"], "no data: give --data.root"),
        (["evaluate", "nowhere"], "nowhere holds no trained adapter"),
        (["evaluate", "nowhere", "--batch-size", "0"], "batch"),
        (["params", "--data.size", "[250,128]"], "data.size"),
        (
            ["params", "--data.modalities", "rgb"],
            '--data.modalities is "rgb"; it must be a list as in [a,b], each rgb, nir or tir',
        ),
        (["params", "--ids", "0"], "--ids is 0; it must be a whole number of at least 1"),
        (["report", "x", "--out", "."], "--out . is a folder; give a file, for instance report.html"),
        (["report", "x\n\x1b[31my"], "x\\n\\x1b[31my"),
        (["params", "--heads", "five"], '--heads is "five"; it must be concat+modality, concat, modality or paper'),
        (
            ["params", "--backbone.name", "vit_base_patch16_clip_quickgelu_224.opnai"],
            "vit_base_patch16_clip_quickgelu_224.openai",
        ),
        (["params", "--backbone.blocks", "13"], "backbone.blocks"),
        (["params", "--data.value_range", "[0,.inf]"], "data.value_range"),
        (
            [
                *("params", "--loss.ce", "0", "--semantic.length", "0", "--modality.length", "0"),
                *("--bind.depth", "0", "--text.loss", "off"),
            ],
            "nothing that is trained has a part in the loss",
        ),
        (["params", "--train.weight_decay", "-1"], "train.weight_decay is -1"),
        (
            ["params", "--data.std", "[0.5,.nan,0.5]"],
            "data.std is [0.5, NaN, 0.5]; it must be a list of 3 as in [a,b,c], each a number above 0",
        ),
        (["params", "--modality.length", "4"], "modality.length is 4"),
        (
            ["params", "--backbone.name", "vit_small_patch14_dinov2", "--data.size", "[112,56]"],
            "has no image projection",
        ),
    ],
)
def test_mistakes_end_with_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in one_line_error(run(capsys, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_in_a_file_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    for text, said in (
        ("train: {epoch: 3}", "unknown setting train.epoch; did you mean train.epochs?"),
        ("semantc: {length: 3}", "did you mean semantic"),
        ("train: [", "line 1: no YAML"),
        ("train:\n\tlr: 3", "line 2: no YAML"),
        ("train: {lr: 1e-3}\ndata: {root: d}\ntrain: {epochs: 3}", "line 3: no YAML (the key 'train' is there already"),
        ("- train", "must hold keys and values, as in train: {epochs: 60}"),
    ):
        file.write_text(text)
        assert said in one_line_error(run(capsys, "train", "--config", file, "--out", tmp_path / "o"))


@pytest.mark.parametrize("text", ["text: {loss: off}\ntrain: {lr: 1e-3}", '{"text": {"loss": "off"}}'])
def test_off_is_a_word_and_not_a_truth_value(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    code, out, err = run(capsys, "params", "--config", file, "--print_config")
    assert code == 0, err
    assert load(out)["text"]["loss"] == "off"
    assert load(out)["train"]["lr"] == 1e-3


@pytest.mark.parametrize("text", ["data: null", "data:", "text: off", "data: 3", "", "[1, 2]"])
def test_a_file_that_is_no_mapping_of_settings(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    one_line_error(run(capsys, "params", f"--config={file}"))


def test_the_file_that_is_wrong_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.yaml").write_text("train: {epochs: 1\n")
    (tmp_path / "latin.yaml").write_bytes(b'data:\n  root: "caf\xe9"\n')
    for file, said in (("broken.yaml", "no YAML"), ("latin.yaml", "is no UTF-8 text")):
        for after in ([], ["--config", "tiny"], ["--config", "nowhere.yaml"]):
            message = one_line_error(run(capsys, "params", "--config", tmp_path / file, *after))
            assert f"{tmp_path / file}" in message
            assert said in message


def test_a_home_that_is_nobodys(capsys: pytest.CaptureFixture[str]) -> None:
    message = one_line_error(run(capsys, "check", "~nobody-here/x", "--layout", "manifest"))
    assert "~nobody-here/x: there is no such user's home here" in message


def test_names_with_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[/b] t", ["[red]h"], [["run [b]x[/i] :smile:"]])
    out = capsys.readouterr().out
    assert all(text in out for text in ("[/b] t", "[red]h", "run [b]x[/i] :smile:"))


def test_names_command_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("\x1b[2J", ["\x1b]0;h\x07"], [["Åsa 🙂 \x1b[31m\n\r\u202e"]])
    out = capsys.readouterr().out
    assert all(text in out for text in (r"\x1b[2J", r"\x1b]0;h\x07", r"Åsa 🙂 \x1b[31m\n\r\u202e"))
    assert not {*"\x1b\x07\r\u202e"} & {*out}


def test_a_reader_that_goes_away_loses_no_result(tmp_path: Path) -> None:
    fit(settings(toy(tmp_path / "data"), epochs=0), tmp_path / "run")
    command = [sys.executable, "-m", "dmpt", "evaluate", str(tmp_path / "run"), "--missing", "all"]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    os.close(write)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["mAP"] >= 0


def test_numbers_are_printed_even_if_they_cannot_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(settings(toy(tmp_path / "data"), epochs=0), tmp_path / "run")
    (tmp_path / "run" / "metrics.json").mkdir()  # cannot be replaced by a file
    code, out, err = run(capsys, "evaluate", tmp_path / "run", "--json")
    assert code == 2
    assert "mAP" in json.loads(out)
    assert "metrics.json" in err


@pytest.mark.long
def test_the_line_with_another_tower_works_as_written(tmp_path: Path) -> None:
    """On the toy set, with a file of DINOv2's names and shapes."""
    data = toy(tmp_path / "data", train_ids=16, images=8)
    file, out = tmp_path / "dinov2.safetensors", tmp_path / "runs" / "x"
    vit = timm.create_model(DINO, pretrained=False, img_size=518)
    save_file({name: tensor.half() for name, tensor in vit.state_dict().items()}, file)
    root = Path(__file__).parents[2]
    lines = re.search(
        r"dmpt (train [^`]*?--data\.size.*?--out runs/x)", (root / "docs" / "training.md").read_text(), re.DOTALL
    )
    assert lines is not None
    config = "configs/rgbnt201.yaml"
    places = {"DIR": str(data), "FILE": str(file), "runs/x": str(out), config: str(root / config)}
    words = [places.get(word, word) for word in shlex.split(lines[1].replace("\\\n", " "))]
    done = dmpt(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not used of the weights file: blocks.9, blocks.10, blocks.11, norm" in done.stderr.replace("\n", " ")
    done = dmpt("evaluate", out, "--data.root", data, "--json")
    assert done.returncode == 0, done.stderr
    assert {"mAP", "rank1"} <= set(json.loads(done.stdout))


def test_help_is_instant_and_imports_nothing_heavy() -> None:
    code = "import sys, dmpt.cli\ntry: dmpt.cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "train" in done.stdout


@pytest.mark.parametrize("verb", ["study", "reproduce"])
def test_lists_are_instant(verb: str) -> None:
    code = (
        f"import sys, dmpt.cli\ndmpt.cli.main(['{verb}', '--list'])\nassert not {{'torch', 'timm'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)


def test_nothing_slow_is_imported_where_ctrl_c_is_not_caught() -> None:
    code = "import sys, dmpt.cli\nassert not {'argparse', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_package_changes_no_global_state() -> None:
    code = """
import os, torch
def state():
    cudnn = torch.backends.cudnn
    flags = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    return flags, torch.get_num_threads(), torch.get_default_dtype(), torch.initial_seed(), dict(os.environ)
import timm, accelerate, torchvision, open_clip
before = state()
import dmpt.training.trainer, dmpt.evaluation.evaluate, dmpt.paper.parameters, dmpt.demo.demo
assert state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = toy(tmp_path / "data")
    out = tmp_path / "runs" / "x"
    trainer = fit(settings(data, epochs=1), out)
    code, text, err = run(capsys, "evaluate", out, "--data.root", data, "--json")
    assert code == 0, err
    result = json.loads(text)
    assert set(result) >= {"mAP", "rank1", "rank5", "rank10", "mINP", "queries", "valid_queries", "gallery", "protocol"}
    assert 0 <= result["mAP"] <= 100
    assert result["queries"] == result["gallery"] == 24
    assert result["provenance"]["step"] == trainer.progress.step
    assert json.loads((out / "metrics.json").read_text()) == result
    code, text, _ = run(capsys, "evaluate", out)
    assert code == 0
    assert re.search(r"same_camera: 24 of 24", text)
    assert f"{result['mAP']:.1f}" in text
    (tmp_path / "empty").mkdir()
    assert "train_" in one_line_error(run(capsys, "evaluate", out, "--data.root", tmp_path / "empty"))


def test_settings_survive_a_trip_through_json(tmp_path: Path) -> None:
    config = with_(settings(tmp_path), data={"mean": (0.1, 0.2, 0.3)})
    assert from_dict(json.loads(json.dumps(asdict(config)))) == config
    content = asdict(config)
    content["train"]["epohcs"] = 3
    with pytest.raises(UserError, match="epohcs"):
        from_dict(content)
    with pytest.raises(UserError, match="nonsense"):
        from_dict({"nonsense": 1})


def test_shipped_defaults_are_valid() -> None:
    check(Config())
