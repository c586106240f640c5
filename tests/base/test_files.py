"""Files that are either old or new, on file systems that know less than a disk does."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically, write_text
from dmpt.towers.tensors import write_tensors


def failing(number: int) -> Any:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
def test_files_have_the_rights_of_any_other_file(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "a")
    write_tensors(tmp_path / "tensors", {"a": torch.zeros(2)}, {})
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP])
def test_rights_are_a_courtesy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def private(path: Path) -> None:
        path.unlink()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))

    tried = []
    monkeypatch.setattr(Path, "chmod", lambda *arguments, **options: tried.append(0) or failing(number)())
    monkeypatch.setattr(os, "fchmod", failing(number))
    write_atomically(tmp_path / "file", private)
    assert tried
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_system_that_cannot_flush_still_keeps_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_could_not_be_flushed_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(UserError, match=f"{os.strerror(number)}; what was there is untouched"):
        write_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_text_is_the_same_bytes_on_every_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path.write_text
    seen = []

    def spy(self: Path, data: str, *form: str) -> int:
        seen.append(form)
        return own(self, data, *form)

    monkeypatch.setattr(Path, "write_text", spy)
    write_text(tmp_path / "file", "a\n\udcff")
    assert seen == [("utf-8", "surrogateescape", "\n")]  # Windows would make it \r\n
    assert (tmp_path / "file").read_bytes() == b"a\n\xff"
