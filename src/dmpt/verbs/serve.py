"""``dmpt serve``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.stopping import Interrupted
from dmpt.base.terminal import warn
from dmpt.settings.numbers import Port
from dmpt.verbs.loaded import Loaded

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder
    from dmpt.serve.service import Service


def run(
    runs: Sequence[Path],
    /,
    *,
    loaded: Loaded,
    gallery: Path | None = None,
    host: str = "127.0.0.1",
    port: Port = 8000,
    name: Sequence[str] = (),
    token: str | None = None,
    token_file: Path | None = None,
) -> None:
    """Models and a gallery behind HTTP, and a page to look at; until Ctrl-C.

    Args:
        runs: Run folders, adapter folders, package:tiny, or files of dmpt export.
        loaded: how they are loaded
        gallery: As dmpt embed writes it; of one of the runs, which is found.
        host: Address to listen at; any but this machine's own takes a token.
        port: To listen at; 0: any that is free.
        name: What it is called besides, as behind a proxy; other names are refused.
        token: That clients must give; safer in the environment (DMPT_TOKEN), or in a file.
        token_file: File that holds the token.
    """
    from dmpt.serve.app import application
    from dmpt.serve.limits import Limits
    from dmpt.serve.models import names_of
    from dmpt.serve.serving import hosts_of, listening, opened, run, token_of

    known = token_of(token, None if token_file is None else expanded(token_file))
    hosts = hosts_of(host, name, known)
    places = dict(zip(names_of(runs), runs, strict=True))
    models = {called: loaded.load(place) for called, place in places.items()}

    def again(called: str, precision: Any) -> "Embedder":
        if loaded.precision is not None:
            raise UserError(f"{gallery} holds vectors of {precision}, not of {loaded.precision}; leave --precision out")
        return replace(loaded, precision=precision).load(places[called])

    service = opened(models, None if gallery is None else expanded(gallery), again, Limits())
    listener = listening(host, port)
    print(_said(service, host, listener.getsockname()[1]), flush=True)
    try:
        run(application(service, hosts, known), listener)
    except Interrupted:
        warn("stopped; what was acknowledged is kept")


def _said(service: "Service", host: str, port: int) -> str:
    place = f"[{host}]" if ":" in host else host
    said = f"http://{place}:{port}/  {', '.join(service.models)}"
    if service.has_gallery:
        table = service.catalogue.table
        said += f"; {table.name}, {len(table.current()[0])} rows of {service.own.name}"
    return f"{said}; Ctrl-C stops it"
