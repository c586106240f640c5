"""Uploaded pictures to pixels, in threads, as many at a time as there is room for."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.data.images import read_image, size_of
from dmpt.serve.asked import Side
from dmpt.serve.limits import Limits, Room
from dmpt.serve.refused import Refused

Shot = Mapping[str, NDArray[np.uint8]]
"""Pixels ``(H, W, 3)`` by modality."""


class Decoder:
    """What turns files into pixels.

    Args:
        threads: that decode.
        limits: of pixels.
    """

    def __init__(self, threads: Executor, limits: Limits):
        self._threads, self._limits, self._room = threads, limits, Room(limits.held_pixels)

    @asynccontextmanager
    async def shots(
        self, sides: Sequence[Side], value_range: tuple[float, float]
    ) -> AsyncIterator[Sequence[Sequence[Shot]]]:
        """Pixels of the shots of each side, which are kept inside.

        Args:
            sides: whose pictures are files.
            value_range: of the model, for pictures of 16 bits.

        Raises:
            Refused: a file is no picture, or of too many pixels.
        """
        if not any(side.pictures for side in sides):
            yield [[] for _ in sides]
            return
        loop = asyncio.get_running_loop()
        wanted = await loop.run_in_executor(self._threads, self._measured, sides)
        async with self._room.part(wanted):
            yield await loop.run_in_executor(self._threads, self._decoded, sides, value_range)

    def _measured(self, sides: Sequence[Side]) -> int:
        """Pixels of all pictures, as their heads claim them."""
        total = 0
        for where, data in (each for side in sides for row in _named(side) for each in row.values()):
            try:
                width, height = size_of(Path(where), data)
            except UserError as error:
                raise Refused(422, str(error)) from None
            if width * height > self._limits.pixels:
                raise Refused(
                    422,
                    f"{where} claims {width} x {height} pixels; at most {self._limits.pixels} are read; shrink it",
                )
            if max(width, height) > self._limits.side:
                raise Refused(
                    422, f"{where} claims {width} x {height} pixels; a side has at most {self._limits.side}; crop it"
                )
            total += width * height
        if total > self._limits.held_pixels:
            raise Refused(
                413,
                f"the pictures have {total} pixels together; at most {self._limits.held_pixels} at a time; send less",
            )
        return total

    def _decoded(self, sides: Sequence[Side], value_range: tuple[float, float]) -> list[list[Shot]]:
        found: list[list[Shot]] = []
        for side in sides:
            found.append([])
            for row in _named(side):
                try:
                    pixels = {
                        name: read_image(Path(where), value_range, data, self._limits.pixels).transpose(1, 2, 0)
                        for name, (where, data) in row.items()
                    }
                except UserError as error:
                    raise Refused(422, str(error)) from None
                found[-1].append(pixels)
        return found


def _named(side: Side) -> list[dict[str, tuple[str, bytes]]]:
    """Of each shot what messages call a picture, and the file, by modality."""
    return [
        {
            name: (f"{side.name}{name}[{row}]", data)
            for name, own in side.pictures.items()
            if (data := own[row]) is not None
        }
        for row in range(side.count if side.pictures else 0)
    ]
