"""The public face: what ``import dmpt`` gives, and the page about it."""

import doctest
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dmpt

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def test_every_public_name_is_there_and_on_the_page() -> None:
    assert dir(dmpt) == dmpt.__all__
    assert len(dmpt.__all__) < 20
    sections = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("## `")]
    assert sorted(sections) == sorted(f"## `dmpt.{name}`" for name in dmpt.__all__)
    for name in dmpt.__all__:
        assert getattr(dmpt, name).__doc__
    with pytest.raises(AttributeError, match="module 'dmpt' has no attribute 'evaluat'"):
        dmpt.evaluat  # type: ignore[attr-defined]  # noqa: B018


def listed() -> dict[str, list[str]]:
    """What the page's table names, by module."""
    rows = re.findall(r"^\| `(dmpt\.[\w.]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {module: re.findall(r"`(\w+)`", names) for module, names in rows}


def test_what_else_is_public_is_there_and_documented() -> None:
    found = listed()
    assert len(found) > 40
    assert len(dmpt.__all__) + sum(map(len, found.values())) < 150
    for module, names in found.items():
        for name in names:
            assert inspect.getdoc(getattr(import_module(module), name)), f"{module}.{name}"


def test_pages_take_nothing_that_is_private() -> None:
    """What README and docs import is on the page."""
    public, taken = {"dmpt": dmpt.__all__} | listed(), set()
    for page in (PAGE.parents[1] / "README.md", *PAGE.parent.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"^[ >]*from (dmpt[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
            taken |= {(module, name.strip(), page.name) for name in names.split(",")}
    assert taken
    assert [each for each in taken if each[1] not in public.get(each[0], [])] == []


def test_the_import_alone_is_light() -> None:
    code = """
import sys, dmpt
heavy = {"torch", "numpy", "yaml", "PIL", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert dmpt.Config().train.epochs and dmpt.UserError and dmpt.Record and dmpt.read_config("tiny")
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert tried > 10
    assert failed == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read .*No such file"),
        ("train: {epochs: [", "line 1: no YAML"),
        ("- train", "must hold keys and values, as in train: {epochs: 60}"),
        ("train: {epoch: 60}", "this version of dmpt has no train.epoch; did you mean train.epochs?"),
        ("train: {epochs: many}", 'train.epochs is "many"; it must be a whole number of at least 0'),
    ],
)
def test_settings_that_cannot_be_read(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(dmpt.UserError, match=said):
        dmpt.read_config(path)


def test_settings_of_a_file_and_what_is_changed_in_them(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("train: {epochs: 7, ids: 4}\n")
    config = dmpt.read_config(str(tmp_path / "own.yaml"), {"train.epochs": 9, "data.size": [64, 32]})
    assert (config.train.epochs, config.train.ids, config.data.size) == (9, 4, (64, 32))
