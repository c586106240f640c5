"""Models and a gallery, opened and served until a signal comes."""

import ipaddress
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uvicorn

from dmpt.base.errors import UserError
from dmpt.embed.embedder import Embedder
from dmpt.serve.guard import Guard
from dmpt.serve.limits import Limits
from dmpt.serve.protocol import protocol_of
from dmpt.serve.service import Service

TOKEN = "DMPT_TOKEN"
"""The variable of the environment that may hold the token."""
_LEAST = 16
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def token_of(given: str | None, file: Path | None) -> str | None:
    """The token that clients must give; None = none.

    Args:
        given: on the command line, where others on the machine can read it.
        file: that holds it.

    Raises:
        UserError: it is given twice, cannot be read, or is one that could be guessed or not be sent.
    """
    if given is not None and file is not None:
        raise UserError("give either --token or --token-file")
    if file is not None:
        try:
            given = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--token-file {file} cannot be read; check its name and its rights") from error
    found = os.environ.get(TOKEN) if given is None else given
    if found is None:
        return None
    if len(found) < _LEAST or not all("!" <= sign <= "~" for sign in found):
        raise UserError(
            f"the token must have at least {_LEAST} characters, and no spaces; this makes one: openssl rand -hex 16"
        )
    return found


def hosts_of(host: str, names: Sequence[str], token: str | None) -> set[str] | None:
    """Names that requests may call the service by; None = any.

    Args:
        host: the address that it listens at.
        names: by which it is called besides.
        token: that clients must give.

    Raises:
        UserError: others than this machine may ask, and there is no token.
    """
    if names and token is None:
        raise UserError(
            f"--name {names[0]} lets requests of others in, through a proxy, which takes a token: set {TOKEN}, or give "
            "--token-file"
        )
    if is_loopback(host):
        return {*_LOOPBACK, _bare(host), *map(str.lower, names)}
    if token is None:
        raise UserError(
            f"--host {host} is open to other machines, which takes a token: set {TOKEN}, or give --token-file"
        )
    anywhere = host in ("0.0.0.0", "::", "")
    return None if anywhere and not names else {_bare(host), *map(str.lower, names)}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bare(host: str) -> str:
    """As requests name it."""
    return f"[{host}]" if ":" in host else host.lower()


def listening(host: str, port: int) -> socket.socket:
    """A socket that takes connections.

    Args:
        host: an address of this machine.
        port: 0 = any that is free.

    Raises:
        UserError: there is no such address, or others listen there.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it would let two listen
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(1024)
        except OSError:
            found.close()
            raise
    except OSError as error:
        raise UserError(f"{host}, port {port}: {error.strerror or error}; give another --host or --port") from error
    return found


def opened(
    models: Mapping[str, Embedder], gallery: Path | None, again: Callable[[str, str], Embedder], limits: Limits
) -> Service:
    """The service of some models and a gallery.

    Args:
        models: by name, in their order.
        gallery: of one of them; None = there is none.
        again: loads the model of a name at a precision, where that of the gallery is another one.
        limits: of what may be asked.

    Raises:
        UserError: the gallery cannot be read, or is of none of them.
    """
    if gallery is None:
        return Service(models, next(iter(models)), limits=limits)
    from dmpt.gallery.schema import Model
    from dmpt.gallery.store import Gallery
    from dmpt.serve.catalogue import Catalogue
    from dmpt.serve.photos import Photos
    from dmpt.serve.table import Table

    found = Gallery(gallery)
    theirs = [name for name, own in models.items() if own.adapter == found.model.adapter]
    if not theirs:
        raise UserError(
            f"{gallery} holds vectors of adapter {found.model.adapter[:12]}, and that is none of "
            f"{', '.join(models)}; serve its run too, or dmpt gallery rebuild"
        )
    # A run and its exported file have one adapter; the one that computes as the gallery's vectors were is right.
    name = next((name for name in theirs if models[name].precision == found.model.precision), theirs[0])
    own = models[name]
    if own.precision != found.model.precision:
        own = again(name, found.model.precision)
    catalogue = Catalogue(Table(found.path, Model.of(own)), Photos(found, own.value_range), own.calibration)
    return Service({**models, name: own}, name, catalogue, limits)


def run(application: Guard, listener: socket.socket) -> None:
    """Answer requests until a signal comes; those in progress are answered first.

    Raises:
        KeyboardInterrupt: at the end, as the signal asked.
    """
    server_of(application).run([listener])


def server_of(application: Guard) -> uvicorn.Server:
    """What answers requests over sockets, within the application's limits."""
    config = uvicorn.Config(
        application,
        http=protocol_of(application.limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(application.limits.drain_seconds),
    )
    return uvicorn.Server(config)
