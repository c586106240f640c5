"""Metadata of an ONNX file (``metadata_props``), which any runtime shows; written and read here without one.

The last of them is the sha256 of all bytes before it: it tells a file that was cut or changed, but is no signature.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

_MOST = 100 << 20
_PROPERTIES = 14
"""The field of ONNX's ModelProto that holds metadata."""
_SEAL = b"\x72\x4f\x0a\x0bdmpt.sha256\x12\x40"
"""How the last of them begins; 64 hexadecimal digits follow."""


def sealed(graph: bytes, said: Mapping[str, str]) -> list[bytes]:
    """A graph, what is said of it, and the checksum: parts of a file."""
    parts = [graph, *map(_property, *zip(*said.items(), strict=True))]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return [*parts, _SEAL + digest.hexdigest().encode()]


def unsealed(path: Path) -> tuple[dict[str, str], bool]:
    """What a file says, and whether its checksum is right.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ONNX file, or is cut short.
    """
    with path.open("rb") as file:
        return dict(_properties(file, os.fstat(file.fileno()).st_size)), _is_sealed(file)


def _property(name: str, text: str) -> bytes:
    """One of the metadata: what ends a message of protobuf belongs to it, as if it stood further up."""
    entry = b"".join(_field(number, value.encode()) for number, value in ((1, name), (2, text)))
    return _field(_PROPERTIES, entry)


def _field(number: int, content: bytes) -> bytes:
    """A field of bytes: its number, its length, and itself."""
    length, size = b"", len(content)
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([8 * number + 2]) + length + bytes([size]) + content


def _properties(file: BinaryIO, size: int) -> Iterator[tuple[str, str]]:
    """Metadata of an ONNX file, whose other fields are passed over.

    Raises:
        ValueError: it is none, or is cut short.
    """
    while file.tell() < size:
        field, kind = divmod(_varint(file), 8)
        if kind == 0:
            _varint(file)
            continue
        length = {1: 8, 5: 4}.get(kind) if kind != 2 else _varint(file)
        if not field or length is None or length > size - file.tell():
            raise ValueError(f"byte {file.tell()} makes no sense")
        if field != _PROPERTIES:
            file.seek(length, os.SEEK_CUR)
        elif length > _MOST:
            raise ValueError(f"{length} bytes of metadata")
        else:
            yield _entry(file, file.tell() + length)


def _entry(file: BinaryIO, end: int) -> tuple[str, str]:
    """Key and value, fields 1 and 2."""
    found = {1: "", 2: ""}
    while file.tell() < end:
        field, kind = divmod(_varint(file), 8)
        length = _varint(file)
        if kind != 2 or length > end - file.tell():
            raise ValueError(f"byte {file.tell()} makes no sense")
        found[field] = file.read(length).decode()
    return found[1], found[2]


def _varint(file: BinaryIO) -> int:
    """Seven bits a byte, the lowest first."""
    number = 0
    for place in range(10):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends too early")
        number |= (byte[0] & 127) << 7 * place
        if byte[0] < 128:
            return number
    raise ValueError(f"byte {file.tell()} makes no sense")


def _is_sealed(file: BinaryIO) -> bool:
    """Whether it ends with the sha256 of all that is before."""
    left = os.fstat(file.fileno()).st_size - len(_SEAL) - 64
    digest = hashlib.sha256()
    file.seek(0)
    while left > 0 and (piece := file.read(min(left, 1 << 20))):
        digest.update(piece)
        left -= len(piece)
    return file.read() == _SEAL + digest.hexdigest().encode()
