"""Runs and the data beside which they were trained: found again from anywhere, and not taken for others."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from dmpt.adapter.folder import load_card
from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.evaluation.beside import trained_beside, why_apart
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.paper.published import ours
from dmpt.settings.config import Config
from dmpt.settings.places import absolute, is_place, without_places
from dmpt.towers.image import build_vit
from dmpt.training.trainer import Trainer
from runs import fit, flags, own_data, same_state, settings, toy, with_

OTHER = 7
"""Seed of another toy set: its files have the same names and other pixels."""


def relative() -> Config:
    """Settings that name their files from the working directory."""
    tower = {"weights": "tower.safetensors", "grid": (2, 1)}
    return with_(settings(Path("data"), epochs=1), backbone=tower)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two working directories, each with a data set called ``data``; a run of the first, given relative paths."""
    place = tmp_path_factory.mktemp("machine")
    toy(place / "here" / "data")
    toy(place / "there" / "data", seed=OTHER)
    vit, _ = build_vit(settings(place).backbone, (32, 16))
    save_file(vit.state_dict(), place / "here" / "tower.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place / "here")
        fit(relative(), place / "first")
        fit(replace(relative(), init="../first"), place / "run")
    return place


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """A copy of that run, in which a test may write; it has not been evaluated."""
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return found


def said(capfd: pytest.CaptureFixture[str]) -> str:
    """What went to the terminal, without its line breaks."""
    return " ".join(capfd.readouterr().err.split())


def refused(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    message = capfd.readouterr().err
    assert message.count("\n") == 1
    return message.rstrip()


def command(*arguments: str | Path) -> None:
    main([*map(str, arguments)])


# --- whole paths in a run, none in an adapter ------------------------------------------------------------------------


def test_a_run_judges_its_own_data_from_anywhere(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before, it took ``data`` of the working directory."""
    monkeypatch.chdir(place / "there")
    found = evaluate(run)
    own, other = (evaluate(run, Conditions(root=str(place / name / "data"))) for name in ("here", "there"))
    assert found.metrics.mAP == own.metrics.mAP != other.metrics.mAP
    assert [result.provenance["apart"] for result in (found, own)] == ["", ""]
    assert capfd.readouterr().err.count("kept apart") == 1  # of the other


def test_a_run_has_whole_paths_and_its_adapter_none(place: Path, run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["root"] == str(place / "here" / "data")
    assert config["backbone"]["weights"] == str(place / "here" / "tower.safetensors")
    assert Path(config["init"]).resolve() == place / "first"
    text = (run / "last" / "config.json").read_text()
    assert str(place) not in text
    content = json.loads(text)["config"]
    assert (content["data"]["root"], content["init"]) == (None, None)
    assert content["backbone"]["weights"] == "tower.safetensors"
    assert load_card(run / "last").config.data.root == str(place / "here" / "data")  # as the run knows


def test_the_adapter_that_was_selected_has_no_path_either(place: Path, tmp_path: Path) -> None:
    fit(settings(place / "here" / "data", epochs=1, select="val"), tmp_path / "run")
    for which in ("last", "best"):
        assert str(place) not in (tmp_path / "run" / which / "config.json").read_text()


def test_an_adapter_alone_asks_for_what_it_lacks(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(run)
    adapter = shutil.copytree(run / "last", tmp_path / "elsewhere" / "adapter")
    monkeypatch.chdir(tmp_path)
    root, tower = place / "here" / "data", place / "here" / "tower.safetensors"
    capfd.readouterr()
    message = refused(capfd, "evaluate", adapter)
    assert re.search(r"adapter does not know where its data are .*fingerprint [0-9a-f]{8}; give --data\.root$", message)
    message = refused(capfd, "evaluate", adapter, "--data.root", root)
    assert f"tower.safetensors with sha256 {sha256(tower)}" in message
    assert message.endswith("give them with --backbone.weights")
    command("evaluate", adapter, "--data.root", root, "--backbone.weights", tower)
    assert "apart" not in said(capfd)
    written = metrics(adapter)
    assert written["mAP"] == evaluate(run).metrics.mAP
    for private in (place, tmp_path):  # a folder that is there to be shared
        assert str(private) not in (adapter / "metrics.json").read_text()


def test_an_adapter_that_names_paths_is_still_read(place: Path, run: Path, tmp_path: Path) -> None:
    """As they were written before; it lies in no run."""
    adapter = shutil.copytree(run / "last", tmp_path / "old")
    card = json.loads((adapter / "config.json").read_text())
    card["config"]["data"]["root"] = str(place / "here" / "data")
    card["config"]["backbone"]["weights"] = str(place / "here" / "tower.safetensors")
    del card["data"]["test_fingerprint"]
    card["data"]["fingerprint"] = card["data"]["fingerprint"].rpartition(":")[2]
    (adapter / "config.json").write_text(json.dumps(card))
    found = evaluate(adapter)
    assert found.metrics.mAP == evaluate(run).metrics.mAP
    assert found.provenance["apart"] == ""


def test_a_run_that_remembers_a_relative_folder_says_what_it_takes(
    place: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As runs were written before."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["root"] = "data"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(place / "there")
    assert evaluate(run).provenance["apart"].startswith("other data")
    assert f"taken is {place / 'there' / 'data'}" in capfd.readouterr().err
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=r"remembers its data as data, .* there are none; give --data\.root$"):
        evaluate(run)


def test_resuming_elsewhere_goes_on_with_the_same_data(
    place: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = with_(relative(), train={"epochs": 2})
    monkeypatch.chdir(place / "there")
    given: dict[str, Any] = {"data": {"root": None}, "backbone": {"weights": str(place / "here/tower.safetensors")}}
    trainer = fit(with_(longer, **given), run, resume=True, replan=True)
    assert trainer.config.data.root == str(place / "here" / "data")
    monkeypatch.chdir(place / "here")
    again = shutil.copytree(place / "run", tmp_path / "again")
    fit(longer, again, resume=True, replan=True)
    assert same_state(run, again)


def test_pixels_of_another_set_are_not_resumed(place: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their names are the same, so the fingerprints of before were."""
    monkeypatch.chdir(place / "there")
    tower = {"weights": str(place / "here" / "tower.safetensors")}
    config = with_(relative(), backbone=tower)
    with pytest.raises(UserError, match=r"training data was [0-9a-f]{8}, now it is [0-9a-f]{8}; resume with what"):
        Trainer(config, run, resume=True)


# --- numbers on other data -------------------------------------------------------------------------------------------


def test_numbers_on_other_data_have_a_file_of_their_own(
    place: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command("evaluate", run)
    before = (run / "metrics.json").read_bytes()
    other = place / "there" / "data"
    command("evaluate", run, "--data.root", other, "--data.object", "vehicle")
    (apart,) = run.glob("metrics.*.json")
    assert re.fullmatch(r"metrics\.rgbnt201-[0-9a-f]{8}-same_camera\.json", apart.name)
    assert json.loads(apart.read_text())["provenance"]["object"] == "vehicle"
    message = said(capfd)
    assert "other data than it was trained beside, vehicles and not persons; these numbers are kept apart" in message
    assert "kept in" in message
    listed = own_data(tmp_path / "own", other, lambda *_: True)
    command("evaluate", run, "--data.root", listed, "--data.layout", "manifest")
    assert len([*run.glob("metrics.manifest-*-same_camera.json")]) == 1
    assert (run / "metrics.json").read_bytes() == before
    assert ["than it was trained beside" in row.apart for row in ours(run)] == [False, True, True]
    command("report", run, "--data.root", other)
    assert [page.name for page in run.glob("*.html")] == [apart.name.replace("metrics", "report")[:-4] + "html"]


def test_the_same_data_elsewhere_are_the_runs_own(place: Path, run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(place / "here" / "data", tmp_path / "moved")
    command("evaluate", run, "--data.root", moved)
    assert metrics(run)["provenance"]["apart"] == ""
    assert [*run.glob("metrics.*.json")] == []


def test_another_protocol_is_kept_apart(place: Path, run: Path, tmp_path: Path) -> None:
    """Of data whose query and gallery are two, so that none is a protocol for them."""
    data = own_data(tmp_path / "own", place / "here" / "data", lambda *_: True)
    rows = (data / "manifest.csv").read_text().splitlines()
    sides = [row.replace(",test", ",query" if number % 2 else ",gallery") for number, row in enumerate(rows)]
    (data / "manifest.csv").write_text("\n".join(sides))
    fit(with_(settings(data, epochs=0), data={"layout": "manifest"}), tmp_path / "trained")
    command("evaluate", tmp_path / "trained")
    own = metrics(tmp_path / "trained")
    command("evaluate", tmp_path / "trained", "--data.protocol", "none")
    assert metrics(tmp_path / "trained") == own
    (apart,) = (tmp_path / "trained").glob("metrics.*.json")
    assert apart.name.endswith("-none.json")
    found = json.loads(apart.read_text())
    assert found["provenance"]["apart"] == "protocol none, not its own same_camera"
    assert found["mAP"] != own["mAP"]


def test_what_a_card_of_before_can_tell(place: Path, run: Path) -> None:
    """It knows the training samples alone, and of a run that held some out not even those."""
    new = load_card(run / "last")
    old = replace(new, data={key: value for key, value in new.data.items() if key != "test_fingerprint"})
    held = replace(old, config=with_(old.config, train={"select": "val"}))
    own, other = (load_dataset("rgbnt201", place / name / "data", new.config.data) for name in ("here", "there"))
    for card in (new, old):
        assert [trained_beside(card, dataset) for dataset in (own, other)] == [True, False]
    for card, dataset in ((held, own), (held, other), (old, replace(own, train=()))):
        assert trained_beside(card, dataset) is None
        assert why_apart(card, dataset, chosen=False) == ""
        assert why_apart(card, dataset, chosen=True) == "maybe other data than it was trained beside"


def test_the_folder_that_a_run_remembers_may_be_named_again(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its card cannot tell."""
    run = tmp_path / "run"
    fit(settings(place / "here" / "data", epochs=1, select="val"), run)
    for which in ("last", "best"):
        path = run / which / "config.json"
        card = json.loads(path.read_text())
        del card["data"]["test_fingerprint"]
        path.write_text(json.dumps(card))
    monkeypatch.chdir(place / "here")
    assert evaluate(run, Conditions(root="data", workers=1)).provenance["apart"] == ""
    assert evaluate(run, Conditions(root="../there/data")).provenance["apart"].startswith("maybe other data")


@pytest.mark.parametrize("layout", ["rgbnt201", "folder", "manifest"])
def test_test_images_alone_are_enough(layout: str, place: Path, run: Path, tmp_path: Path) -> None:
    source, data = place / "here" / "data", tmp_path / "data"
    if layout == "manifest":
        data = own_data(data, source, lambda *_: True)
        lines = (data / "manifest.csv").read_text().splitlines()
        (data / "manifest.csv").write_text("\n".join(line for line in lines if not line.endswith(",train")))
    elif layout == "rgbnt201":
        shutil.copytree(source / "test", data / "test")
    else:
        for file in (source / "test").glob("*/*"):
            kind = {"RGB": "rgb", "NI": "nir", "TI": "tir"}[file.parent.name]
            name = re.sub("_cam", "_c", file.name)
            (data / "test" / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, data / "test" / kind / name)
    found = evaluate(run, Conditions(root=str(data), layout=layout))
    own = evaluate(run)
    assert (found.metrics.mAP, found.metrics.queries) == (pytest.approx(own.metrics.mAP), own.metrics.queries)
    assert (found.provenance["apart"] == "") is (layout != "folder")  # there the names differ
    config = with_(settings(data), data={"layout": layout})
    with pytest.raises(UserError, match="no training images"):
        Trainer(config, tmp_path / "trained")


def test_a_training_folder_by_another_name_is_no_test_set_alone(place: Path, tmp_path: Path) -> None:
    data = shutil.copytree(place / "here" / "data", tmp_path / "data")
    (data / "train_8").rename(data / "trian_8")
    with pytest.raises(UserError, match="holds no folder train_"):
        load_dataset("rgbnt201", data)


# --- ~ ---------------------------------------------------------------------------------------------------------------


def test_home_is_known_in_every_path(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell resolves ``~`` in some of these places alone."""
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    cwd.mkdir()
    shutil.copytree(place / "here" / "data", home / "x")
    (home / "own.yaml").write_text("data: {root: ~/x}\n")
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("HOME", str(home))
    rest = [flag for flag in flags(settings(home, epochs=1)) if not flag.startswith("--data.root")]
    command("train", "--config=~/own.yaml", *rest, "--out=~/run")
    assert yaml.safe_load((home / "run" / "config.yaml").read_text())["data"]["root"] == str(home / "x")
    command("train", "--config", "~/own.yaml", *rest, "--out", "~/run", "--resume")
    command("train", *rest, "--data.root=~/x", "--init=~/run", "--out=~/next")
    command("evaluate", "~/run", "--data.root=~/x")
    assert metrics(home / "run")["provenance"]["apart"] == ""
    command("report", "~/run", "--data.root=~/x", "--out=~/page.html")
    assert (home / "page.html").is_file()
    command("synth", "~/drawn", "--ids=3", "--test-ids=1", "--images=2")
    assert (home / "drawn").is_dir()
    assert [*cwd.iterdir()] == []
    assert [path for path in home.rglob("*") if path.name == "~"] == []


# --- which settings are places ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "place"),
    [
        ("data.root", "data", True),
        ("data.root", None, False),
        ("data.size", [32, 16], False),
        ("backbone.weights", "random", False),
        ("backbone.weights", "hub", False),
        ("backbone.weights", "hub:owner/repo/file.safetensors", False),
        ("backbone.weights", "package:tower.safetensors", False),
        ("backbone.weights", "tower.safetensors", True),
        ("text.tower", "ViT-B-16-quickgelu", False),
        ("text.tower", "towers/own.json", True),
        ("text.weights", "openai", False),
        ("text.weights", "laion2b_s34b_b88k", False),
        ("text.weights", "clip.pt", True),
        ("text.weights", "towers/clip", True),
        ("text.file", "words.safetensors", True),
        ("text.file", "package:words.safetensors", False),
    ],
)
def test_what_names_a_file_of_this_machine(setting: str, value: Any, place: bool) -> None:
    assert is_place(setting, value) is place


def test_places_become_whole_or_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = {"tower": "own.json", "weights": "~/clip.pt", "file": "a/words.safetensors"}
    config = with_(Config(), data={"root": "data"}, backbone={"weights": "tower.safetensors"}, text=text)
    whole = absolute(config)
    assert (whole.data.root, whole.backbone.weights) == (f"{tmp_path}/data", f"{tmp_path}/tower.safetensors")
    assert whole.text.weights == f"{tmp_path}/home/clip.pt"
    assert absolute(whole) == whole
    shared = without_places(whole)
    assert str(tmp_path) not in repr(shared)
    assert (shared.data.root, shared.backbone.weights) == (None, "tower.safetensors")
    assert (shared.text.tower, shared.text.weights, shared.text.file) == ("own.json", "clip.pt", "words.safetensors")
    assert without_places(Config()) == absolute(Config()) == Config()
