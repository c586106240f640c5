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
from dmpt.pages.frame import render
from dmpt.settings.config import DataConfig

Pixels = NDArray[np.uint8]

_FRAME, _EMPTY = 150, 238
"""Grey values of the frame of a picture that is not there, and of what it encloses."""
SPECTRA = {"rgb": "RGB", "nir": "NIR", "tir": "TIR"}
"""What the page calls the modalities in tables and beside pictures."""
SPOKEN = {"rgb": "RGB", "nir": "near-infrared", "tir": "thermal"}
"""What it calls them in sentences."""
_LONG_SIDE = 144
"""Of a thumbnail, pixels: sharp on the page, a few KB in the file."""
_QUALITY = 80


def listed(modalities: Sequence[str], names: Mapping[str, str] = SPECTRA) -> str:
    """``RGB, NIR and TIR``, or those of them that there are."""
    *before, last = (names[modality] for modality in modalities)
    return f"{', '.join(before)} and {last}" if before else last


def lying(data: DataConfig) -> bool:
    """Whether the pictures are wider than high, as of vehicles; they need more of the page's width."""
    return data.size[1] > data.size[0]


def _thumbnail(record: Record, modality: str, data: DataConfig) -> Pixels:
    """``(H, W, 3)`` uint8, in the shape that the network sees; an absent modality is a thin frame around nothing.

    Raises:
        UserError: the file does not decode.
    """
    factor = _LONG_SIDE / max(data.size)
    size = round(data.size[0] * factor), round(data.size[1] * factor)
    path = record.paths.get(modality)
    if path is None:
        frame = np.full((*size, 3), _FRAME, np.uint8)
        frame[2:-2, 2:-2] = _EMPTY
        return frame
    own = read_record(replace(record, paths={modality: path}), data.black_and_white)[modality]
    return resize(own, size).transpose(1, 2, 0)


def thumbnails(record: Record, data: DataConfig) -> list[Pixels]:
    """Of the modalities that the run uses."""
    return [_thumbnail(record, modality, data) for modality in data.modalities]


def spectra_of(record: Record, data: DataConfig) -> str:
    """``in RGB and NIR, without TIR``: what a sample's pictures show, for those who do not see them."""
    there = [m for m in data.modalities if m in record.paths]
    absent = [m for m in data.modalities if m not in record.paths]
    said = f"in {listed(there)}" if there else ""
    return f"{said}, without {listed(absent)}" if absent else said


def stacked(images: Sequence[Pixels], alt: str, labels: Sequence[str] = ()) -> Markup:
    """Pictures of one size above each other, with a thin gap, as one image whose data are in the page.

    Args:
        images: ``(H, W, 3)`` each.
        alt: what they show, for those who do not see them.
        labels: modalities to name beside them.
    """
    gap = np.full((2, images[0].shape[1], 3), 128, np.uint8)
    pixels = np.concatenate([part for image in images for part in (gap, image)][1:])
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    data, (height, width) = base64.b64encode(buffer.getvalue()).decode(), pixels.shape[:2]
    names = [SPECTRA[modality] for modality in labels]
    return render("pages/picture.html", data=data, width=width, height=height, alt=alt, labels=names)
