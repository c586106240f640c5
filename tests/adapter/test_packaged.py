"""Adapters that come with the package: found by their names, and by no others."""

from pathlib import Path

import pytest

from dmpt.adapter import packaged
from dmpt.adapter.files import adapter_folder
from dmpt.base.errors import UserError


def test_a_name_that_does_not_come_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "FOLDER", tmp_path)
    for name in ("one", "two", "__pycache__"):
        (tmp_path / name).mkdir()
    assert packaged.shipped("package:two") == tmp_path / "two"
    for name in ("package:three", "package:", "package:__pycache__", "package:../two", "package:one/../two"):
        with pytest.raises(UserError, match=r"no such adapter comes with dmpt; there is package:one, package:two"):
            adapter_folder(Path(name))
