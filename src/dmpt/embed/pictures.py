"""What a caller has of a picture, as pixels: from a path, an image of Pillow, an array or a tensor."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.data.images import Pixels, read_image, to_uint8

Order = Literal["rgb", "bgr"]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are outside."""


def pixels_of(picture: Any, where: str, value_range: tuple[float, float], order: Order = "rgb") -> Pixels:
    """One picture as uint8 ``(3, H, W)``.

    Args:
        picture: a path; an image of Pillow; an array ``(H, W, 3)``, ``(H, W, 1)`` or ``(H, W)``; or a tensor
            ``(3, H, W)`` or ``(1, H, W)``. Numbers are uint8, uint16, or floats in [0, 1].
        where: what a message calls it.
        value_range: values of one 16-bit channel that become black and white; 16-bit colour keeps its high bytes.
        order: of an array's or a tensor's three channels; OpenCV's is ``bgr``.

    Raises:
        UserError: it is something else, out of range, or does not decode; or there is no such order.
    """
    if order not in get_args(Order):
        raise UserError(f"order is {order!r}; give rgb or bgr")
    if isinstance(picture, str | Path):
        return read_image(expanded(picture), value_range)
    if isinstance(picture, Image.Image):
        return to_uint8(ImageOps.exif_transpose(picture), value_range)
    if _is_tensor(picture):
        if picture.ndim != 3 or len(picture) not in (1, 3):
            raise UserError(f"{where} is a tensor of shape {tuple(picture.shape)}; give (3, H, W) or (1, H, W)")
        picture = picture.detach().movedim(0, -1).cpu().numpy()
    if not isinstance(picture, np.ndarray):
        kind = type(picture).__name__
        raise UserError(f"{where} is {kind}; give a path, an image of Pillow, an array (H, W, 3) or a tensor (3, H, W)")
    values = picture[..., None] if picture.ndim == 2 else picture
    if values.ndim != 3 or values.shape[-1] not in (1, 3) or not values.size:
        raise UserError(f"{where} is an array of shape {picture.shape}; give (H, W, 3), (H, W, 1) or (H, W)")
    if values.dtype == np.uint16 and values.shape[-1] == 1:
        return to_uint8(Image.fromarray(values[..., 0]), value_range)
    bytes_of = _eight_bits(values, where)
    if order == "bgr":
        bytes_of = bytes_of[..., ::-1]
    return np.array(np.broadcast_to(bytes_of, (*values.shape[:2], 3)).transpose(2, 0, 1), order="C")


def _is_tensor(thing: Any) -> bool:
    """Whether it is one of torch's, which is not imported for that: who has a tensor has imported it."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor)


def _eight_bits(values: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """Values ``(H, W, C)`` as bytes; of 16 bits of colour the high ones, as of a file."""
    if values.dtype == np.uint16:
        values = values >> 8
    elif np.issubdtype(values.dtype, np.floating):
        least, most = float(values.min()), float(values.max())
        if not (least >= 0 and most <= 1):  # NaN too
            raise UserError(f"{where} holds floats from {least:g} to {most:g}; give floats in [0, 1], or uint8")
        values = np.rint(values.astype(np.float64) * 255)
    elif values.dtype != np.uint8:
        raise UserError(f"{where} holds {values.dtype}; give uint8, uint16, or floats in [0, 1]")
    return values.astype(np.uint8)


def cropped(frame: Pixels, box: Sequence[float], where: str) -> Pixels:
    """What a box shows of a frame ``(3, H, W)``; what lies outside of the frame is left out.

    Raises:
        UserError: it is not four numbers, or nothing of it lies in the frame.
    """
    try:
        edges = np.asarray(box, np.float64)
    except (TypeError, ValueError):  # something in it is no number
        edges = np.empty(0)
    if edges.shape != (4,) or not np.isfinite(edges).all():
        shown = list(box) if isinstance(box, Iterable) else box
        raise UserError(f"{where} is {shown}; give left, top, right and bottom in pixels")
    (height, width), (left, top, right, bottom) = frame.shape[1:], (round(float(edge)) for edge in edges)
    part = frame[:, max(0, top) : max(0, min(height, bottom)), max(0, left) : max(0, min(width, right))]
    if not part.size:
        raise UserError(f"{where} is {[left, top, right, bottom]}: nothing of it lies in a frame of {width} x {height}")
    return np.ascontiguousarray(part)


def listed(given: Any) -> list[Any]:
    """What a caller gave for a modality: one picture, or several; a batch of arrays is several."""
    if isinstance(given, np.ndarray) or _is_tensor(given):
        return list(given) if given.ndim == 4 else [given]
    if isinstance(given, str | Path | Image.Image) or not isinstance(given, Iterable):
        return [given]
    return list(given)
