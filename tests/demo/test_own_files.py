"""A second demo replaces the first one, and deletes nothing that no demo wrote."""

import json
from pathlib import Path

import pytest

import dmpt.demo.demo as demo_module
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.demo.own_files import _LIST, clear

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def write(path: Path, text: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a demo was, which takes no time here."""

    def show(out: Path, scale: object, seed: int) -> None:
        for name in ("report.html", "DMPT/best/config.json", "DMPT/.lock", "frozen/log", "gallery.lance/data/a.lance"):
            write(out / name, f"seed {seed}")

    monkeypatch.setattr(demo_module, "_show", show)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "demo"]) is None
    return tmp_path / "demo"


def refusal(capsys: pytest.CaptureFixture[str], out: str = "demo") -> str:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--out", out])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_a_second_demo_replaces_the_first(out: Path) -> None:
    write(out / "stale")
    listed = json.loads((out / _LIST).read_text())
    write(out / _LIST, json.dumps([*listed, "stale"]))  # as if the first had written one file more
    main(["demo", "--out", "demo", "--seed", "1"])
    assert (out / "report.html").read_text() == "seed 1"
    assert not (out / "stale").exists()
    clear(out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("foreign", ["notes.txt", "DMPT/notes.txt", "DMPT/best/.hidden", "frozen/folder/"])
def test_a_foreign_file_is_left_with_all_others(out: Path, foreign: str, capsys: pytest.CaptureFixture[str]) -> None:
    (out / foreign).mkdir() if foreign.endswith("/") else write(out / foreign)
    before = sorted(out.rglob("*"))
    assert f"no demo has listed demo/{foreign.rstrip('/')} as its own" in refusal(capsys)
    assert sorted(out.rglob("*")) == before


def test_a_folder_or_file_of_others_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "file")
    assert "is in use" in refusal(capsys, str(tmp_path))
    assert "is in use" in refusal(capsys, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("listed", ["no JSON", "5", "[[]]", '["../file", "/file"]'])
def test_a_list_that_is_not_ours_deletes_nothing(tmp_path: Path, listed: str) -> None:
    write(tmp_path / "file")
    write(tmp_path / "demo" / "other")
    write(tmp_path / "demo" / _LIST, listed)
    with pytest.raises(UserError, match="is in use"):
        clear(tmp_path / "demo")
    assert (tmp_path / "file").exists()
    assert (tmp_path / "demo" / "other").exists()


def test_a_list_reaches_no_further_than_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "away" / "file")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "link").symlink_to(tmp_path / "away")
    write(tmp_path / "demo" / _LIST, json.dumps(["link", "link/file", "../away/file", str(tmp_path / "away" / "file")]))
    clear(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []
    assert (tmp_path / "away" / "file").exists()


def test_a_demo_that_ended_early_is_replaced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(out: Path, *_: object) -> None:
        write(out / "DMPT" / "log")
        write(out / "notes")  # somebody's, meanwhile
        raise KeyboardInterrupt

    monkeypatch.setattr(demo_module, "_show", stop)
    with pytest.raises(KeyboardInterrupt):
        demo_module.demo(tmp_path / "demo")
    with pytest.raises(UserError, match="notes"):
        clear(tmp_path / "demo")
    (tmp_path / "demo" / "notes").unlink()
    clear(tmp_path / "demo")
    assert list((tmp_path / "demo").iterdir()) == []


def test_make_deletes_nothing_but_its_environment() -> None:
    removals = [line.strip() for line in MAKEFILE.read_text().splitlines() if "rm " in line]
    assert removals == ["test ! -e .venv/installed || rm -rf .venv"]
