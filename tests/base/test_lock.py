"""A lock where there are locks, and none where the file system or the system knows none."""

import errno
import fcntl
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dmpt.base.lock import Lock, Taken


def test_one_holds_it_until_it_is_released(tmp_path: Path) -> None:
    first = Lock(tmp_path / "lock")
    assert first.works
    with pytest.raises(Taken):
        Lock(tmp_path / "lock")
    first.release()
    first.release()
    assert Lock(tmp_path / "lock").works  # and with its owner it goes
    assert Lock(tmp_path / "lock").works


def test_a_shared_lock_keeps_out_who_wants_it_alone(tmp_path: Path) -> None:
    first, second = (Lock(tmp_path / "lock", shared=True) for _ in range(2))
    first.release()
    with pytest.raises(Taken):
        Lock(tmp_path / "lock")
    second.release()
    alone = Lock(tmp_path / "lock")
    with pytest.raises(Taken):
        Lock(tmp_path / "lock", shared=True)
    assert alone.works


def failing(number: int) -> Any:
    def fail(*arguments: object) -> None:
        raise OSError(number, "as the system says")

    return fail


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    assert [Lock(tmp_path / "lock").works for _ in range(2)] == [False, False]


def test_network_shares_call_a_lock_that_is_held_by_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.EACCES))
    with pytest.raises(Taken):
        Lock(tmp_path / "lock")


def test_windows_locks_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    windows = SimpleNamespace(LK_NBLCK=2, locking=lambda handle, mode, count: asked.append((mode, count)))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    assert Lock(tmp_path / "lock").works
    assert asked == [(2, 1)]
    assert not Lock(tmp_path / "lock", shared=True).works  # which it does not know
    windows.locking = failing(errno.EACCES)
    with pytest.raises(Taken):
        Lock(tmp_path / "lock")


def test_a_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not Lock(tmp_path / "lock").works
