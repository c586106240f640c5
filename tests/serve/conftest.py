"""A service of ``package:tiny`` and of a gallery of drawn people, in this process."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from inside import gallery_of
from starlette.testclient import TestClient

import dmpt
from dmpt.embed.embedder import Embedder
from dmpt.serve.app import application
from dmpt.serve.limits import Limits
from dmpt.serve.serving import hosts_of, opened
from served import fields
from toy import write_toy_set

HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def model() -> Embedder:
    return dmpt.load("package:tiny")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, model: Embedder) -> Path:
    """``data/test`` with 24 samples of 4 people, and ``g.lance`` of them; those of camera 2 are unlabelled."""
    folder = tmp_path_factory.mktemp("serve")
    write_toy_set(folder / "data", train_ids=1, test_ids=4, images=6, size=(64, 32))
    pictures = folder / "data" / "test"
    gallery_of(model, pictures, folder / "g.lance", lambda _, name: str(int(name[:6])) if "_cam1_" in name else None)
    return folder


Start = Callable[..., Any]


@pytest.fixture
def start(model: Embedder) -> Start:
    """To be called with a gallery, as a context that gives a client."""

    @contextmanager
    def started(
        gallery: Path | None = None,
        limits: Limits | None = None,
        token: str | None = None,
        others: Mapping[str, Embedder] | None = None,
        **options: Any,
    ) -> Iterator[TestClient]:
        service = opened({"tiny": model, **(others or {})}, gallery, lambda name, precision: model, limits or Limits())
        app = application(service, hosts_of("127.0.0.1", (), token), token)
        with TestClient(app, HERE, raise_server_exceptions=False, **options) as client:
            yield client

    return started


@pytest.fixture(scope="session")
def shared(home: Path, model: Embedder) -> Iterator[TestClient]:
    """A service that tests only read."""
    service = opened({"tiny": model}, home / "g.lance", lambda name, precision: model, Limits())
    with TestClient(application(service, hosts_of("127.0.0.1", (), None)), HERE, raise_server_exceptions=False) as one:
        yield one


@pytest.fixture
def gallery(home: Path, tmp_path: Path) -> Path:
    """A copy of the gallery, to be written to."""
    return Path(shutil.copytree(home / "g.lance", tmp_path / "g.lance"))


@pytest.fixture
def files(home: Path) -> Callable[..., list[Any]]:
    """Parts of a multipart body, of a sample's pictures: called with modalities, ``name`` and ``prefix``."""
    return partial(fields, home)
