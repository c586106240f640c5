"""How a world is set up: what each spectrum knows of an identity, and what its cameras spoil."""

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from dmpt.settings.numbers import Count, Seed

_Subject = TypeVar("_Subject")
SHAPE = "shape"
"""Beside the spectra, what ``SHOWN`` of a subject knows: traits that its outline shows."""
_DARK = 0.01  # exposure of a dark camera


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What makes a world one in which a spectrum is not enough; the defaults change nothing.

    Attributes:
        rgb_alike: Identities that look the same in RGB, so many at a time; 0 = all. No two spectra confuse the same.
        nir_alike: Likewise in NIR.
        tir_alike: Likewise in TIR.
        shape: Spectra that show build, cut of clothes and bags (of a vehicle its body); in others all have one shape.
        dark_cameras: So many cameras, from the first on, see next to nothing in RGB, at any hour.
        drifting_cameras: So many cameras, from the last on, have a thermal sensor whose gain and offset wander.
        hour: Of all pictures.
        camera_seed: Of the cameras alone; default: the world's. With another one other cameras see the same identities.
    """

    rgb_alike: Count = 1
    nir_alike: Count = 1
    tir_alike: Count = 1
    shape: Literal["all", "rgb", "nir", "tir"] = "all"
    dark_cameras: Count = 0
    drifting_cameras: Count = 0
    hour: Literal["any", "day", "dusk", "night"] = "any"
    camera_seed: Seed | None = None

    @property
    def hides(self) -> bool:
        """Whether a spectrum shows less of an identity than there is."""
        return self.shape != "all" or any(alike != 1 for alike in self._alike.values())

    @property
    def salt(self) -> list[int]:
        """A number that differs from setup to setup, to draw by; of the plain one none."""
        return [] if self == PLAIN else [zlib.crc32(repr(asdict(self)).encode())]

    @property
    def _alike(self) -> dict[str, int]:
        return {"rgb": self.rgb_alike, "nir": self.nir_alike, "tir": self.tir_alike}

    def twin(self, pid: int, spectrum: str) -> int:
        """The first of the identities that look like ``pid`` in a spectrum; 0 where all look the same.

        Identities, counted from 1, fill a square row by row. RGB confuses neighbours in a row, TIR those in a column,
        NIR those on a diagonal: two that look alike in one spectrum differ in the others.
        """
        alike = self._alike[spectrum]
        if not alike:
            return 0
        side = max(self._alike.values())
        row, column = divmod(pid - 1, side)
        if spectrum == "rgb":
            return row * side + column - column % alike + 1
        first = row - row % alike
        return first * side + (column - (row - first if spectrum == "nir" else 0)) % side + 1

    def shaped(self, pid: int, spectrum: str) -> int:
        """The identity whose shape a spectrum shows; 0 where it shows none."""
        if self.shape == "all":
            return pid
        return self.twin(pid, spectrum) if self.shape == spectrum else 0

    def spoils(self, number: int, cameras: int) -> dict[str, Any]:
        """What is wrong with a camera, by the names of its fields; cameras are counted from 0."""
        dark, drifts = number < self.dark_cameras, number >= cameras - self.drifting_cameras
        return {"exposure": _DARK if dark else 1.0, "drifts": drifts}


PLAIN = Setup()
"""Each spectrum knows an identity by itself, and no camera is spoilt."""


def as_seen(spectrum: str, look: _Subject, shape: _Subject, rest: _Subject) -> _Subject:
    """A subject as a spectrum shows it: the traits of ``look`` there, the outline of ``shape``, else those of ``rest``.

    ``SHOWN`` of their class says which trait is seen where.
    """
    shown: Mapping[str, tuple[str, ...]] = rest.SHOWN  # type: ignore[attr-defined]
    found = {name: getattr(look, name) for name in shown[spectrum]}
    found |= {name: getattr(shape, name) for name in shown[SHAPE]}
    for own in fields(rest):  # type: ignore[arg-type]
        parts = [getattr(subject, own.name) for subject in (look, shape, rest)]
        if is_dataclass(parts[0]):
            found[own.name] = as_seen(spectrum, *parts)
    return replace(rest, **found)  # type: ignore[type-var]
