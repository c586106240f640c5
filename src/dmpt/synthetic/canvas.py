"""What a shot is painted on: a map of surfaces, each with a colour, an infrared reflectance and a temperature.

Painting happens once per shot; the three spectra are then looked up from the same map, so they are aligned by
construction.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]
Point = tuple[float, float]
Bytes = NDArray[np.uint8]

SPECTRA = ("rgb", "nir", "tir")
_SUPERSAMPLE = 2  # the map has so many pixels per side of a pixel of the picture
#: Temperatures are stored in bytes: steps of 0.25 degrees from -14 to 49.75 degrees Celsius.
KELVIN_STEP, COLDEST = 0.25, -14.0


class _Surface(NamedTuple):
    """A material as three cameras see it."""

    rgb: Colour  # visible reflectance of red, green and blue, in [0, 1]
    nir: float  # near-infrared reflectance in [0, 1]; not a function of the colour
    tir: float  # temperature in degrees Celsius


class _Texture(NamedTuple):
    """A second look of a painted surface, in one spectrum, where ``mask`` holds."""

    spectrum: str
    label: int  # of the surface
    box: tuple[int, int, int, int]  # left, top, right, bottom on the map
    mask: NDArray[np.bool_]  # (bottom - top, right - left)
    value: Colour | float  # as the spectrum's of a surface


class Canvas:
    """A map of surfaces, painted from back to front.

    Coordinates are fractions of the picture's height, from its upper left corner, x to the right and y down, so that
    a circle is round whatever the picture's shape.

    Args:
        size: height and width of the picture in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size, self.aspect = size, size[1] / size[0]  # the width in heights
        self.surfaces: list[_Surface] = []  # by label; at most 256
        self.textures: list[_Texture] = []  # in the order in which they apply
        self._unit = size[0] * _SUPERSAMPLE
        self._image = Image.new("L", (size[1] * _SUPERSAMPLE, self._unit))
        self._draw = ImageDraw.Draw(self._image)

    def add(self, colour: Colour, nir: float, temperature: float, darker: float = 1.0) -> int:
        """The label of a surface to paint with, which may reflect less than is said."""
        red, green, blue = colour
        self.surfaces.append(_Surface((red * darker, green * darker, blue * darker), nir * darker, temperature))
        return len(self.surfaces) - 1

    def polygon(self, points: Sequence[Point], label: int) -> None:
        """Fill a polygon."""
        self._draw.polygon([(x * self._unit, y * self._unit) for x, y in points], fill=label)

    def box(self, left: float, top: float, right: float, bottom: float, label: int) -> None:
        """Fill a rectangle; nothing where it is empty."""
        if right > left and bottom > top:
            self._draw.rectangle([v * self._unit for v in (left, top, right, bottom)], fill=label)

    def ellipse(self, x: float, y: float, rx: float, ry: float, label: int) -> None:
        """Fill an ellipse around (x, y)."""
        self._draw.ellipse([v * self._unit for v in (x - rx, y - ry, x + rx, y + ry)], fill=label)

    def limb(self, start: Point, end: Point, thick: float, thin: float, label: int) -> None:
        """Fill a limb with round ends, from ``thick`` to ``thin`` (half widths)."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        length = math.hypot(dx, dy) or 1.0
        nx, ny = -dy / length, dx / length
        (ax, ay), (bx, by) = (nx * thick, ny * thick), (nx * thin, ny * thin)
        (x0, y0), (x1, y1) = start, end
        self.polygon([(x0 + ax, y0 + ay), (x1 + bx, y1 + by), (x1 - bx, y1 - by), (x0 - ax, y0 - ay)], label)
        self.ellipse(*start, thick, thick, label)
        self.ellipse(*end, thin, thin, label)

    def texture(self, spectrum: str, label: int, area: Sequence[float], kind: str, value: Colour | float) -> None:
        """Give a surface a second look in one spectrum, of a pattern or ``plain``, within left, top, right, bottom."""
        height, width = self._image.height, self._image.width
        left, top, right, bottom = (round(v * self._unit) for v in area)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
        if kind == "plain" or x1 - x0 < 2 or y1 - y0 < 2:
            return
        u = ((np.arange(x0, x1) - left) / (right - left) * 2 - 1)[None]
        v = ((np.arange(y0, y1) - top) / (bottom - top))[:, None]
        mask = np.broadcast_to(PATTERNS[kind](u, v), (y1 - y0, x1 - x0))
        self.textures.append(_Texture(spectrum, label, (x0, y0, x1, y1), mask, value))

    def render(self, spectrum: str) -> NDArray[np.float32]:
        """A spectrum's values, averaged down to the picture: ``(H, W, 3)`` for ``rgb``, else ``(H, W)``."""
        labels = np.asarray(self._image)
        values = np.array([surface[SPECTRA.index(spectrum)] for surface in self.surfaces])
        pixels = _to_bytes(values, spectrum)[labels]
        for texture in self.textures:
            if texture.spectrum == spectrum:
                x0, y0, x1, y1 = texture.box
                where = texture.mask & (labels[y0:y1, x0:x1] == texture.label)
                pixels[y0:y1, x0:x1][where] = _to_bytes(np.array(texture.value), spectrum)
        small = np.asarray(Image.fromarray(pixels).reduce(_SUPERSAMPLE), dtype=np.float32)
        return small * np.float32(KELVIN_STEP) + np.float32(COLDEST) if spectrum == "tir" else small / np.float32(255)


def _to_bytes(values: NDArray[np.float64], spectrum: str) -> Bytes:
    scaled = (values - COLDEST) / KELVIN_STEP if spectrum == "tir" else values * 255
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


#: Patterns over a garment or panel: u in [-1, 1] from left to right, v in [0, 1] from top to bottom.
PATTERNS = {
    "stripes": lambda u, v: np.floor((u + 1) * 4.5) % 2 == 1,
    "hoops": lambda u, v: np.floor(v * 9) % 2 == 1,
    "wide hoops": lambda u, v: np.floor(v * 4.5) % 2 == 1,
    "checks": lambda u, v: (np.floor((u + 1) * 3.5) + np.floor(v * 8)) % 2 == 1,
    "block": lambda u, v: v > 0.5,
    "yoke": lambda u, v: v < 0.28,
    "sides": lambda u, v: abs(u) > 0.55,
    "centre": lambda u, v: abs(u) < 0.3,
    "sash": lambda u, v: abs(u - (v * 2 - 1)) < 0.35,
    "logo": lambda u, v: (u / 0.5) ** 2 + ((v - 0.35) / 0.17) ** 2 < 1,
    "patch": lambda u, v: (abs(u - 0.35) < 0.35) & (abs(v - 0.7) < 0.16),
}
