"""What the wheel holds beside the modules."""

import re
from pathlib import Path

from dmpt.study.definition import studies

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_every_study_is_in_the_wheel_and_no_result() -> None:
    section = PROJECT.read_text().partition("wheel.force-include]\n")[2].partition("\n\n")[0]
    included = dict(re.findall(r'^"(.+)" = "(.+)"$', section, re.MULTILINE))
    assert sorted(included) == sorted(["configs", "studies/data", *(f"studies/{name}.yaml" for name in studies())])
    assert all(target == f"dmpt/{source}" for source, target in included.items())
