"""What one look at a picture tells: its size, its content, whether it has colour.

Nothing here depends on a setting: what a value range makes of more than 8 bits follows from a picture's own values.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dmpt.data.images import Pixels

# Pixels on the short side that the statistics look at: every k-th pixel is enough for them.
_SAMPLES = 64

# Colours are compared along red - green and yellow - blue, in grey levels of 0..255; a picture counts by its 90th
# percentile, so that a coloured logo, cross-hair or scale bar on less than a tenth of a thermal picture does not count.
#
# An infrared picture may have a tint, and JPEG adds errors to it. A tint is colour that follows the brightness; what is
# left when the best straight line in luminance is taken away is colour proper. It is small where a picture is dark, so
# it has to exceed a share of the picture's own brightness, and some levels. Measured on 600 street pictures, darkened
# to a median brightest decile of 34 of 255: 56 % pass both as RGB; as grey JPEGs, and as grey pictures in a violet
# tint at JPEG quality 60, none does.
_COLOUR_LEVELS = 4.0
_COLOUR_SHARE = 0.15
# Grey stored as colour keeps red, green and blue within the rounding of JPEG's colour conversion.
_GREY_LEVELS = 2.0
# Below this brightest decile, a quarter of the scale, a night picture may have lost its colours. In brighter pictures
# of the 600 above colours differed by 7 % of the brightness or more, which is 4 levels here.
_BRIGHT = 64.0
# A black frame is 0 or 1 everywhere in JPEG.
BLANK_LEVELS = 2.0
# People clip the hottest and coldest half per cent or so on purpose; ten times that is no outlier any more.
CLIPPED_SHARE = 0.05
# Fewer than 8 of 256 levels are a poster of what the camera saw; needs at least twice as many values to begin with.
FLAT_LEVELS = 8.0
# At which percentiles the values of a picture of more than 8 bits are remembered; densest where a range may cut.
_PERCENT = (0.0, 0.5, 1.0, 2.0, *(float(at) for at in range(5, 100, 5)), 98.0, 99.0, 99.5, 100.0)
_Floats = npt.NDArray[np.floating]


class Deep(NamedTuple):
    """The values of a picture of more than 8 bits."""

    percentiles: tuple[float, ...]  # its own values at each of _PERCENT
    rich: bool  # they are enough different ones for a poster to be a loss

    @property
    def low(self) -> float:
        """0.5th percentile; hot and dead pixels are fewer."""
        return self.percentiles[_PERCENT.index(0.5)]

    @property
    def high(self) -> float:
        """99.5th percentile."""
        return self.percentiles[_PERCENT.index(99.5)]

    def outside(self, value_range: tuple[float, float]) -> float:
        """Share of the pixels that a value range makes black or white, 0..1, to about one per cent."""
        low, high = value_range
        values, percent = np.array(self.percentiles), np.array(_PERCENT)
        within = np.interp(high, values, percent) + np.interp(-low, -values[::-1], 100 - percent[::-1]) - 100
        return float(1 - within / 100)

    def levels(self, value_range: tuple[float, float]) -> float:
        """How many of 256 grey levels a value range leaves between ``low`` and ``high``."""
        low, high = value_range
        return max(0.0, (min(self.high, high) - max(self.low, low)) * 255 / (high - low))

    def contrast(self, value_range: tuple[float, float]) -> float:
        """How many levels would lie between ``low`` and ``high`` if they were within a value range as wide as this."""
        low, high = value_range
        return (self.high - self.low) * 255 / (high - low)


class Picture(NamedTuple):
    """One modality of one record; some hundred bytes, whatever its size in pixels."""

    width: int
    height: int
    digest: str  # of size and decoded pixels: equal whatever format, metadata or number of channels store them
    blank: bool  # all pixels are alike
    coloured: bool  # it has colour that no tint explains
    grey: bool  # red, green and blue are equal
    bright: bool  # enough for its colours to show
    deep: Deep | None  # of pictures of more than 8 bits


def measure(pixels: Pixels) -> Picture:
    """Statistics of one picture, uint8 ``(3, H, W)``."""
    _, height, width = pixels.shape
    one = bool((pixels[1:] == pixels[0]).all())  # of three equal channels one says it all
    step = _step(height, width)
    sample = pixels[:, ::step, ::step].reshape(3, -1).astype(np.float32)
    luminance = sample[0] if one else np.array([0.299, 0.587, 0.114], dtype=np.float32) @ sample
    darkest, brightest, white = _percentiles(luminance, [1, 90, 99])
    colour, beyond_tint = (0.0, 0.0) if one else _colour(sample, luminance)
    return Picture(
        width=width,
        height=height,
        digest=_digest(pixels[:1] if one else pixels),
        blank=bool(white - darkest <= BLANK_LEVELS),
        coloured=bool(beyond_tint >= max(_COLOUR_LEVELS, _COLOUR_SHARE * brightest)),
        grey=colour <= _GREY_LEVELS,
        bright=bool(brightest >= _BRIGHT),
        deep=None,
    )


def measure_deep(values: npt.NDArray[np.float64]) -> Picture:
    """The same of a picture of more than 8 bits, by its own values ``(H, W)``; what is not finite counts for nothing.

    It is blank where these are alike, and bright at any rate: it has no colours that light could show.
    """
    height, width = values.shape
    step = _step(height, width)
    sample = values[::step, ::step]
    sample = sample[np.isfinite(sample)]
    deep = None
    if sample.size:
        percentiles = tuple(_percentiles(sample, _PERCENT).tolist())
        deep = Deep(percentiles, rich=len(np.unique(sample)) >= 2 * FLAT_LEVELS)
    return Picture(
        width=width,
        height=height,
        digest=_digest(values[None] + 0.0),  # no negative zeros
        blank=deep is None or deep.low == deep.high,
        coloured=False,
        grey=True,
        bright=True,
        deep=deep,
    )


def _step(height: int, width: int) -> int:
    return max(1, min(height, width) // _SAMPLES)


def _digest(pixels: npt.NDArray[np.generic]) -> str:
    """Of ``(channels, H, W)``; SHA-256 is what processors are fastest at."""
    digest = hashlib.sha256(f"{pixels.dtype}{pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()[:32]


def _percentiles(values: _Floats, percent: Sequence[float]) -> _Floats:
    """Each the value nearest to it in order: several times as fast as ``np.percentile``, which puts them in between."""
    nearest = np.rint(np.array(percent) / 100 * (values.size - 1)).astype(np.intp)
    return np.sort(values, axis=None)[nearest]


def _colour(sample: npt.NDArray[np.float32], luminance: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Colour of the most coloured tenth of the pixels ``(3, N)``, in levels: all of it, and what no tint explains."""
    red, green, blue = sample
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    centred = luminance - luminance.mean()
    rest = opponents - opponents.mean(1, keepdims=True)
    slope = rest @ centred / max(float(centred @ centred), 1e-6)
    rest -= slope[:, None] * centred
    colour, beyond_tint = (float(_percentiles(np.abs(values).max(0), [90])[0]) for values in (opponents, rest))
    return colour, beyond_tint
