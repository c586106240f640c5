"""Batches: contents, order, independence of workers, resume, and what comes out when something breaks."""

import errno
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.base.stopping import SIGNALS
from dmpt.base.terminal import warn
from dmpt.data import loader
from dmpt.data.images import read_image
from dmpt.data.layouts import load_dataset
from dmpt.data.loader import Batch, SampleDataset, test_batches, train_batches
from dmpt.data.loader import test_set as set_of
from dmpt.data.records import Dataset, pid_to_label
from dmpt.data.sampler import PKSampler
from dmpt.data.transforms import TestTransform, TrainTransform
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES
from toy import write_toy_set

HALF = (0.5, 0.5, 0.5)
FULL = (0.0, 65535.0)
SIZE = (32, 16)


@pytest.fixture
def toy(tmp_path: Path) -> Dataset:
    write_toy_set(tmp_path, train_ids=4, test_ids=3, images=4, size=SIZE)
    return load_dataset("rgbnt201", tmp_path)


def shuffled(toy: Dataset) -> tuple[SampleDataset, list[list[int]]]:
    label = pid_to_label(toy.train)
    labels = [label[record.pid] for record in toy.train]
    transform = TrainTransform(DataConfig(size=SIZE, pad=3), HALF, HALF, 0)
    return SampleDataset(toy.train, transform, FULL, labels), PKSampler(labels, 2, 2, 0).epoch(1)


def in_order(toy: Dataset) -> SampleDataset:
    return SampleDataset(toy.gallery, TestTransform(SIZE, HALF, HALF), FULL)


def same(a: list[Batch], b: list[Batch]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


def test_training_batches(toy: Dataset) -> None:
    dataset, batches = shuffled(toy)
    loaded = list(train_batches(dataset, batches, 1, workers=0))
    assert len(loaded) == len(batches) >= 3
    for batch, indices in zip(loaded, batches, strict=True):
        assert batch.images.shape == (3, 4, 3, *SIZE)
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous()
        assert batch.labels.tolist() == [toy.train[index].pid - 1 for index in indices]
        assert batch.labels.dtype == torch.int64
        assert torch.equal(batch.present, torch.ones(3, 4, dtype=torch.bool))
        assert torch.equal(batch.subset, batch.present)
        for m, modality in enumerate(MODALITIES):
            images = {modality: read_image(toy.train[indices[2]].paths[modality], FULL)}
            assert torch.equal(batch.images[m, 2], dataset.transform(images, 1, indices[2])[modality])


def test_repeats_of_a_sample_are_augmented_anew(toy: Dataset) -> None:
    dataset, _ = shuffled(toy)
    images, labels, present, _ = dataset.batch(1, [2, 2 + len(dataset), 2 + 2 * len(dataset)])
    assert len({image.numpy().tobytes() for image in images[0]}) == 3
    assert labels.tolist() == [dataset.labels[2]] * 3
    assert present.all()
    assert torch.equal(images[:, :1], dataset.batch(1, [2]).images)


def test_test_batches_are_in_order_and_complete(toy: Dataset) -> None:
    loaded = list(test_batches(in_order(toy), 5, workers=0))
    assert [len(batch.labels) for batch in loaded] == [5, 5, 2]
    images = torch.cat([batch.images for batch in loaded], dim=1)
    whole = in_order(toy).batch(0, range(12)).images
    assert torch.equal(images, whole)
    assert len({image.numpy().tobytes() for image in images[0]}) == 12
    assert set(torch.cat([batch.labels for batch in loaded]).tolist()) == {-1}


def test_workers_change_nothing(toy: Dataset) -> None:
    dataset, batches = shuffled(toy)
    before = torch.get_rng_state()
    alone = list(train_batches(dataset, batches, 1, workers=0))
    helped = list(train_batches(dataset, batches, 1, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(alone, helped)
    assert same(list(test_batches(in_order(toy), 5, workers=0)), list(test_batches(in_order(toy), 5, workers=2)))


def test_an_epoch_can_be_taken_up_in_the_middle(toy: Dataset) -> None:
    dataset, batches = shuffled(toy)
    whole = list(train_batches(dataset, batches, 1, workers=0))
    assert same(whole[2:], list(train_batches(dataset, batches, 1, start=2, workers=0)))
    assert list(train_batches(dataset, batches, 1, start=len(batches), workers=0)) == []
    assert not same(whole, list(train_batches(dataset, batches, 2, workers=0)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_comes_out_as_one_line(toy: Dataset, workers: int) -> None:
    broken = toy.gallery[7].paths["nir"]
    broken.write_bytes(b"")
    batches = test_batches(in_order(toy), 5, workers=workers)
    assert len(next(batches).labels) == 5  # what came before it arrives
    with pytest.raises(UserError) as error:
        next(batches)
    assert str(error.value) == f"{broken} is empty (0 bytes); copy it again"
    assert not multiprocessing.active_children()  # the error still holds its frames; the workers are gone


class Elsewhere(TestTransform):
    """Fails in any process but this one, the second time that it is called there."""

    def __init__(self, how: Callable[[], object]) -> None:
        super().__init__(SIZE, HALF, HALF)
        self.how, self.home, self.calls = how, os.getpid(), 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if os.getpid() != self.home and self.calls == 2:
            self.how()
        return super().__call__(*arguments)


def die(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)


def no_memory() -> None:
    raise MemoryError


class Stuck:
    def __reduce__(self) -> Any:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            partial(die, signal.SIGKILL),
            r"killed \(signal 9\), mostly for want of memory; going on with 1 of 2",
        ),
        (partial(die, signal.SIGBUS), r"killed \(signal 7\)"),
        (lambda: os._exit(3), r"ended \(exit code 3\).*none of 1.*data\.workers"),
        (no_memory, r"failed \(MemoryError.*this one did its part"),
    ],
)
def test_what_ends_a_worker_changes_nothing(
    toy: Dataset, capfd: pytest.CaptureFixture[str], how: Callable[[], object], said: str
) -> None:
    warn.cache_clear()
    dataset = SampleDataset(toy.gallery, Elsewhere(how), FULL)
    disturbed = list(test_batches(dataset, 2, workers=2))
    assert same(disturbed, list(test_batches(in_order(toy), 2, workers=0)))
    assert not multiprocessing.active_children()
    notes = capfd.readouterr().err.splitlines()
    assert any(re.search(said, note) for note in notes), notes
    assert all(note.startswith("note: ") for note in notes)  # no traceback of the worker's
    assert len(set(notes)) == len(notes) <= 2


def test_what_cannot_be_sent_is_done_here(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was once lost in a thread of the worker's, and waited for."""
    warn.cache_clear()
    home, answer = os.getpid(), loader._Shared.__call__
    monkeypatch.setattr(loader._Shared, "__call__", lambda *given: answer(*given) if os.getpid() == home else Stuck())
    assert same(list(test_batches(in_order(toy), 5, workers=2)), list(test_batches(in_order(toy), 5, workers=0)))
    assert "failed (OSError" in capsys.readouterr().err


LOADING = """
import hashlib, os, sys
from dmpt.base.terminal import warn
from dmpt.data.layouts import load_dataset
from dmpt.data.loader import SampleDataset, test_batches
from dmpt.data.transforms import TestTransform

def load(root, workers):
    transform = TestTransform((128, 128), (0.5,) * 3, (0.5,) * 3)
    dataset = SampleDataset(load_dataset("rgbnt201", root).gallery, transform, (0, 65535))
    digest = hashlib.sha256()
    for batch in test_batches(dataset, 4, workers=workers):  # 2.4 MB each
        for part in batch:
            digest.update(part.numpy().tobytes())
    return digest.hexdigest()
"""


def says(source: str, *before: str) -> tuple[list[str], str]:
    """What a program prints, and what it notes."""
    command = [*before, sys.executable, "-c", LOADING + source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


def load(root: Path) -> str:
    """The digest of all batches, loaded in this process."""
    names: dict[str, Any] = {}
    exec(LOADING, names)
    return str(names["load"](root, 0))


LITTLE = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*LITTLE, "true"], capture_output=True, check=False).returncode != 0,
    reason="this machine lets no user mount a small /dev/shm",
)
def test_little_shared_memory_is_enough(toy: Dataset, tmp_path: Path) -> None:
    """A container has 64 MB of it, and a batch of the paper's settings is 75 MB."""
    assert says(f"print(load({str(tmp_path)!r}, 2))", *LITTLE) == ([load(tmp_path)], "")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_few_open_files_are_enough(toy: Dataset, tmp_path: Path) -> None:
    source = f"""
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
for more in (20, 6, 3):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + more, hard))
    print(load({str(tmp_path)!r}, 2))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""
    printed, notes = says(source)
    assert printed == [load(tmp_path)] * 3
    why = "note: a worker process could not be started (Too many open files); going on with"
    assert [note.split(" of ")[0] for note in notes.splitlines()] == [f"{why} 1", f"{why} none"]


def test_workers_that_are_spawned_change_nothing(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """As elsewhere than on Linux."""
    monkeypatch.setattr(loader, "_METHOD", "spawn")
    assert same(list(test_batches(in_order(toy), 5, workers=1)), list(test_batches(in_order(toy), 5, workers=0)))


def test_a_batch_stays_as_it_is_when_the_next_is_asked_for(toy: Dataset) -> None:
    batches = test_batches(in_order(toy), 1, workers=1)
    first = next(batches)
    before = first.images.clone()
    list(batches)  # every part of the shared memory has been written to again
    assert torch.equal(first.images, before)


def test_fetching_one_ahead_changes_nothing_and_ends(toy: Dataset) -> None:
    """As where there is a GPU."""
    assert same(list(loader._one_ahead(in_batches(toy, 2))), list(in_batches(toy, 0)))
    left = loader._one_ahead(in_batches(toy, 2))
    next(left)
    left.close()
    assert not multiprocessing.active_children()
    toy.gallery[7].paths["nir"].write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        list(loader._one_ahead(in_batches(toy, 2)))


def in_batches(toy: Dataset, workers: int) -> Generator[Batch, None, None]:
    return loader._kept(loader._load(in_order(toy), [(0, [i, i + 1]) for i in range(0, 12, 2)], workers))


class Fail(TestTransform):
    def __call__(self, *args: object) -> dict[str, Tensor]:  # type: ignore[override]
        raise RuntimeError("a mistake in the program")


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_keep_their_traceback(toy: Dataset, workers: int) -> None:
    with pytest.raises(RuntimeError, match="a mistake in the program"):
        list(test_batches(SampleDataset(toy.gallery, Fail(SIZE, HALF, HALF), FULL), 5, workers=workers))


def test_leaving_early_ends_the_workers(toy: Dataset) -> None:
    batches = test_batches(in_order(toy), 1, workers=2)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()


class Stoppable(TestTransform):
    """Paints ones where Ctrl-C or another wish to end would end this process."""

    def __call__(self, images: Any, out: Any = None) -> Any:
        for values in out.values():
            values.fill_(float(any(signal.getsignal(number) is not signal.SIG_IGN for number in SIGNALS)))


@pytest.fixture
def stoppable_here() -> Iterator[None]:
    """Ctrl-C ends this process, even where the suite was started in the background, which inherits that it does not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("stoppable_here")
def test_ctrl_c_is_for_the_main_process_however_workers_are_started(toy: Dataset) -> None:
    dataset = SampleDataset(toy.query, Stoppable(SIZE, (0.5,) * 3, (0.5,) * 3), FULL)
    assert not any(batch.images.any() for batch in test_batches(dataset, 5, workers=1))
    assert all(batch.images.all() for batch in test_batches(dataset, 5, workers=0))


PROGRAM = """
import sys, time
from dmpt.data.layouts import load_dataset
from dmpt.data.loader import SampleDataset, test_batches
from dmpt.data.transforms import TestTransform
half = (0.5, 0.5, 0.5)
dataset = SampleDataset(load_dataset("rgbnt201", sys.argv[1]).gallery, TestTransform((32, 16), half, half), (0, 1))
batches = test_batches(dataset, 1, workers=2)
next(batches)
print("loading", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="process groups are POSIX")
@pytest.mark.parametrize(("number", "to"), [(signal.SIGINT, os.killpg), (signal.SIGKILL, os.kill), (None, None)])
def test_workers_end_with_the_program(
    toy: Dataset, tmp_path: Path, number: signal.Signals | None, to: Callable[[int, int], None] | None
) -> None:
    """However it ends: the terminal tells all its processes, the kernel kills one, it leaves by itself."""
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "30" if number else "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        # A shell starts background jobs with Ctrl-C ignored, and they hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"loading\n"
    if number is not None and to is not None:
        to(program.pid, number)
    assert (program.wait(20) == 0) == (number is None)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.killpg(program.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(program.pid, signal.SIGKILL)
    pytest.fail("loader processes outlived the program")


def test_a_test_set_takes_its_settings(toy: Dataset) -> None:
    gallery = toy.gallery
    own = DataConfig(size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), value_range=(100.0, 900.0))
    dataset = set_of(gallery, own)
    image = {"rgb": read_image(gallery[0].paths["rgb"], FULL)}
    assert own.mean is not None
    assert own.std is not None
    expected = TestTransform(own.size, own.mean, own.std)(image)["rgb"]
    assert torch.equal(dataset.batch(0, [0]).images[0, 0], expected)
    assert dataset.value_range == own.value_range
