"""A service in this process: the gallery of a folder of pictures, and a port."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import uvicorn

from dmpt.embed.embedder import Embedder
from dmpt.gallery.changes import add
from dmpt.gallery.queries import of_source
from dmpt.gallery.schema import Model
from dmpt.gallery.store import create_gallery
from dmpt.gallery.times import MOMENT
from dmpt.retrieval.embeddings import join
from dmpt.serve.app import application
from dmpt.serve.guard import Guard
from dmpt.serve.limits import Limits
from dmpt.serve.serving import hosts_of, listening, opened, server_of

Pid = Callable[[int, str], str | None]
"""The label of a sample, from its row and its file's name."""


def gallery_of(model: Embedder, pictures: Path, path: Path, pid: Pid) -> Path:
    """Each sample of a folder, with the camera that its name says; each a day after the one before."""
    queries, own = of_source(model, pictures), Model.of(model)
    names = [Path(query.name).name for query in queries]
    assert names == sorted(names)
    pids = [pid(row, name) for row, name in enumerate(names)]
    cameras = [name.partition("_cam")[2][0] for name in names]
    times = [f"2026-03-{1 + row % 28:02}T12:00:00Z" for row in range(len(names))]
    gallery = create_gallery(path, own, [pa.field("time", MOMENT)], str(pictures))
    vectors, keys = join(*(query.embeddings for query in queries)), [query.name for query in queries]
    add(gallery, own, vectors, keys, pid=pids, camera=cameras, extra={"time": times})
    return path


@contextmanager
def reached(app: Guard) -> Iterator[uvicorn.Server]:
    """An application at a port of its own (``port_of``), which ends as at SIGTERM."""
    server = server_of(app)
    with listening("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        try:
            yield server
        finally:
            server.should_exit = True
            thread.join(60)


def port_of(server: uvicorn.Server) -> int:
    """Where it listens."""
    return int(server.servers[0].sockets[0].getsockname()[1])


@contextmanager
def serving(model: Embedder, gallery: Path, token: str | None = None) -> Iterator[str]:
    """A service at a port of its own; its address."""
    service = opened({"tiny": model}, gallery, lambda name, precision: model, Limits())
    with reached(application(service, hosts_of("127.0.0.1", (), token), token)) as server:
        yield f"http://127.0.0.1:{port_of(server)}"
