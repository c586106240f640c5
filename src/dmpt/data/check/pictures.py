"""What one look at a picture tells: its size, its content, whether it has colour, what the value range costs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from dmpt.base.errors import UserError
from dmpt.base.processes import spread
from dmpt.base.terminal import track
from dmpt.data.images import Pixels, decode, read_record, to_uint8
from dmpt.data.records import Record

#: Records that a process looks at before it says so, and how many are worth a second process.
CHUNK, MANY = 32, 4000
#: Pixels on the short side that the statistics look at: every k-th pixel is enough for them.
SAMPLES = 64

# Colours are compared along red - green and yellow - blue, in grey levels of 0..255; a picture counts by its 90th
# percentile, so that a coloured logo, cross-hair or scale bar on less than a tenth of a thermal picture does not count.
#
# An infrared picture may have a tint, and JPEG adds errors to it. A tint is colour that follows the brightness; what is
# left when the best straight line in luminance is taken away is colour proper. It is small where a picture is dark, so
# it has to exceed a share of the picture's own brightness, and some levels. Measured on 600 street pictures, darkened
# to a median brightest decile of 34 of 255: 56 % pass both as RGB; as grey JPEGs, and as grey pictures in a violet
# tint at JPEG quality 60, none does.
COLOUR_LEVELS = 4.0
COLOUR_SHARE = 0.15
# Grey stored as colour keeps red, green and blue within the rounding of JPEG's colour conversion.
GREY_LEVELS = 2.0
# Below this brightest decile, a quarter of the scale, a night picture may have lost its colours. In brighter pictures
# of the 600 above colours differed by 7 % of the brightness or more, which is 4 levels here.
BRIGHT = 64.0
# A black frame is 0 or 1 everywhere in JPEG.
BLANK_LEVELS = 2.0
# People clip the hottest and coldest half per cent or so on purpose; ten times that is no outlier any more.
CLIPPED_SHARE = 0.05
# Fewer than 8 of 256 levels are a poster of what the camera saw; needs at least twice as many values to begin with.
FLAT_LEVELS = 8.0


@dataclass(frozen=True)
class Deep:
    """How a picture of more than 8 bits fares under the value range.

    Attributes:
        low: 0.5th percentile of its own values; hot and dead pixels are fewer.
        high: 99.5th percentile.
        outside: share of the pixels outside of the value range, hence black or white, 0..1.
        flat: it has contrast of its own, of which the value range leaves less than ``FLAT_LEVELS`` of 256 levels.
    """

    low: float
    high: float
    outside: float
    flat: bool

    @property
    def clipped(self) -> bool:
        """More is lost than outliers."""
        return self.outside > CLIPPED_SHARE


@dataclass(frozen=True, slots=True)
class Picture:
    """One modality of one record; some hundred bytes, whatever its size.

    Attributes:
        width: pixels.
        height: pixels.
        digest: hash of size and decoded 8-bit pixels, as the network gets them. Equal pictures are equal whatever
            format, metadata or number of channels they are stored with.
        blank: all pixels are alike.
        coloured: it has colour that no tint explains.
        grey: red, green and blue are equal.
        bright: bright enough for its colours to show.
        deep: of pictures of more than 8 bits.
    """

    width: int
    height: int
    digest: bytes
    blank: bool
    coloured: bool
    grey: bool
    bright: bool
    deep: Deep | None


@dataclass(frozen=True)
class Look:
    """One record, decoded and measured.

    Attributes:
        pictures: of the modalities that could be read.
        unreadable: each of the other files, and what was wrong with it in one line.
    """

    pictures: Mapping[str, Picture]
    unreadable: tuple[tuple[Path, str], ...]


def look_at(records: Sequence[Record], value_range: tuple[float, float], workers: int) -> list[Look]:
    """Decode every file once and measure it; at no time more than a few pictures per worker are in memory.

    Args:
        records: what to look at.
        value_range: as for ``dmpt.data.images.read_image``.
        workers: processes at most; of few records one, since each would have to import torch first. Threads were no
            faster than one: they wait for the interpreter's lock.

    Returns:
        One for each record, in order.
    """
    chunks = [records[i : i + CHUNK] for i in range(0, len(records), CHUNK)]
    looks = spread(partial(_look_at, value_range), chunks, workers if len(records) >= MANY else 1)
    return list(track(chain.from_iterable(looks), "checking images", len(records)))


def _look_at(value_range: tuple[float, float], records: Sequence[Record]) -> list[Look]:
    return [_look(record, value_range) for record in records]


def _look(record: Record, value_range: tuple[float, float]) -> Look:
    if record.columns:  # one file
        try:
            return Look({m: measure(pixels) for m, pixels in read_record(record, value_range).items()}, ())
        except UserError as error:
            return Look({}, ((next(iter(record.paths.values())), str(error)),))
    pictures: dict[str, Picture] = {}
    unreadable = []
    for modality, path in record.paths.items():
        try:
            pixels, deep = decode(path, lambda image: (to_uint8(image, value_range), _deep(image, value_range)))
        except UserError as error:
            unreadable.append((path, str(error)))
        else:
            pictures[modality] = measure(pixels, deep)
    return Look(pictures, tuple(unreadable))


def measure(pixels: Pixels, deep: Deep | None = None) -> Picture:
    """Statistics of one picture.

    Args:
        pixels: uint8 ``(3, H, W)``.
        deep: what its own values said, where it has more than 8 bits.
    """
    _, height, width = pixels.shape
    digest = hashlib.blake2b(f"{width}x{height}".encode(), digest_size=16)
    digest.update(pixels.data)
    step = max(1, min(height, width) // SAMPLES)
    sample = pixels[:, ::step, ::step].reshape(3, -1).astype(np.float32)
    luminance = np.array([0.299, 0.587, 0.114], dtype=np.float32) @ sample
    darkest, brightest, white = np.percentile(luminance, [1, 90, 99])
    colour, beyond_tint = _colour(sample, luminance)
    return Picture(
        width=width,
        height=height,
        digest=digest.digest(),
        blank=bool(white - darkest <= BLANK_LEVELS),
        coloured=beyond_tint >= max(COLOUR_LEVELS, COLOUR_SHARE * brightest),
        grey=colour <= GREY_LEVELS,
        bright=bool(brightest >= BRIGHT),
        deep=deep,
    )


def _colour(sample: npt.NDArray[np.float32], luminance: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Colour of the most coloured tenth of the pixels ``(3, N)``, in levels: all of it, and what no tint explains."""
    red, green, blue = sample
    opponents = np.stack([red - green, (red + green) / 2 - blue])
    if not opponents.any():
        return 0.0, 0.0
    centred = luminance - luminance.mean()
    rest = opponents - opponents.mean(1, keepdims=True)
    slope = rest @ centred / max(float(centred @ centred), 1e-6)
    rest -= slope[:, None] * centred
    colour, beyond_tint = (float(np.percentile(np.abs(values).max(0), 90)) for values in (opponents, rest))
    return colour, beyond_tint


def _deep(image: Image.Image, value_range: tuple[float, float]) -> Deep | None:
    """Nothing for pictures of 8 bits, or 16-bit colour, whose values Pillow reduces itself."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return None
    values = np.asarray(image, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = value_range
    bottom, top = np.percentile(values, [0.5, 99.5])
    seen = (min(top, high) - max(bottom, low)) * 255 / (high - low)
    rich = bool(top > bottom) and len(np.unique(values[:: max(1, values.size // SAMPLES**2)])) >= 2 * FLAT_LEVELS
    return Deep(
        low=float(bottom),
        high=float(top),
        outside=float(np.mean((values < low) | (values > high))),
        flat=rich and bool(seen < FLAT_LEVELS),
    )
