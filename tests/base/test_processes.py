"""Work in processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmpt.base.errors import UserError
from dmpt.base.processes import spread
from dmpt.base.terminal import warn


def whose(part: int) -> tuple[int, int]:
    return part, os.getpid()


def leave_a_mark(path: Path) -> None:
    time.sleep(0.2)
    path.touch()


def test_results_are_in_order_and_one_worker_is_this_process() -> None:
    assert list(spread(whose, [3, 1, 2], 1)) == [(part, os.getpid()) for part in (3, 1, 2)]
    found = list(spread(whose, [3, 1, 2], 2))
    assert [part for part, _ in found] == [3, 1, 2]
    assert os.getpid() not in {process for _, process in found}
    assert list(spread(whose, [], 4)) == []


def die_elsewhere(home: int) -> int:
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return home


def test_what_killed_workers_had_to_do_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    warn.cache_clear()
    assert list(spread(die_elsewhere, [os.getpid()] * 3, 2)) == [os.getpid()] * 3
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 2
    assert all(
        f"killed (signal 9), mostly for want of memory; going on with {n} of" in notes.pop(0) for n in (1, "none")
    )


def refuse(part: int) -> None:
    if part == 2:
        raise UserError("the third is damaged")


def test_an_error_comes_as_it_is_and_in_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    results = spread(refuse, range(4), 2)
    assert [next(results), next(results)] == [None, None]
    with pytest.raises(UserError, match=r"^the third is damaged$"):
        next(results)
    assert capsys.readouterr().err == ""


class Fatal:
    """Work whose arrival ends a worker, which has just begun and has read nothing else."""

    def __call__(self, part: bytes) -> int:
        return len(part)

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_workers_that_do_not_come_to_work_keep_nobody_waiting(capsys: pytest.CaptureFixture[str]) -> None:
    warn.cache_clear()
    assert list(spread(Fatal(), [bytes(10**6)] * 3, 2)) == [10**6] * 3
    assert "ended (exit code 3); going on with none of 1" in capsys.readouterr().err


def large(part: bytes) -> bytes:
    return part


def test_large_parts_and_results_keep_nobody_waiting() -> None:
    results = spread(large, [bytes([part]) * 10**6 for part in range(9)], 2)
    assert [(result[0], len(result)) for result in results] == [(part, 10**6) for part in range(9)]


def nap(part: int) -> None:
    time.sleep(300)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    from runs import is_running  # here, for it imports torch, and workers import this file

    source = (
        "import test_processes; from dmpt.base.processes import spread; list(spread(test_processes.nap, [1, 2], 2))"
    )
    script = tmp_path / "parent.py"
    script.write_text(f"if __name__ == '__main__':\n    {source}\n")
    place = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])}
    parent = subprocess.Popen([sys.executable, str(script)], env=place)
    listed = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    if not listed.exists():
        parent.kill()
        pytest.skip("needs /proc")

    def workers() -> list[int]:
        found = listed.read_text().split() if listed.exists() else []
        return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def wait_until(holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.2)

    wait_until(lambda: len(workers()) == 2)
    time.sleep(2)  # they have begun
    pids = workers()
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_what_has_not_begun_is_left_when_the_caller_stops(tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(60)]
    results = spread(leave_a_mark, marks, 2)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert 1 <= len(list(tmp_path.iterdir())) < 60
