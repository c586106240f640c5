"""The one function that decodes image files, and resizing without torch."""

import io
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from dmpt.base.errors import UserError
from dmpt.data.metadata import exif_orientation, strip
from dmpt.data.records import Record

# A file that claims more pixels is refused before any is decoded: a photo of 48 megapixels passes, a bomb does not.
_MAX_PIXELS = 2**26
_T = TypeVar("_T")
Pixels = npt.NDArray[np.uint8]
"""``(3, H, W)``, contiguous."""
# Named, because Pillow would otherwise hand a PostScript file to an external program whatever its suffix says.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
# What undoes each orientation of EXIF.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    path: Path, value_range: tuple[float, float], data: bytes | None = None, most: int = _MAX_PIXELS
) -> Pixels:
    """Decode one image to three 8-bit channels.

    - The camera's rotation (EXIF) is applied; no other metadata matter, whatever is wrong with them.
    - Colour of any kind (palette, CMYK, ...) becomes RGB; grey and 1-bit images are repeated to three equal channels.
    - Transparent pixels are laid over black, as padding is black; their hidden colours do not show.
    - Grey images of 16 bits or more, integer or float, are scaled linearly from ``value_range``, rounded and clipped;
      NaN is black. 16-bit *colour*, and 16-bit grey with transparency, is reduced to its high bytes by Pillow and does
      not heed ``value_range``.
    - Of several frames the first is read.

    Args:
        path: as for ``decode``.
        value_range: values that become 0 and 255 in images of more than 8 bits; the same for a whole data set.
        data: what is in the file, where it has been read.
        most: pixels that are decoded.
    """
    return decode(path, lambda image: to_uint8(image, value_range), data, most)


def contents_of(path: Path) -> bytes:
    """What is in an image file.

    Raises:
        UserError: it is missing or unreadable, or no file.
    """
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):  # reading would wait for ever, or never end
            raise UserError(f"{path} is a pipe or a device, not a file; remove it")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore it or check its rights") from error


def decode(path: Path, convert: Callable[[Image.Image], _T], data: bytes | None = None, most: int = _MAX_PIXELS) -> _T:
    """Open one image, turn it as its camera says, and convert it.

    Args:
        path: an image of one of the usual formats; contents decide, not the suffix.
        convert: from the rotated picture with its own values to what is wanted, which is returned.
        data: what is in the file, where it has been read.
        most: pixels that are decoded; of more none is.

    Raises:
        UserError: the file is missing, unreadable, empty, damaged, too large or no image.
    """
    if data is None:
        data = contents_of(path)
    try:
        try:
            return _decode(data, None, convert, most)
        except Exception:  # Pillow's decoders raise whatever a damaged file drives them to; so does odd metadata
            return _decode(*strip(data), convert, most)
    except Exception as error:
        raise UserError(f"{path} {_diagnose(data, error, most)}") from error


def size_of(path: Path, data: bytes) -> tuple[int, int]:
    """Width and height that the head of an image file claims; nothing is decoded.

    Args:
        path: for messages.
        data: what is in the file.

    Raises:
        UserError: it is empty or no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.size
    except Exception as error:  # as in ``decode``
        raise UserError(f"{path} {_diagnose(data, error, _MAX_PIXELS)}") from error


def _decode(data: bytes, orientation: int | None, convert: Callable[[Image.Image], _T], most: int) -> _T:
    # From memory: given a path, Pillow maps uncompressed TIFFs and garbles those whose rotation swaps the sides.
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        if image.width * image.height > most:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        image.load()  # what a PNG says after its pixels too
        turn = _TURNS.get(orientation or _orientation(image))
        return convert(image if turn is None else image.transpose(turn))


def _orientation(image: Image.Image) -> int:
    """As the camera says; 1 (as it is) where nothing can be read."""
    exif = image.info.get("exif")
    if isinstance(exif, bytes) and (found := exif_orientation(exif)):
        return found
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's reader of EXIF is as easily driven astray as its decoders
        found = None
    return found if isinstance(found, int) else 1


def is_deep(image: Image.Image) -> bool:
    """Whether it is grey with more than 8 bits, so that a value range says how it is shown."""
    return image.mode.startswith("I") or image.mode == "F"


def to_uint8(image: Image.Image, value_range: tuple[float, float]) -> Pixels:
    """Three 8-bit channels of a picture that is turned already, as ``read_image`` describes."""
    if not is_deep(image):
        return eight_bits(image)
    low, high = value_range
    values = (np.asarray(image, dtype=np.float64) - low) * (255 / (high - low))
    grey = np.rint(np.nan_to_num(values, nan=0.0).clip(0, 255)).astype(np.uint8)
    return np.repeat(grey[None], 3, axis=0)


def eight_bits(image: Image.Image) -> Pixels:
    """Three 8-bit channels of what is not deep, as ``read_image`` describes: no value range has a part in it."""
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode != "RGB":  # else it would be copied
        image = image.convert("RGB")
    # Channel by channel: cheaper than all at once and sorted afterwards.
    channels = [np.frombuffer(image.tobytes("raw", channel), np.uint8) for channel in "RGB"]
    return np.concatenate(channels).reshape(3, image.height, image.width)


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """To height and width, bicubic and antialiased, without torch; within one grey level of what the network sees."""
    picture = Image.fromarray(pixels.transpose(1, 2, 0)).resize(size[::-1], Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _diagnose(data: bytes, error: Exception, most: int) -> str:
    """What a file that does not decode looks like, and what to do about it."""
    head = data[:512].lstrip().lower()
    if not data:
        return "is empty (0 bytes); copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the image itself; run `git lfs pull` where it came from"
    if head.startswith((b"<!doctype html", b"<html")):
        return "is a web page (HTML), not an image; the download failed, repeat it"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large ({error}, at most {most} are read); make it smaller"
    if isinstance(error, MemoryError):
        return "does not fit into memory; use fewer workers, or make it smaller"
    if isinstance(error, UnidentifiedImageError):
        return f"is damaged or no image ({', '.join(_FORMATS)} are read); restore or remove it"
    return f"is truncated or damaged ({error}); restore or remove it"


def read_record(
    record: Record, value_range: tuple[float, float], contents: Mapping[Path, bytes] | None = None
) -> dict[str, Pixels]:
    """Decode each modality that a sample has, as ``read_image`` does; a file that they share is decoded once and cut.

    Args:
        record: the sample.
        value_range: as for ``read_image``.
        contents: what is in its files, where they have been read.

    Raises:
        UserError: as ``decode``, or a shared file is not as wide as its columns.
    """
    read = contents or {}
    files = {path: read_image(path, value_range, read.get(path)) for path in dict.fromkeys(record.paths.values())}
    if not record.columns:
        return {modality: files[path] for modality, path in record.paths.items()}
    whole = {path: cut(path, pixels, record.columns) for path, pixels in files.items()}
    return {modality: np.ascontiguousarray(whole[path][modality]) for modality, path in record.paths.items()}


def cut(path: Path, pixels: npt.NDArray[Any], columns: Mapping[str, tuple[int, int]]) -> dict[str, npt.NDArray[Any]]:
    """The modalities that lie side by side in a file's pixels ``(..., H, W)``, as views; a UserError if not."""
    height, width = pixels.shape[-2:]
    wanted = max(right for _, right in columns.values())
    if width != wanted:
        raise UserError(
            f"{path} is {width} x {height} pixels, but the layout puts {len(columns)} "
            f"modalities side by side in {wanted}; restore it, or correct data.layout"
        )
    return {modality: pixels[..., left:right] for modality, (left, right) in columns.items()}
