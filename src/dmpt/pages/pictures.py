"""The user's pictures as small JPEGs inside the page."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from dmpt.data.images import read_record, resize
from dmpt.data.records import Record
from dmpt.settings.config import DataConfig

Pixels = NDArray[np.uint8]

LONG_SIDE = 144
"""Of a thumbnail, pixels: sharp on the page, a few KB in the file."""
QUALITY = 80
FRAME, EMPTY = 150, 238
"""Grey values of the frame of a picture that is not there, and of what it encloses."""
SPECTRA = {"rgb": "RGB", "nir": "NIR", "tir": "TIR"}
"""What the page calls the modalities in tables and beside pictures."""
SPOKEN = {"rgb": "RGB", "nir": "near-infrared", "tir": "thermal"}
"""What it calls them in sentences."""


def listed(data: DataConfig, names: Mapping[str, str] = SPECTRA) -> str:
    """``RGB, NIR and TIR``, or those of them that the run uses."""
    *before, last = (names[modality] for modality in data.modalities)
    return f"{', '.join(before)} and {last}" if before else last


def thumbnail_size(data: DataConfig) -> tuple[int, int]:
    """Height and width of one thumbnail, in the shape that the network sees."""
    factor = LONG_SIDE / max(data.size)
    return round(data.size[0] * factor), round(data.size[1] * factor)


def lying(data: DataConfig) -> bool:
    """Whether the pictures are wider than high, as of vehicles; they need more of the page's width."""
    return data.size[1] > data.size[0]


def thumbnail(record: Record, modality: str, data: DataConfig) -> Pixels:
    """``(H, W, 3)`` uint8; an absent modality is an empty frame.

    Raises:
        UserError: the file does not decode.
    """
    height, width = thumbnail_size(data)
    path = record.paths.get(modality)
    if path is None:
        return empty_frame((height, width))
    own = read_record(replace(record, paths={modality: path}), data.black_and_white)[modality]
    return resize(own, (height, width)).transpose(1, 2, 0)


def empty_frame(size: tuple[int, int]) -> Pixels:
    """What stands in the place of a picture that is not there, ``(H, W, 3)``: a thin frame around nothing."""
    frame = np.full((*size, 3), FRAME, np.uint8)
    frame[2:-2, 2:-2] = EMPTY
    return frame


def spectra_of(record: Record, data: DataConfig) -> str:
    """``in RGB and NIR, without TIR``: what a sample's pictures show, for those who do not see them."""
    there = tuple(m for m in data.modalities if m in record.paths)
    absent = tuple(m for m in data.modalities if m not in record.paths)
    said = f"in {listed(replace(data, modalities=there))}" if there else ""
    return f"{said}, without {listed(replace(data, modalities=absent))}" if absent else said


def sample(record: Record, data: DataConfig) -> list[Pixels]:
    """Thumbnails of the modalities that the run uses."""
    return [thumbnail(record, modality, data) for modality in data.modalities]


def stacked(images: Sequence[Pixels], alt: str) -> Markup:
    """Pictures of one size above each other, with a thin gap, as one inline image."""
    gap = np.full((2, images[0].shape[1], 3), 128, np.uint8)
    rows = [part for image in images for part in (gap, image)][1:]
    return inline(np.concatenate(rows), alt)


def labelled(picture: Markup, data: DataConfig) -> Markup:
    """A stack of the spectra that says which is which."""
    names = Markup("").join(Markup('<span class="spectrum">{}</span>').format(SPECTRA[m]) for m in data.modalities)
    return Markup('<span class="stack">{}<span class="spectra">{}</span></span>').format(picture, names)


def inline(pixels: Pixels, alt: str) -> Markup:
    """An ``<img>`` whose data are in the page."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return Markup('<img src="data:image/jpeg;base64,{}" width="{}" height="{}" alt="{}">').format(
        data, width, height, alt
    )
