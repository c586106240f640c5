"""Freed memory that stays."""

import ctypes
import subprocess
import sys

import pytest

from dmpt.base import memory

PAGES = """
import resource, sys
from dmpt.base.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = []
for turn in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b'x' * (31 << 20)
    other = b'x' * (31 << 20)
    del block, other
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(faults[10:]))
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", PAGES, how], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc alone has these settings")
def test_freed_memory_is_not_mapped_anew() -> None:
    assert faults("keep") < 100 < faults("leave")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
