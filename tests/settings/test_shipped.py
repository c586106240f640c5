"""What the wheel holds beside the modules, and files that stand on those."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dmpt.base.errors import UserError
from dmpt.settings.shipped import read_config, shipped

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_study_is_in_the_wheel_and_no_result() -> None:
    section = PROJECT.read_text().partition("wheel.force-include]\n")[2].partition("\n\n")[0]
    included = dict(re.findall(r'^"(.+)" = "(.+)"$', section, re.MULTILINE))
    assert included == {"configs": "dmpt/configs", "studies": "dmpt/studies"}
    beside = {path.suffix for path in (PROJECT.parent / "studies").rglob("*") if path.is_file()}
    assert beside == {".yaml", ".md"}


def test_a_file_stands_on_those_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("config: [rgbnt201, dmpt-fast]\nloss: {centre: 0.5}\n")
    base = read_config("rgbnt201")
    expected = replace(
        base,
        modality=replace(base.modality, length=0),
        text=replace(base.text, loss="off"),
        semantic=replace(base.semantic, first_layer="middle"),
        loss=replace(base.loss, metric="contrastive", centre=0.5),
    )
    assert read_config(path) == expected
    assert read_config(path, {"loss.centre": 0.25}) == replace(expected, loss=replace(expected.loss, centre=0.25))


def test_a_file_on_one_that_there_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("config: decoupld\n")
    with pytest.raises(
        UserError, match=r"mine.yaml: config 'decoupld' is no file of configs/; there are decoupled, .*"
    ):
        read_config(path)


@pytest.mark.parametrize("name", shipped())
def test_what_ships_can_be_read(name: str) -> None:
    read_config(name)
