"""What the service does, whatever the protocol: it embeds, compares, looks, searches and writes."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from starlette.requests import Request

from dmpt import __version__
from dmpt.embed.embedder import Embedder
from dmpt.retrieval.embeddings import Embeddings, restricted
from dmpt.retrieval.scores import apart
from dmpt.serve.adding import rows_of
from dmpt.serve.answers import Adding, Pictured, Searching, Whose
from dmpt.serve.asked import Side, read, used
from dmpt.serve.decoding import Decoder
from dmpt.serve.figures import Figures
from dmpt.serve.limits import HITS, ROWS, SHOTS, Limits
from dmpt.serve.models import Served, meant
from dmpt.serve.refused import Refused
from dmpt.settings.modalities import number_of

if TYPE_CHECKING:
    from dmpt.serve.catalogue import Catalogue

_T = TypeVar("_T")
_READERS = 4
"""Threads that look into the gallery."""
_PICTURES = 2
"""Of its pictures that are read at a time: each may have many pixels."""
_LARGE = 1 << 16
"""Bytes of a body beyond which other requests must not wait while it is read."""


class Service:
    """Models, and the gallery of one of them.

    Args:
        models: by the names that clients choose them by, at least one.
        own: the name of the gallery's model, else of the one that is meant where none is named.
        catalogue: the gallery; None = there is none.
        limits: of what may be asked.

    Attributes:
        models: by name.
        own: the gallery's model, or the one that is meant.
        limits: as given.
        figures: what it counts.
    """

    def __init__(
        self,
        models: Mapping[str, Embedder],
        own: str,
        catalogue: "Catalogue | None" = None,
        limits: Limits | None = None,
    ):
        self._catalogue, self.limits, self.figures = catalogue, limits or Limits(), Figures()
        # One thread computes, for all models; the others decode, and look into the gallery.
        self._model, self._decode = ThreadPoolExecutor(1, "model"), ThreadPoolExecutor(os.cpu_count() or 1, "decode")
        self._store = ThreadPoolExecutor(_READERS, "gallery")
        # Of their own: a write that waits for a lock, and large pictures, keep no search back.
        self._writer, self._photos = ThreadPoolExecutor(1, "writer"), ThreadPoolExecutor(_PICTURES, "pictures")
        self.models = {name: Served(name, model, self._model, self.figures) for name, model in models.items()}
        self.own = self.models[own]
        self._decoder = Decoder(self._decode, self.limits)
        self.figures.gauge(
            "dmpt_waiting_samples",
            "Samples that wait for a pass of a model",
            lambda: sum(len(served.batcher) for served in self.models.values()),
        )

    def close(self) -> None:
        """No more requests come."""
        for pool in (self._model, self._decode, self._store, self._writer, self._photos):
            pool.shutdown(wait=False, cancel_futures=True)

    def model(self, name: str | None) -> Served:
        """By its name; None = the gallery's, or the first.

        Raises:
            Refused: there is none.
        """
        if name is None:
            return self.own
        if name not in self.models:
            raise Refused(404, f"there is no model {name[:100]}; there are {', '.join(self.models)}")
        return self.models[name]

    @property
    def has_gallery(self) -> bool:
        """Whether there is one."""
        return self._catalogue is not None

    @property
    def catalogue(self) -> "Catalogue":
        """The gallery, which must be there.

        Raises:
            Refused: there is none.
        """
        if self._catalogue is None:
            raise Refused(404, "this service has no gallery; it is started with --gallery")
        return self._catalogue

    async def in_gallery(self, call: Callable[..., _T], *given: Any) -> _T:
        """What waits for the store, in a thread."""
        return await self._in(self._store, partial(call, *given))

    async def written(self, call: Callable[..., _T], *given: Any) -> _T:
        """What writes to the store, one after the other."""
        return await self._in(self._writer, partial(call, *given))

    async def pictured(self, asked: Pictured) -> bytes:
        """A picture of a row, as JPEG."""
        work = partial(self.catalogue.picture, asked.key, asked.modality, asked.size)
        return await self._in(self._photos, work)

    async def _in(self, pool: Executor, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    async def asked(self, request: Request, served: Served, whose: Whose, two: bool = False) -> list[Side]:
        """Who the body of a request asks for: one, or two.

        Raises:
            Refused: it cannot be read, does not say who, or its vectors are of another model.
        """
        served.shape.refuse(whose.adapter, whose.precision)
        return await self._parsed(request, partial(read, shape=served.shape, two=two))

    async def _parsed(self, request: Request, parse: Callable[[bytes, str], _T]) -> _T:
        """What a body says; a large one is read in a thread."""
        work = partial(parse, await request.body(), request.headers.get("content-type", ""))
        return await self._in(self._decode, work) if len(work.args[0]) > _LARGE else work()

    async def added(self, request: Request, given: Adding) -> dict[str, Any]:
        """Rows that are written to the gallery."""
        catalogue = self.catalogue
        self.own.shape.refuse(given.adapter, given.precision)
        rows = await self._parsed(request, partial(rows_of, given=given, shape=self.own.shape))
        (vectors,) = await self.embedded([rows.side], self.own)
        return await self.written(catalogue.add, vectors, rows)

    async def embedded(self, sides: Sequence[Side], served: Served, use: Sequence[str] = ()) -> list[Embeddings]:
        """Vectors of each side's shots.

        Raises:
            Refused: a picture cannot be used, a row is not there, or nothing is left of a shot.
        """
        served.check(use)
        sides = [used(side, use) for side in sides]
        for side in sides:
            served.check(list(side.pictures))
        async with AsyncExitStack() as kept:
            with served.batcher.coming():
                shots = await kept.enter_async_context(self._decoder.shots(sides, served.embedder.value_range))
            embedded = (
                served.embed(own) if own else self._known(side, served) for side, own in zip(sides, shots, strict=True)
            )
            found = await asyncio.gather(*embedded)
        return [_cut(items, use) for items in found]

    async def _known(self, side: Side, served: Served) -> Embeddings:
        """Vectors that need no model."""
        if side.vectors is not None:
            return side.vectors
        catalogue = self.catalogue
        if served is not self.own:
            raise Refused(422, f"rows of the gallery have vectors of {self.own.name}, not of {served.name}")
        return await self.in_gallery(catalogue.vectors, side.keys)

    async def compared(self, sides: Sequence[Side], served: Served, use: Sequence[str], fmr: float) -> dict[str, Any]:
        """Whether two are the same, at an FMR in (0, 1)."""
        first, second = await self.embedded(sides, served, use)
        verdict = await self._in(self._decode, partial(served.embedder.compare, first, second, fmr))
        alone = apart(first, second)[0] if len(first) == len(second) == 1 else {}
        return {
            "model": served.name,
            "score": round(verdict.score, 6),
            "modalities": list(verdict.modalities),
            "same": verdict.same,
            "fmr": verdict.fmr,
            "asked_fmr": fmr,
            "calibrated": served.embedder.calibration is not None,
            "spectra": meant(alone, served.embedder.calibration, 1),
        }

    async def looked(self, side: Side, served: Served, use: Sequence[str]) -> dict[str, Any]:
        """Where a model looks in one shot."""
        if len(side.keys) == 1:
            files = await self.in_gallery(self.catalogue.files, side.keys[0])
            side = Side({name: [data] for name, data in files.items() if name in served.embedder.modalities})
        if not side.pictures or side.count != 1:
            raise Refused(422, "this takes the pictures of one shot")
        side = used(side, use)
        served.check(list(side.pictures))
        async with self._decoder.shots([side], served.embedder.value_range) as shots:
            return await served.gaze(shots[0][0])

    async def found(self, side: Side, asked: Searching) -> dict[str, Any]:
        """The best rows for one."""
        catalogue = self.catalogue
        (query,) = await self.embedded([side], self.own, asked.use)
        leave = side.keys if asked.exclude_self else ()
        return {"model": self.own.name, **await self.in_gallery(catalogue.found, query, leave, asked)}

    def about(self) -> dict[str, Any]:
        """What there is."""
        limits = self.limits
        return {
            "version": __version__,
            "models": [served.about for served in self.models.values()],
            "gallery": self._catalogue and {**self._catalogue.about(), "model": self.own.name},
            "limits": {
                "body_bytes": limits.body_bytes,
                "pixels": limits.pixels,
                "shots": SHOTS,
                "k": HITS,
                "rows": ROWS,
            },
        }


def _cut(items: Embeddings, use: Sequence[str]) -> Embeddings:
    """Without the modalities that do not count."""
    if not use:
        return items
    kept = items.codes & number_of(set(use))
    if not kept.all():
        raise Refused(422, f"shot {int(np.argmin(kept))} has none of {', '.join(use)}; use another modality")
    return items if (kept == items.codes).all() else restricted(items, use)
