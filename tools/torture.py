"""``make torture``: what real machines do to runs. Prints the table of docs/reliability.md.

Runs are killed at random moments, starved of shared memory, file descriptors and disk, and put on folders that cannot
be written. Each ordeal ends in the numbers of a run that nothing happened to, bit for bit, or in one line and exit
code 2. It needs Linux and ``unshare`` (util-linux); what the machine does not allow is said to be left out.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dmpt.base.environment import environment

LIMIT = 300.0
"""Seconds after which a command counts as hanging."""
CLOCKS = ("epoch_seconds", "step_seconds", "peak_memory_bytes")
"""What two equal runs may differ in."""
Ordeal = Callable[["Place", random.Random, float], str]
"""Does it, for some seconds, and says what happened; AssertionError = it went wrong."""


@dataclass(frozen=True)
class Place:
    """Drawn data, and the run that nothing happens to.

    Attributes:
        folder: of everything that the torture writes.
        took: seconds that ``train`` and ``evaluate`` take when nothing happens to them.
    """

    folder: Path
    took: dict[str, float] = field(default_factory=dict)

    @property
    def reference(self) -> Path:
        """The undisturbed run."""
        return self.folder / "reference"

    def train(self, out: Path, *more: str) -> list[str]:
        """The training command, the same for every run."""
        settings = ["--data.root", str(self.folder / "data"), "--data.size=[64,32]", "--train.epochs=8"]
        settings += ["--train.ids=4", "--train.instances=2", "--train.save_every=3", "--train.select=val"]
        return command("train", "--config=tiny", *settings, "--out", str(out), "--resume", *more)


def command(*arguments: str) -> list[str]:
    """``dmpt`` in this interpreter."""
    return [sys.executable, "-m", "dmpt", *arguments]


def finish(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end; a command that takes longer than ``LIMIT`` hangs, and is killed with all that it started."""
    running = start(arguments, **options)
    try:
        out, err = running.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        raise AssertionError(f"hangs: no end after {LIMIT:.0f} s") from None
    return subprocess.CompletedProcess(arguments, running.returncode, out, err)


def start(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """A command in a session of its own, so that whatever it leaves behind can be found."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, start_new_session=True, **pipes, **options)


def left_behind(session: int) -> list[str]:
    """Processes of a session that live on, after a grace of 15 s."""
    until = time.monotonic() + 15
    while (alive := list(_members(session))) and time.monotonic() < until:
        time.sleep(0.1)
    return alive


def _members(session: int) -> Iterator[str]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(own) == session and state != "Z":
            yield stat.parent.name


def succeed(arguments: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end, which must be a good one."""
    done = finish(arguments, **options)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    assert "Traceback" not in done.stderr, f"a traceback: {done.stderr[-300:]}"
    return done


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, f"exit code {done.returncode}: {done.stderr.strip()[-300:]}"
    assert "Traceback" not in done.stderr, f"a traceback: {done.stderr[-300:]}"
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(errors) == 1, f"{len(errors)} lines of errors: {done.stderr[-300:]}"
    return errors[0].partition("error: ")[2]


def same_run(place: Place, out: Path) -> None:
    """Adapters, state and log are those of the undisturbed run; nothing half-written lies about."""
    same_files(out, place.reference)
    halves = [path.name for path in out.rglob(".*") if path.name != ".lock"]
    assert not halves, f"left behind: {', '.join(halves)}"


def same_files(out: Path, right: Path) -> None:
    """Tensors, what stands beside them, and log are the same."""
    for name in ("last/adapter.safetensors", "best/adapter.safetensors", "state.safetensors"):
        with safe_open(out / name, "pt") as one, safe_open(right / name, "pt") as other:
            assert one.metadata() == other.metadata(), f"{name} says other things"
        found, due = load_file(out / name), load_file(right / name)
        assert found.keys() == due.keys(), f"{name} holds other tensors"
        differ = [key for key in due if not torch.equal(found[key], due[key])]
        assert not differ, f"{name} differs in {', '.join(differ[:3])}"
    assert log(out) == log(right), "metrics.jsonl differs"


def log(out: Path) -> list[dict[str, Any]]:
    """A run's log without what a clock says."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]


def numbers(run: Path) -> dict[str, Any]:
    """What ``dmpt evaluate`` found, without where it ran."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return {key: value for key, value in found.items() if key != "provenance"}


def disturbed(
    arguments: Sequence[str], rng: random.Random, until: float, seconds: float, signals: Sequence[signal.Signals]
) -> list[int]:
    """Start a command again and again, each time disturbed at a random moment, until it has ended by itself.

    Args:
        arguments: the command, which goes on where it was.
        rng: of moments and signals.
        until: from this ``time.monotonic()`` on it is left in peace.
        seconds: that the undisturbed command takes.
        signals: one of them is sent to the process alone, not to what it started.

    Returns:
        The exit code of each disturbed attempt.
    """
    codes: list[int] = []
    while time.monotonic() < until:
        running = start(arguments)
        try:
            _, err = running.communicate(timeout=rng.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            sent = rng.choice(signals)
            running.send_signal(sent)
            try:
                _, err = running.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"hangs after {sent.name}") from None
            # a start-up that has not come to Python's handlers yet dies of the signal itself
            assert running.returncode in (-sent, 128 + sent, 0), f"{sent.name}: {running.returncode}, {err[-300:]}"
            assert "Traceback" not in err or sent == signal.SIGKILL, f"{sent.name}: a traceback: {err[-300:]}"
            codes.append(running.returncode)
        alive = left_behind(running.pid)
        assert not alive, f"processes {', '.join(alive)} outlive their parent"
        if running.returncode == 0:
            return codes
    succeed(arguments)
    return codes


def _train_disturbed(place: Place, rng: random.Random, seconds: float, *signals: signal.Signals) -> str:
    """Several runs, each disturbed until it is done."""
    until, runs, codes = time.monotonic() + seconds, 0, list[int]()
    while not runs or time.monotonic() < until:
        out = place.folder / f"train_{signals[0].name}_{runs}"
        codes += disturbed(place.train(out), rng, until, place.took["train"], signals)
        same_run(place, out)
        shutil.rmtree(out)
        runs += 1
    assert codes, "nothing was disturbed"
    return f"{len(codes)} of them in {runs} runs; each run ended bit for bit as the undisturbed one"


def train_killed(place: Place, rng: random.Random, seconds: float) -> str:
    """`kill -9` at random moments of `dmpt train --resume`."""
    return _train_disturbed(place, rng, seconds, signal.SIGKILL)


def train_stopped(place: Place, rng: random.Random, seconds: float) -> str:
    """SIGTERM, SIGINT and SIGHUP at random moments of `dmpt train --resume`."""
    return _train_disturbed(place, rng, seconds, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def evaluate_disturbed(place: Place, rng: random.Random, seconds: float) -> str:
    """SIGKILL, SIGTERM and SIGINT at random moments of `dmpt evaluate`."""
    run = place.folder / "evaluated"
    shutil.copytree(place.reference, run)
    succeed(command("evaluate", str(run)))
    right = numbers(run)
    until, codes, whole = time.monotonic() + seconds, list[int](), 0
    while not codes or time.monotonic() < until:
        (run / "metrics.json").unlink(missing_ok=True)
        signals = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
        codes += disturbed(command("evaluate", str(run)), rng, until, place.took["evaluate"], signals)
        assert numbers(run) == right, "metrics.json differs"
        whole += 1
    return f"{len(codes)} of them; {whole} evaluations were repeated until they ended, each with the same numbers"


def study_killed(place: Place, rng: random.Random, seconds: float) -> str:
    """SIGKILL and SIGTERM at random moments of `dmpt study`."""
    at = place.folder / "study"

    def study(name: str) -> list[str]:
        data = ["--data.root", str(place.folder / "data"), "--data.size=[64,32]", "--train.epochs=2"]
        recipe = ["--train.ids=4", "--train.instances=2", "--train.save_every=3", "--seeds=1"]
        where = ["--out", str(at / f"{name}_runs"), "--results", str(at / f"{name}_results")]
        return command("study", "modality_length", "--on=synthetic", "--rows=M = 0; M = 1", *data, *recipe, *where)

    began = time.monotonic()
    succeed(study("right"))
    took = time.monotonic() - began
    until, codes, whole = time.monotonic() + seconds, list[int](), 0
    while not codes or time.monotonic() < until:
        codes += disturbed(study("killed"), rng, until, took, (signal.SIGKILL, signal.SIGTERM))
        right, found = (at / f"{name}_results" / "modality_length" for name in ("right", "killed"))
        kept = sorted(path.relative_to(right) for path in right.rglob("queries.csv"))
        assert len(kept) == 2, f"{len(kept)} results are kept"
        for path in kept:
            assert (found / path).read_bytes() == (right / path).read_bytes(), f"{path} differs"
        for name in ("killed_runs", "killed_results"):
            shutil.rmtree(at / name)
        whole += 1
    return f"{len(codes)} of them in {whole} studies; every query's precision is that of the undisturbed study"


def inside(script: str, arguments: Sequence[str]) -> list[str]:
    """A command in name spaces of its own, after a shell script that prepares them."""
    return ["unshare", "-Urm", "sh", "-c", f'{script}\nexec "$@"', "sh", *arguments]


def little_shared_memory(place: Place, rng: random.Random, seconds: float) -> str:
    """1 MB of /dev/shm, with loader workers."""
    out = place.folder / "shm"
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    succeed(inside(mount, place.train(out, "--data.workers=2")))
    same_run(place, out)
    return "the same run, bit for bit"


def container_memory(place: Place, rng: random.Random, seconds: float) -> str:
    """64 MB of /dev/shm, batches of 64 samples of 256 x 128, `dmpt train` and `dmpt evaluate`."""
    out = place.folder / "container"
    mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    large = ["--data.size=[256,128]", "--train.epochs=1", "--train.ids=8", "--train.instances=8"]
    succeed(inside(mount, place.train(out, *large)))
    succeed(inside(mount, command("evaluate", str(out))))
    return "both end as with more"


def few_descriptors(place: Place, rng: random.Random, seconds: float) -> str:
    """`ulimit -n 24`, with loader workers."""
    out = place.folder / "descriptors"
    succeed(["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", *place.train(out, "--data.workers=2")])
    same_run(place, out)
    return "the same run, bit for bit"


def worker_killed(place: Place, rng: random.Random, seconds: float) -> str:
    """`kill -9` of a loader worker."""
    out = place.folder / "worker"
    running = start(place.train(out, "--data.workers=2"))
    until, killed = time.monotonic() + LIMIT, 0
    while running.poll() is None and time.monotonic() < until and not killed:
        if (out / "metrics.jsonl").exists():
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            for child in children[:1]:
                os.kill(int(child), signal.SIGKILL)
                killed += 1
        time.sleep(0.05)
    try:
        _, err = running.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise AssertionError("hangs") from None
    assert killed, "no worker was seen"
    assert running.returncode == 0, f"exit code {running.returncode}: {err[-300:]}"
    same_run(place, out)
    return "the same run, bit for bit"


def full_disk(place: Place, rng: random.Random, seconds: float) -> str:
    """A disk that is full in the middle of a run; then there is room again."""
    at = place.folder / "disk"
    at.mkdir()
    size = sum(path.stat().st_size for path in place.reference.rglob("*") if path.is_file()) // 2**10
    out, kept = at / "run", place.folder / "disk_kept"
    # one mount for both attempts; what is in it afterwards is copied out before the name space ends
    script = f"""mount -t tmpfs -o size={size * 2 // 3}k tmpfs {at}
"$@"; code=$?
find {out} -name '.*' -type f ! -name .lock | grep -q . && {{ echo "half-written files stay"; exit 99; }}
[ $code -eq 2 ] || exit $code
mount -o remount,size=1g {at}
"$@" || exit 98
cp -r {out} {kept}
exit 0"""
    done = finish(inside(script, place.train(out)))
    assert done.returncode == 0, f"exit code {done.returncode}: {(done.stdout + done.stderr)[-400:]}"
    assert "Traceback" not in done.stderr, f"a traceback: {done.stderr[-300:]}"
    same_run(place, kept)
    return f"one line ({_said(done.stderr, 'error: ')}); with room again the same command ends bit for bit"


def read_only(place: Place, rng: random.Random, seconds: float) -> str:
    """A run folder, the home and the data on file systems that cannot be written."""
    out = place.folder / "read_only"
    out.mkdir()
    mount = f"mount --bind {out} {out} && mount -o remount,bind,ro {out}"
    said = refused(finish(inside(mount, place.train(out / "run"))))
    data, home = place.folder / "data", Path.home()
    mount = " && ".join(f"mount --bind {p} {p} && mount -o remount,bind,ro {p}" for p in (data, home))
    environment = {key: value for key, value in os.environ.items() if key != "XDG_CACHE_HOME"}
    fresh = place.folder / "fresh"
    if place.folder.is_relative_to(home):
        return f"run folder: {said}; home left out, the torture's folder is in it"
    succeed(inside(mount, place.train(fresh)), env=environment)
    same_run(place, fresh)
    return f"run folder: {said}; data and home: the same run, bit for bit"


def two_ranks(place: Place, rng: random.Random, seconds: float) -> str:
    """Two processes of torchrun, one of which is killed."""

    def both(out: Path) -> list[str]:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        return [*launcher, *place.train(out)[1:]]

    right = place.folder / "two_right"
    succeed(both(right))
    until, count = time.monotonic() + seconds, 0
    while not count or time.monotonic() < until:
        out = place.folder / f"two_{count}"
        running = start(both(out))
        while not (out / "metrics.jsonl").exists() and running.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 4))
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        assert running.poll() is None, "the launcher ended too early"
        assert len(children) >= 2, "the ranks were not seen"
        os.kill(int(rng.choice(children)), signal.SIGKILL)
        try:
            running.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            raise AssertionError("the other rank hangs") from None
        assert running.returncode != 0, "the launcher noticed nothing"
        assert not left_behind(running.pid), "processes live on"
        succeed(both(out))
        same_files(out, right)
        count += 1
    return f"{count} times; the launcher ends with an error, and the same command ends bit for bit"


def _said(text: str, about: str) -> str:
    """The first line about something."""
    found = next((line for line in text.splitlines() if about in line), None)
    assert found is not None, f"nothing is said of {about!r}: {text[-300:]}"
    return found.rpartition("error: ")[2].strip()


ORDEALS: dict[Ordeal, float] = {
    train_killed: 6,
    train_stopped: 6,
    evaluate_disturbed: 3,
    study_killed: 6,
    two_ranks: 3,
    little_shared_memory: 0,
    container_memory: 0,
    few_descriptors: 0,
    worker_killed: 0,
    full_disk: 0,
    read_only: 0,
}
"""Each with its share of the time; those without one happen once."""
SPACES = little_shared_memory, container_memory, full_disk, read_only
"""Those that need mounts of their own."""


def prepare(place: Place, seed: int) -> None:
    """Draw the data, train the run that nothing happens to, and take the time of both commands."""
    sizes = ["--ids=20", "--test-ids=8", "--images=4", "--cameras=2", "--size=[64,32]", f"--seed={seed}"]
    succeed(command("synth", str(place.folder / "data"), *sizes))
    for verb, arguments in (
        ("train", place.train(place.reference)),
        ("evaluate", command("evaluate", str(place.reference))),
    ):
        began = time.monotonic()
        succeed(arguments)
        place.took[verb] = time.monotonic() - began
    (place.reference / "metrics.json").unlink()


def main() -> None:
    """Do all of it; exit code 1 where something went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=24.0, help="For what is repeated; the rest takes some 5 more.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments and of the data.")
    parser.add_argument("--only", default="", help="Part of the name of the ordeals to do.")
    arguments = parser.parse_args()
    chosen = {ordeal: share for ordeal, share in ORDEALS.items() if arguments.only in ordeal.__name__}
    total = sum(chosen.values()) or 1
    rows, failed = list[str](), 0
    with tempfile.TemporaryDirectory(prefix="dmpt-torture-") as folder:
        place = Place(Path(folder))
        prepare(place, arguments.seed)
        spaces = subprocess.run(inside("mount -t tmpfs tmpfs /dev/shm", ["true"]), capture_output=True, check=False)
        for ordeal, share in chosen.items():
            began, rng = time.monotonic(), random.Random(f"{arguments.seed} {ordeal.__name__}")
            try:
                happened = ordeal(place, rng, share / total * 60 * arguments.minutes)
            except (AssertionError, OSError) as error:
                happened = f"WRONG: {error}"
                if spaces.returncode and ordeal in SPACES:
                    happened = "left out: this machine has no `unshare -Urm`"
                failed += happened.startswith("WRONG")
            what = (ordeal.__doc__ or "").removesuffix(".")
            happened = happened.replace(str(place.folder), "DIR").replace("|", "/").replace("\n", " ")
            rows.append(f"| {what} | {happened} |")
            sys.stderr.write(f"{time.monotonic() - began:5.0f} s  {ordeal.__name__}: {happened}\n")
    where = environment()
    print(f"`python tools/torture.py --minutes {arguments.minutes:g} --seed {arguments.seed}` at {where['commit']}\n")
    print("| what happens | what becomes of it |\n|---|---|")
    print(*rows, sep="\n")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
