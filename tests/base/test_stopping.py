"""How work ends early, in this process: what signals do, and what they leave alone."""

import errno
import io
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dmpt.base import stopping
from dmpt.base.stopping import SIGNALS, Interrupted, Stopped, held_back, interrupts, stoppable
from dmpt.base.terminal import console, stderr
from dmpt.cli import main

ALL = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """Here, even where the suite was started with some ignored, as in the background."""
    before = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@ALL
def test_a_signal_raises_and_is_given_back(number: signal.Signals) -> None:
    def own(*_: object) -> None:
        raise AssertionError

    signal.signal(number, own)
    with pytest.raises(Interrupted) as stopped, stoppable():
        signal.raise_signal(number)
    assert stopped.value.number == number
    assert not isinstance(stopped.value, Stopped)
    assert signal.getsignal(number) is own


def half_imported() -> None:
    """What a library makes of a signal in an import."""
    with suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)
    raise AttributeError("what was not imported")


def test_a_signal_that_a_library_swallowed_is_the_end_all_the_same() -> None:
    with pytest.raises(Interrupted) as stopped, stoppable():
        half_imported()
    assert stopped.value.number == signal.SIGTERM
    with pytest.raises(AttributeError, match="nobody asked"), stoppable():
        raise AttributeError("nobody asked")


def heard(asked: Callable[[], int], *numbers: int) -> None:
    """A step in which these come; then what was asked for is saved."""
    assert not asked()
    for number in numbers:
        signal.raise_signal(number)
    raise Stopped(asked())


@ALL
def test_a_step_is_done_first_and_an_echo_is_no_second_wish(number: signal.Signals) -> None:
    """Such as torchrun's, which passes on what the terminal has told all processes."""
    with stoppable():
        with pytest.raises(Stopped) as stopped, interrupts() as asked:
            heard(asked, number, signal.SIGTERM)
        signal.raise_signal(number)  # or when the step is done
    assert stopped.value.number == number


def test_a_second_wish_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_ECHO", 0.0)
    with pytest.raises(Interrupted) as stopped, interrupts() as asked:
        heard(asked, signal.SIGINT, signal.SIGTERM)
    assert not isinstance(stopped.value, Stopped)
    assert stopped.value.number == signal.SIGTERM


def test_a_wish_that_came_last_is_not_forgotten() -> None:
    with pytest.raises(Stopped), interrupts():
        signal.raise_signal(signal.SIGTERM)


def test_a_wish_that_is_held_back_comes_after() -> None:
    done = []
    with pytest.raises(Interrupted) as stopped, stoppable():
        hold(done)
    assert (done, stopped.value.number) == ([1], signal.SIGTERM)
    with suppress(Stopped), interrupts() as asked:
        hold(done)
        assert asked() == signal.SIGTERM


def hold(done: list[int]) -> None:
    with held_back():
        signal.raise_signal(signal.SIGTERM)
        done.append(1)


@pytest.mark.parametrize("listen", [stoppable, interrupts])
@ALL
def test_what_is_ignored_stays_so(number: signal.Signals, listen: Callable[[], object]) -> None:
    """``nohup`` ignores a closed terminal, a shell ignores Ctrl-C in the background."""
    signal.signal(number, signal.SIG_IGN)
    with listen():  # type: ignore[attr-defined]
        signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN


def test_another_thread_leaves_signals_alone() -> None:
    found = []

    def work() -> None:
        with stoppable(), interrupts() as asked:
            found.extend([asked(), *map(signal.getsignal, SIGNALS)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [0, *[signal.SIG_DFL] * len(SIGNALS)]


@ALL
def test_a_verb_ends_with_one_line_and_the_number(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def halfway(*_: object) -> None:
        (tmp_path / "world.tmp").touch()
        signal.raise_signal(number)

    monkeypatch.setattr("dmpt.synthetic.write._write_captions", halfway)
    with pytest.raises(SystemExit) as ended:
        main(["synth", str(tmp_path / "out" / "world"), "--ids=2", "--test-ids=1", "--images=1", "--workers=1"])
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == "dmpt synth: stopped; what was saved before is kept\n"
    assert (tmp_path / "world.tmp").exists()  # it was halfway
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "gone"), OSError(errno.EIO, "closed"), None])
def test_nobody_who_reads_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch, error: OSError | None) -> None:
    """A pipe whose reader has gone, where rich would end the process; a terminal that has closed; none at all."""

    class Gone(io.StringIO):
        tried = 0

        def write(self, text: str) -> int:
            assert error is not None
            self.tried += 1
            raise error

    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone if error else None)
    console.print("said to nobody")
    stderr.write("neither this\n")
    stderr.flush()
    assert gone.tried == (2 if error else 0)
