"""What an image file says beside its pixels: which way up they are is wanted, the rest must not cost the picture."""

import re
import struct

# TIFF and EXIF: kinds of integers by their number, and the tags that pixels are made of.
_INTEGERS = {1: "B", 3: "H", 4: "L"}
_ORIENTATION = 274
_PIXEL_TAGS = {
    *range(254, 267),  # size, bits, compression, colours, fill order
    *(273, _ORIENTATION, 277, 278, 279, 284, 292, 293),  # strips, samples, fax options
    *(317, 320, *range(322, 326), 338, 339, 347),  # predictor, palette, tiles, extra samples, JPEG tables
    *range(512, 522),  # JPEG of old
    *range(529, 533),  # YCbCr
}
# JPEG: APP0 (JFIF) and APP14 (Adobe) tell libjpeg the colours, from these lengths on.
_JPEG_COLOUR = {0xE0: 16, 0xEE: 14}
_JPEG_METADATA = {*range(0xE0, 0xF0), 0xFE}
_JPEG_ALONE = {0x01, *range(0xD0, 0xD8)}
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def exif_orientation(exif: bytes) -> int | None:
    """Which way up the pixels are, None where the block does not say; what else is in it is not read and may be wrong.

    Args:
        exif: the EXIF block, with or without its name before it; whole or not.
    """
    block = re.sub(b"^(Exif\0\0)+", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, at)
            if tag == _ORIENTATION and kind in _INTEGERS:
                return int(struct.unpack_from(f"{order}{_INTEGERS[kind]}", block, at + 8)[0])
    except struct.error:
        pass
    return None


def strip(data: bytes) -> tuple[bytes, int | None]:
    """The same picture without what Pillow could stumble over; pixels are as they were, byte for byte.

    Args:
        data: an image file, damaged or not. Only JPEG, PNG and TIFF have something to lose.

    Returns:
        The file with nothing in it but pixels and their colours, and its orientation in EXIF's numbers, None where it
        is not known (or still in the file: TIFF).
    """
    if data.startswith(b"\xff\xd8"):
        return _strip_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _strip_png(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _strip_tiff(data), None
    return data, None


def _strip_jpeg(data: bytes) -> tuple[bytes, int | None]:
    kept, dropped = [data[:2]], list[bytes]()
    at = 2
    while len(data) > at + 4 and data[at] == 0xFF and data[at + 1] != 0xDA:  # up to the scan
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        size = 0 if marker in _JPEG_ALONE else int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at : at + 2 + size]
        lost = marker in _JPEG_METADATA and size < _JPEG_COLOUR.get(marker, 2**16)
        (dropped if lost else kept).append(segment)
        at += 2 + size
    exif = b"".join(segment[10:] for segment in dropped if segment[4:10] == b"Exif\0\0")
    return b"".join([*kept, data[at:]]), _orientation(exif, dropped)


def _strip_png(data: bytes) -> tuple[bytes, int | None]:
    kept, dropped = [data[:8]], list[bytes]()
    at = 8
    while len(data) >= at + 12:
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        if end > len(data) or not kind.isalpha():
            break
        # A capital: nothing can be shown without it. Transparency is of the pixels too.
        (kept if kind[:1].isupper() or kind == b"tRNS" else dropped).append(data[at:end])
        at = end
    exif = b"".join(chunk[8:-4] for chunk in dropped if chunk[4:8] == b"eXIf")
    return b"".join([*kept, data[at:]]), _orientation(exif, dropped)


def _orientation(exif: bytes, dropped: list[bytes]) -> int | None:
    """From EXIF, else from uncompressed XMP, as Pillow takes them."""
    found = exif_orientation(exif)
    if found is None and (match := _XMP_ORIENTATION.search(b"".join(dropped))):
        return int(match[1])
    return found


def _strip_tiff(data: bytes) -> bytes:
    """The tags of the first picture that pixels are made of, in the place of all its tags: nothing else moves."""
    order = "<" if data.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}L", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        entries = [data[at : at + 12] for at in range(start + 2, start + 2 + 12 * count, 12)]
        kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _PIXEL_TAGS]
    except struct.error:
        return data
    table = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)  # and no further picture
    return data[:start] + table + data[start + len(table) :]
