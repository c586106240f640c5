"""A service as a process of its own, its answers, and the pictures that it is asked with."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

NAME = "000002_cam1_0_00.jpg"
"""Of a sample of the test gallery."""
KEY = f"RGB/{NAME}"
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 2e-3}
"""In bf16 a batch of another size rounds otherwise."""


def ok(answer: Any) -> Any:
    """What an answer holds that is none of an error."""
    assert answer.status_code == 200, answer.text
    return answer.json()


def paths(home: Path, *spectra: str, name: str = NAME) -> dict[str, Path]:
    """A sample's pictures by modality."""
    return {spectrum: home / "data" / "test" / FOLDERS[spectrum] / name for spectrum in spectra or FOLDERS}


def fields(home: Path, *spectra: str, name: str = NAME, prefix: str = "") -> list[Any]:
    """The same as parts of a multipart body."""
    return [(prefix + own, (name, path.read_bytes())) for own, path in paths(home, *spectra, name=name).items()]


class Running:
    """A service, and how to reach it."""

    def __init__(self, *arguments: Any, model: str | Path = "package:tiny", **environment: str):
        command = [sys.executable, "-m", "dmpt", "serve", str(model), "--port", "0", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        assert self.said, self.process.stderr.read() if self.process.stderr else ""
        self.url = self.said.split()[0]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])
        self.client = httpx.Client(base_url=self.url, timeout=60, limits=httpx.Limits(max_connections=None))
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                self.client.get("/health")
                return
            except httpx.ConnectError:
                time.sleep(0.05)

    def ended(self, number: int | None = None) -> tuple[int, str]:
        """Exit code and standard error, after a signal."""
        if number is not None:
            self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err

    @property
    def sockets(self) -> int:
        """That it has open."""
        found = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(OSError):  # it is closed meanwhile
                found += str(file.readlink()).startswith("socket:")
        return found

    @property
    def memory(self) -> int:
        """Resident, in bytes."""
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(*arguments: Any, model: str | Path = "package:tiny", **environment: str) -> Iterator[Running]:
    one = Running(*arguments, model=model, **environment)
    try:
        yield one
    finally:
        one.client.close()
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdout, one.process.stderr):
            if pipe is not None:
                pipe.close()
