"""What all tests begin with: one thread, signals that are heard, a cache of their own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Small tensors: one thread is faster than two, and does not disturb what else the machine does.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

import pytest
import torch

from dmpt.base.stopping import SIGNALS

torch.set_num_threads(1)

# What is ignored stays ignored, as in a suite that was started in the background; but tests send these.
for number in SIGNALS:
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def no_trace_in_the_users_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """A test process lives longer than a command, and runs hundreds of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmpt.cli.keep_freed_memory", lambda: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy set of a test file's own."""
    from runs import toy

    return toy(tmp_path_factory.mktemp("toy"))
