"""``dmpt gallery``: each of its verbs by hand, its JSON, and one line for a mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

from dmpt.cli import main
from dmpt.gallery.changes import add
from dmpt.gallery.store import create_gallery, open_gallery
from drawn import drawn, model


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Thirty samples of five, the first ten labelled."""
    gallery = create_gallery(tmp_path / "g.lance", model(), source="pictures")
    items = drawn(30, ids=5, present=np.ones((30, 3), np.bool_))
    pids = [f"p{row % 5}" if row < 10 else None for row in range(30)]
    add(gallery, model(), items, [f"{row}.jpg" for row in range(30)], pid=pids, camera=["1", "2"] * 15)
    monkeypatch.chdir(tmp_path)
    return "g.lance"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(["gallery", *arguments])
    return capsys.readouterr().out


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(told(capsys, *arguments, "--json"))


def test_every_verb_in_turn(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert found(capsys, "stats", path)["unlabelled"] == 20
    assert "30, 20 without a label" in told(capsys, "stats", path)
    done = {"version": 3, "added": 0, "changed": 2, "removed": 0}
    assert found(capsys, "label", path, "0.jpg", "1.jpg", "2.jpg", "--pid", "🙂", "--where", "key < '2'") == done
    assert told(capsys, "label", path, "0.jpg", "--unlabelled") == "version 4: 1 changed\n"
    assert told(capsys, "remove", path, "0.jpg", "--pid", "🙂", "p3") == "version 4: nothing to do\n"
    assert found(capsys, "remove", path, "--pid", "🙂", "p3", "--where", "camera = '2'")["removed"] == 2
    assert told(capsys, "rollback", path, "2") == "version 6 holds what version 2 held\n"
    assert [line["rows"] for line in found(capsys, "history", path)] == [0, 30, 30, 30, 28, 30]
    assert "rolled back to 2" in told(capsys, "history", path)
    assert found(capsys, "stats", path, "--version", "5")["rows"] == 28
    assert found(capsys, "export", path, "x.npz", "--where", "camera = '1'")["rows"] == 15
    assert "30 samples of version 6" in told(capsys, "export", path, "fo", "--format", "fiftyone")
    assert json.loads(Path("fo/samples.json").read_text())["samples"][0]["filepath"] == f"{Path.cwd()}/pictures/0.jpg"
    proposed = found(capsys, "cluster", path, "--threshold", "0.5")
    assert (len(proposed["proposals"]), proposed["change"]) == (5, None)
    assert "nothing was written" in told(capsys, "cluster", path, "--threshold", "0.5")
    assert "version 7: 20 changed" in told(capsys, "cluster", path, "--threshold", "0.5", "--apply")
    assert found(capsys, "stats", path)["unlabelled"] == 0
    purged = found(capsys, "remove", path, "--pid", "p3", "--purge")
    assert (purged["removed"], len(found(capsys, "history", path))) == (6, 1)
    assert "earlier versions are gone" in told(capsys, "remove", path, "--purge")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["remov", "g.lance"], "unknown verb gallery remov; did you mean remove?"),
        (["stats", "x.lance"], "x.lance does not exist; dmpt embed or dmpt gallery add makes a gallery"),
        (["remove", "g.lance"], "nothing is named; give keys, --pid or --where"),
        (["label", "g.lance", "0.jpg"], "give either --pid, who it is, or --unlabelled"),
        (["label", "g.lance", "0.jpg", "--pid", "x" * 10_000], "pid, row 0: 10000 characters; give at most 1000"),
        (["label", "g.lance", "9.png", "--pid", "x"], "g.lance has no key 9.png; dmpt gallery export lists"),
        (["cluster", "g.lance"], "give either --threshold, or --model, whose calibration knows it"),
        (["export", "g.lance", "x.csv"], "x.csv says no format; name it .npz or .parquet, or give --format"),
        (["rollback", "g.lance", "77"], "dmpt gallery history lists the versions that there are"),
    ],
)
def test_mistakes(path: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["gallery", *arguments])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("dmpt gallery: error: ")
    assert said in err


@pytest.mark.parametrize("where", ["camera = '2' pid = 'p3'", "camera = '2'; x", "camera = '2' AN pid = 'p3'", ""])
@pytest.mark.parametrize(
    "verb",
    [
        ["remove", "g.lance"],
        ["remove", "g.lance", "--purge"],
        ["label", "g.lance", "--pid", "x"],
        ["export", "g.lance", "x.npz"],
        ["export", "g.lance", "x.parquet"],
        ["export", "g.lance", "fo"],
        ["cluster", "g.lance", "--threshold", "0.5", "--apply"],
    ],
    ids=" ".join,
)
def test_half_a_condition_does_nothing(
    path: str, verb: list[str], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["gallery", *verb, "--where", where])
    assert end.value.code == 2
    assert "condition" in capsys.readouterr().err
    assert [each.name for each in Path.cwd().iterdir()] == ["g.lance"]
    assert found(capsys, "stats", path)["version"] == 2


def _without_a_column(dataset: lance.LanceDataset) -> None:
    dataset.drop_columns(["camera"])


def _another_table(dataset: lance.LanceDataset) -> None:
    lance.write_dataset(pa.table({"a": [1]}), dataset.uri, mode="overwrite")


def _without_a_model(dataset: lance.LanceDataset) -> None:
    dataset.update_schema_metadata({"dmpt.format": "1"}, replace=True)


@pytest.mark.parametrize("spoil", [_without_a_column, _another_table, _without_a_model])
def test_what_another_program_did_is_rolled_back(
    path: str, spoil: Callable[[lance.LanceDataset], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = found(capsys, "stats", path)
    spoil(lance.dataset(path))
    for arguments in (["stats", path], ["remove", path, "--pid", "p1"], ["rollback", path, "3"]):
        with pytest.raises(SystemExit):
            main(["gallery", *arguments])
        assert capsys.readouterr().err.count("\n") == 1
    lines = found(capsys, "history", path)
    assert [line["what"] for line in lines[:2]] == ["created", "added 30"]
    assert lines[2]["what"].startswith("changed by another program (")
    assert found(capsys, "stats", path, "--version", "2")["rows"] == 30
    assert told(capsys, "rollback", path, "2") == "version 4 holds what version 2 held\n"
    now = found(capsys, "stats", path)
    assert {name: now[name] for name in ("rows", "cameras", "pids", "source")} == {
        name: before[name] for name in ("rows", "cameras", "pids", "source")
    }
    assert found(capsys, "label", path, "0.jpg", "--pid", "x")["changed"] == 1


def test_labels_command_no_terminal(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    gallery = open_gallery(path)
    add(gallery, model(), drawn(2, ids=1), ["\x1b[2Ja", "\x1b[2Jb"], camera=["\x1b[31m1", "2"])
    told(capsys, "label", path, "0.jpg", "5.jpg", "--pid", "\x1b[31mp")
    for arguments in (["stats", path], ["history", path], ["cluster", path, "--threshold", "0.5"]):
        assert "\x1b" not in told(capsys, *arguments)
    assert r"\x1b[31m1 1" in told(capsys, "stats", path)
    assert r"\x1b[2J" in told(capsys, "cluster", path, "--threshold", "-1", "--where", "key > '\x1b' AND key < '0'")


def test_without_a_verb_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as end:
            main(["gallery", *arguments])
        assert end.value.code == code
        assert "cluster    Propose identities" in capsys.readouterr().out
