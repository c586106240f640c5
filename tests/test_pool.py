"""Work in processes of their own."""

import os
import time
from pathlib import Path

import pytest

from dmpt.pool import spread


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


def test_what_has_not_begun_is_left_when_the_caller_stops(tmp_path: Path) -> None:
    marks = [tmp_path / str(number) for number in range(60)]
    results = spread(leave_a_mark, marks, 2)
    next(results)
    with pytest.raises(KeyboardInterrupt):
        results.throw(KeyboardInterrupt)
    assert 1 <= len(list(tmp_path.iterdir())) < 60
