"""What ``dmpt serve`` costs beside its model, with 1, 8 and 64 clients.

python benchmarks/serve.py [--quick] [--repeats N]

Each request is one drawn person: three JPEGs of the model's size, to ``POST /embed``, answered as float32. The server
is a process of its own; clients are connections of this one, which write ready bytes and read the answer. The bare
model embeds the same pictures, decoded, in batches of 16, while the server rests; all run in turns. The server's own
processor time is that of a server whose model answers at once, less decoding. Run it alone on the machine.
"""

import argparse
import asyncio
import io
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dmpt
from dmpt.data.images import read_image, size_of
from dmpt.embed.embedder import Embedder
from dmpt.retrieval.embeddings import Embeddings
from dmpt.serve.app import application
from dmpt.serve.limits import Limits
from dmpt.serve.serving import listening, opened, run
from dmpt.settings.modalities import MODALITIES
from dmpt.synthetic.world import World
from embed import random_model
from goals import goal, machine

CLIENTS = (1, 8, 64)
LEAST = 0.8
"""Of the bare model's throughput, for ViT-B/16."""
OWN_MS = 2.5
"""Of processor time a request, beside model and decoding, at most."""
LATE = 5.0
"""p99 of 8 clients / median of one, at most."""
TOWERS = {"ViT-B/16": ("vit_base_patch16_clip_quickgelu_224", (256, 128)), "small": ("vit_tiny_patch16_224", (64, 32))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="smoke test: small models, once")
    parser.add_argument("--server", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.server:
        serve(*args.server)
        return
    repeats = 1 if args.quick else args.repeats
    precision = "bf16" if dmpt.load("package:tiny").precision == "bf16" else "fp32"
    print(f"{machine()}, {torch.get_num_threads()} threads, {precision}; medians of {repeats}, lowest to highest")
    names = ("small", "tiny") if args.quick else ("ViT-B/16", "tiny")
    shares, late = {}, {}
    for name in names:
        each = 0.5 if args.quick else 10.0
        shares[name], late[name] = measured(name, precision, repeats, each)
    own = own_milliseconds(precision, 100 if args.quick else 2000, repeats)
    for name, share in shares.items():
        for clients in CLIENTS if name != "tiny" else ():
            goal(f"serve_share_of_models_throughput_{name}_{clients}_clients", share[clients], LEAST, at_most=False)
        goal(f"serve_p99_of_8_by_median_of_1_{name}", late[name], LATE)
    goal("serve_own_processor_ms_per_request", own, OWN_MS)


def model_of(name: str, precision: Any) -> Embedder:
    if name in TOWERS:
        torch.manual_seed(0)
        return random_model(*TOWERS[name], precision)
    return dmpt.load("package:tiny", precision=precision)


def serve(name: str, precision: str) -> None:
    """The server's process; of the model ``none`` nothing is computed."""
    model = model_of("tiny" if name == "none" else name, precision)
    if name == "none":
        row = model.embed(rgb=np.zeros((8, 8, 3), np.uint8))
        model.embed = lambda *_, batch_size=1, **__: several(row, batch_size)  # type: ignore[method-assign]
    service = opened({"model": model}, None, lambda called, wanted: model, Limits())
    listener = listening("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    run(application(service), listener)


def several(row: Embeddings, count: int) -> Embeddings:
    return row[np.zeros(count, np.int64)]


class Server:
    """A process that serves."""

    def __init__(self, name: str, precision: str):
        command = [sys.executable, __file__, "--server", name, precision]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def seconds(self) -> float:
        """Of processor time, so far."""
        parts = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def files_of(size: tuple[int, int], number: int) -> list[dict[str, bytes]]:
    """JPEGs of drawn persons."""
    world, found = World(size=size), []
    for index in range(number):
        shot, own = world.shoot(index // 4 + 1, index % 4 + 1, 0), {}
        for modality in MODALITIES:
            buffer = io.BytesIO()
            Image.fromarray(getattr(shot, modality)).convert("RGB").save(buffer, "JPEG", quality=90)
            own[modality] = buffer.getvalue()
        found.append(own)
    return found


def request_of(files: dict[str, bytes]) -> bytes:
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"; filename="a.jpg"\r\n\r\n%s\r\n' % (name.encode(), data)
        for name, data in files.items()
    )
    body += b"--x--\r\n"
    head = "POST /embed HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/octet-stream\r\n"
    return f"{head}Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def asked(port: int, requests: Sequence[bytes], clients: int, seconds: float, count: int = 0) -> list[float]:
    """Seconds of each answer, of so many clients who ask again and again."""
    taken: list[float] = []
    begin = time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        turn = number
        while len(taken) < count if count else time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            writer.write(requests[turn % len(requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(head.decode())
            await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            taken.append(time.perf_counter() - start)
            turn += clients
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return taken


def measured(name: str, precision: str, repeats: int, seconds: float) -> tuple[dict[int, float], float]:
    """Share of the bare model's throughput by clients, and p99 of 8 clients by the median of one."""
    model = model_of(name, precision)
    files = files_of(model.data.size, 32)
    decoded = [{own: read_image(Path(own), (0, 1), data).transpose(1, 2, 0) for own, data in f.items()} for f in files]
    given: Any = {own: [one[own] for one in decoded] for own in MODALITIES}
    requests = [request_of(own) for own in files]
    rates: dict[int, list[float]] = {clients: [] for clients in (0, *CLIENTS)}
    times: dict[int, list[float]] = {clients: [] for clients in CLIENTS}
    with Server(name, precision) as server:
        model.embed(**given, batch_size=16)
        asyncio.run(asked(server.port, requests, 8, seconds / 2))
        for _ in range(repeats):
            start, passes = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                model.embed(**given, batch_size=16)
                passes += 1
            rates[0].append(passes * len(files) / (time.perf_counter() - start))
            for clients in CLIENTS:
                start = time.perf_counter()
                found = asyncio.run(asked(server.port, requests, clients, seconds))
                rates[clients].append(len(found) / (time.perf_counter() - start))
                times[clients] += found
    print(f"\n{name}, {model.data.size}, {model.precision}")
    print(f"{'bare model':14}{spread(rates[0])} samples/s")
    shares = {}
    for clients in CLIENTS:
        ratios = [one / bare for one, bare in zip(rates[clients], rates[0], strict=True)]
        shares[clients] = statistics.median(ratios)
        ends = [1e3 * float(np.quantile(times[clients], share)) for share in (0.5, 0.99)]
        print(
            f"{f'{clients} clients':14}{spread(rates[clients])} samples/s, {spread(ratios)} of the model's; "
            f"median {ends[0]:.1f} ms, p99 {ends[1]:.1f} ms"
        )
    return shares, float(np.quantile(times[8], 0.99)) / statistics.median(times[1])


def own_milliseconds(precision: str, count: int, repeats: int) -> float:
    """Processor time a request of a server without a model, less that of decoding."""
    size = (256, 128)
    files = files_of(size, 32)
    requests, found = [request_of(own) for own in files], []
    with Server("none", precision) as server:
        asyncio.run(asked(server.port, requests, 8, 0.5))
        for _ in range(repeats):
            before = server.seconds
            asyncio.run(asked(server.port, requests, 8, 0, count))
            whole = (server.seconds - before) / count
            start, turns = time.process_time(), max(1, count // len(files))
            for _ in range(turns):
                for own in files:
                    for where, data in own.items():
                        size_of(Path(where), data)
                        read_image(Path(where), (0, 1), data)
            decoding = (time.process_time() - start) / (turns * len(files))
            found.append(1e3 * (whole - decoding))
    print(f"\nserver's own processor time: {spread(found)} ms a request; decoding {1e3 * decoding:.2f} ms")
    return statistics.median(found)


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
