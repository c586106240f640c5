"""The service over HTTP."""

import hashlib
import re
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from dmpt import __version__
from dmpt.serve import answers
from dmpt.serve.answers import PROBLEMS, body
from dmpt.serve.asked import JSON, RAW, media_type
from dmpt.serve.figures import TYPE
from dmpt.serve.guard import Guard
from dmpt.serve.refused import Refused, unforeseen
from dmpt.serve.service import Service
from dmpt.serve.vectors import to_bytes, to_samples

_STATIC = Path(__file__).parent / "static"
_NAME = re.compile(r"[a-z0-9_-]{1,64}\.(html|css|js|svg|png|woff2)")
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "woff2": "font/woff2",
}
_JPEG = {"content": {"image/jpeg": {}}, "description": "the picture"}


def application(service: Service, hosts: Collection[str] | None = None, token: str | None = None) -> Guard:
    """What answers requests, of ASGI.

    Args:
        service: that does the work.
        hosts: names that it may be called by; None = any.
        token: that must be given; None = none.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="dmpt",
        version=__version__,
        summary="Multi-modal re-identification: embed, search, compare",
        docs_url=None,  # they would load from elsewhere
        redoc_url=None,
        lifespan=life,
    )
    for kind in (Refused, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _told)
    app.include_router(_open(service))
    app.include_router(_models(service))
    app.include_router(_gallery(service))
    return Guard(app, service.limits, hosts, token, service.figures)


def _open(service: Service) -> APIRouter:
    """What needs no token."""
    router = APIRouter(responses=PROBLEMS)

    @router.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _file(request, "index.html")

    @router.get("/static/{name}", include_in_schema=False)
    async def static(request: Request, name: str) -> Response:
        return _file(request, name)

    @router.get("/health", response_model=answers.Alive)
    async def health() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @router.get("/ready", response_model=answers.Alive)
    async def ready() -> Response:
        """The gallery answers too."""
        if service.has_gallery:
            await service.in_gallery(service.catalogue.table.current)
        return JSONResponse({"status": "ready"})

    return router


def _models(service: Service) -> APIRouter:
    """What the models do."""
    router = APIRouter(responses=PROBLEMS, dependencies=[Depends(HTTPBearer(auto_error=False))])

    @router.get("/service", response_model=answers.Service)
    async def about() -> Response:
        """What there is: models, their calibration, the gallery."""
        return JSONResponse(await service.in_gallery(service.about))

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.figures.text(), media_type=TYPE)

    @router.post(
        "/embed",
        response_model=answers.Embedded,
        responses={200: {"content": {RAW: {"schema": {"type": "string", "format": "binary"}}}}},
        openapi_extra=body(),
    )
    async def embed(request: Request, which: Annotated[answers.Which, Query()]) -> Response:
        """Vectors of shots; with Accept: application/octet-stream as rows of float32."""
        served = service.model(which.model)
        (found,) = await service.embedded(await service.asked(request, served, which), served, which.use)
        if RAW in request.headers.get("accept", ""):
            return Response(to_bytes(found), media_type=RAW)
        about = {"model": served.name, "adapter": served.embedder.adapter, "precision": served.embedder.precision}
        widths = {"width": served.shape.width, "shared": served.shape.shared}
        return JSONResponse({**about, **widths, "samples": to_samples(found)})

    @router.post("/compare", response_model=answers.Compared, openapi_extra=body(two=True))
    async def compare(request: Request, which: Annotated[answers.Comparing, Query()]) -> Response:
        """Whether two are the same."""
        served = service.model(which.model)
        sides = await service.asked(request, served, which, two=True)
        return JSONResponse(await service.compared(sides, served, which.use, which.fmr))

    @router.post("/attention", response_model=answers.Looked, openapi_extra=body())
    async def attention(request: Request, which: Annotated[answers.Which, Query()]) -> Response:
        """Where the model looks in a shot."""
        served = service.model(which.model)
        (side,) = await service.asked(request, served, which)
        return JSONResponse(await service.looked(side, served, which.use))

    return router


def _gallery(service: Service) -> APIRouter:
    """What is about the gallery."""
    router = APIRouter(responses=PROBLEMS, dependencies=[Depends(HTTPBearer(auto_error=False))])

    @router.post("/search", response_model=answers.Found, openapi_extra=body())
    async def search(request: Request, asked: Annotated[answers.Searching, Query()]) -> Response:
        """The most similar rows, and what their scores mean."""
        _ = service.catalogue
        (side,) = await service.asked(request, service.own, asked)
        return JSONResponse(await service.found(side, asked))

    @router.get("/gallery/examples", response_model=answers.Items)
    async def examples(asked: Annotated[answers.Examples, Query()]) -> Response:
        """Rows whose pictures are there, of as many identities."""
        return JSONResponse({"items": await service.in_gallery(service.catalogue.examples, asked.n)})

    @router.get("/gallery/picture", response_class=Response, responses={200: _JPEG})
    async def picture(asked: Annotated[answers.Pictured, Query()]) -> Response:
        """A picture of a row, encoded anew."""
        return Response(
            await service.pictured(asked), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=300"}
        )

    @router.post("/gallery/add", response_model=answers.Written, openapi_extra=body(more=True))
    async def add(request: Request, row: Annotated[answers.Adding, Query()]) -> Response:
        """Write rows; those whose keys are there are replaced."""
        return JSONResponse(await service.added(request, row))

    @router.post("/gallery/label", response_model=answers.Written, dependencies=[Depends(_json)])
    async def label(given: answers.Labels) -> Response:
        """Say who is on rows."""
        return JSONResponse(await service.written(service.catalogue.label, given.labels))

    @router.post("/gallery/remove", response_model=answers.Written, dependencies=[Depends(_json)])
    async def remove(given: answers.Keys) -> Response:
        """Take rows out."""
        return JSONResponse(await service.written(service.catalogue.remove, given.keys))

    @router.post("/gallery/undo", response_model=answers.Written, dependencies=[Depends(_json)])
    async def undo(given: answers.Undoing) -> Response:
        """Take back the last write of this service, unless somebody wrote since."""
        return JSONResponse(await service.written(service.catalogue.undo, given.version))

    return router


def _json(request: Request) -> None:
    kind = media_type(request.headers.get("content-type", ""))
    if kind != JSON:
        raise Refused(415, f"Content-Type is {kind[:80] or 'not given'}; give {JSON}")


def _file(request: Request, name: str) -> Response:
    """Of the page; 304 where the browser has it as it is."""
    path = _STATIC / name
    if _NAME.fullmatch(name) is None or not path.is_file():
        raise Refused(404, "there is no such file of the page")
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"Cache-Control": "no-cache", "ETag": tag}  # kept, and asked about each time
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_TYPES[path.suffix[1:]], headers=headers)


async def _told(request: Request, error: Exception) -> Response:
    """Any error as one sentence."""
    if isinstance(error, RequestValidationError):
        error = _invalid(error.errors()[0])
    elif isinstance(error, HTTPException):
        error = _missing(request, error)
    elif not isinstance(error, Refused):
        error = unforeseen()
    return error.response


def _invalid(found: dict[str, Any]) -> Refused:
    where = ".".join(str(part)[:80] for part in found["loc"][1:]) or "the body"
    if found["type"] == "json_invalid":
        return Refused(400, "the body is no JSON; see /openapi.json")
    if found["type"] == "extra_forbidden":
        return Refused(422, f"there is no {where}; see /openapi.json")
    return Refused(422, f"{where}: {found['msg'][:1].lower()}{found['msg'][1:]}")


def _missing(request: Request, error: HTTPException) -> Refused:
    path = request.url.path[:100]
    if error.status_code == 404:
        return Refused(404, f"there is no {path}; see /openapi.json")
    if error.status_code == 405:
        return Refused(405, f"{path} does not take {request.method[:20]}; see /openapi.json", **(error.headers or {}))
    return Refused(error.status_code, str(error.detail))
