"""What the wheel holds beside the modules."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_study_is_in_the_wheel_and_no_result() -> None:
    section = PROJECT.read_text().partition("wheel.force-include]\n")[2].partition("\n\n")[0]
    included = dict(re.findall(r'^"(.+)" = "(.+)"$', section, re.MULTILINE))
    assert included == {"configs": "dmpt/configs", "studies": "dmpt/studies"}
    beside = {path.suffix for path in (PROJECT.parent / "studies").rglob("*") if path.is_file()}
    assert beside == {".yaml", ".md"}
