"""A file that ``dmpt export`` wrote: what it says of itself, whether it is as it was written, and how it runs.

What it says are ONNX metadata (``metadata_props``), which any runtime shows; here they are read without one. The last
of them is the sha256 of all bytes before it: it tells a file that was cut or changed, but is no signature.
"""

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from dmpt import __version__
from dmpt.adapter.calibration import Calibration, parse
from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically
from dmpt.data.images import Pixels, resize
from dmpt.retrieval.embeddings import Embeddings, Features
from dmpt.runtime import onnx, openvino
from dmpt.runtime.runtime import Images, Present, Run, Runtime, calibrated_at
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.values import checked

Input = Literal["normalised", "uint8", "pixels"]
"""What a graph is fed: normalised float32 NCHW; or pixels, which it normalises: uint8 NHWC, or float32 NCHW, 0..255."""
FORMAT = "dmpt-onnx/1"
_MOST_SAID = 100 << 20
_PROPERTIES = 14
"""The field of ONNX's ModelProto that holds metadata."""
_SEAL = b"\x72\x4f\x0a\x0bdmpt.sha256\x12\x40"
"""How the last of them begins; 64 hexadecimal digits follow."""


@dataclass(frozen=True, eq=False)
class Exported:
    """What an exported file says of itself.

    Attributes:
        adapter: sha256 of ``adapter.safetensors``.
        backbone: sha256 of the backbone's weights.
        data: how pictures are prepared, as of ``Runtime``.
        inputs: modalities that the graph takes, in the order of its inputs.
        input: what it is fed.
        precision: fp32 or int8.
        object: person or vehicle.
        licence: of the backbone's weights and of the data, as far as known.
        parity: the largest difference from torch that was found at export.
        standardisation: of ``Embeddings``, or None.
        calibration: of the adapter, or of the file itself where that is int8.
        cost: of int8, what the same test set gave before and after; None of fp32.
    """

    adapter: str
    backbone: str | None
    data: DataConfig
    inputs: tuple[Literal["rgb", "nir", "tir"], ...]
    input: Input
    precision: Literal["fp32", "int8"]
    object: str
    licence: str
    parity: float
    standardisation: Features | None = None
    calibration: Calibration | None = None
    cost: Mapping[str, Any] | None = None

    def to_metadata(self) -> dict[str, str]:
        """As ONNX holds it: texts, of which those of more than a word are JSON."""
        data, table = self.data, self.standardisation
        said: dict[str, Any] = {
            "modalities": data.modalities,
            "inputs": self.inputs,
            "size": data.size,
            "mean": data.mean,
            "std": data.std,
            "value_range": data.value_range,
            "parity": self.parity,
            "cost": self.cost,
            "standardisation": None if table is None else table.tolist(),
        }
        texts = {
            "format": FORMAT,
            "version": __version__,
            "adapter_sha256": self.adapter,
            "backbone_sha256": self.backbone or "",
            "input": self.input,
            "resize": "bicubic, antialias",
            "precision": self.precision,
            "object": self.object,
            "licence": self.licence,
            **{name: json.dumps(value) for name, value in said.items() if value is not None},
        }
        if self.calibration is not None:
            texts["calibration"], cohort = self.calibration.to_files()
            if cohort is not None:
                texts["cohort"] = base64.b64encode(cohort).decode()
        return {f"dmpt.{name}": text for name, text in texts.items()}


def write(graph: bytes, found: Exported, path: Path) -> None:
    """A graph, as ONNX, and what it says of itself.

    Raises:
        UserError: the file cannot be written; what was there is untouched.
    """
    parts = [graph, *map(_property, *zip(*found.to_metadata().items(), strict=True))]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    parts.append(_SEAL + digest.hexdigest().encode())

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(parts)

    write_atomically(path, fill)


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


def read(path: Path) -> Exported:
    """What a file says of itself.

    Raises:
        UserError: it cannot be read, another program wrote it, or it was changed.
    """
    try:
        with path.open("rb") as file:
            said = dict(_properties(file, os.fstat(file.fileno()).st_size))
            whole = _is_sealed(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a file that dmpt export wrote") from error
    except ValueError as error:
        raise UserError(f"{path} is cut short, or no ONNX file ({error}); export it again with dmpt export") from error
    own = {name.removeprefix("dmpt."): text for name, text in said.items() if name.startswith("dmpt.")}
    found = own.get("format")
    if found is None:
        raise UserError(f"{path} does not say how it takes pictures: dmpt export did not write it; export a run")
    if found != FORMAT:
        raise UserError(f"{path} has format {found!r}; this version of dmpt ({__version__}) reads {FORMAT!r}")
    if not whole:
        raise UserError(f"{path} is not as dmpt export wrote it: it was changed since; export it again")
    try:
        return _exported(own, path)
    except (KeyError, ValueError, TypeError, UserError) as error:
        what = f"it lacks dmpt.{error.args[0]}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} says what dmpt export does not write ({what}); export it again") from error


def _exported(own: Mapping[str, str], path: Path) -> Exported:
    names = ("size", "mean", "std", "value_range", "modalities")
    table = np.array(json.loads(own.get("standardisation", "null")), np.float32)
    cohort = base64.b64decode(own["cohort"], validate=True) if "cohort" in own else None
    said = {
        "adapter": own["adapter_sha256"],
        "backbone": own["backbone_sha256"] or None,
        "data": {name: json.loads(own[name]) for name in names},
        "inputs": json.loads(own["inputs"]),
        "parity": json.loads(own["parity"]),
        **{name: own[name] for name in ("input", "precision", "object", "licence")},
    }
    found = checked(Exported, said, "metadata")
    data = found.data
    if None in (data.mean, data.std) or data.value_range == "auto" or not {*found.inputs} <= {*data.modalities}:
        raise ValueError("its preprocessing is not whole")
    return replace(
        found,
        standardisation=table.reshape(8, 2) if table.size > 1 else None,
        calibration=parse(own["calibration"], str(path), cohort) if "calibration" in own else None,
        cost=json.loads(own["cost"]) if "cost" in own else None,
    )


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
        elif length > _MOST_SAID:
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


class _Encode:
    """Images to embeddings, by a graph."""

    def __init__(self, found: Exported, run: Run) -> None:
        self._found, self._run = found, run
        self._places = [MODALITIES.index(name) for name in found.inputs]

    def __call__(self, images: Images, present: Present) -> Embeddings:
        """As ``runtime.Encode``; of a graph that normalises the images are pixels, 0..255."""
        images, present = np.asarray(images), np.asarray(present)
        given: list[NDArray[Any]] = [np.ascontiguousarray(images[place]) for place in self._places]
        if self._found.input == "uint8":
            given = [np.ascontiguousarray(own.transpose(0, 2, 3, 1).astype(np.uint8)) for own in given]
        if len(given) > 1:
            given.append(np.ascontiguousarray(present[self._places].T))
        flat, *shared = self._run(given)
        features = np.zeros((len(flat), len(MODALITIES), flat.shape[1] // len(self._places)), np.float32)
        features[:, self._places] = flat.reshape(len(flat), len(self._places), -1)
        return Embeddings(features, present.T.copy(), shared[0] if shared else None, self._found.standardisation)


class _Transform:
    """Resized by Pillow, within one grey level of what training saw, and normalised unless the graph does it."""

    def __init__(self, found: Exported) -> None:
        self._size, self._normalise = found.data.size, found.input == "normalised"
        levels = (np.array(values, np.float64) * 255 for values in (found.data.mean, found.data.std))
        self._mean, self._std = (own.astype(np.float32)[:, None, None] for own in levels)

    def __call__(self, images: Mapping[str, Pixels], out: Mapping[str, NDArray[np.float32]]) -> None:
        for name, pixels in images.items():
            place = out[name]
            place[...] = resize(pixels, self._size)
            if self._normalise:
                place -= self._mean
                place /= self._std


def load(path: Path, precision: str | None, runtime: Literal["onnx", "openvino"]) -> Runtime:
    """A file that runs; arguments and errors are those of ``dmpt.load``."""
    found = read(path)
    known = ("fp32", "bf16") if runtime == "openvino" and found.precision == "fp32" else (found.precision,)
    if precision not in (None, *known):
        raise UserError(f"{path} computes in {' or '.join(known)} with {runtime}, not in {precision}; leave that out")
    chosen = precision or found.precision
    if precision is None and found.calibration is not None and found.calibration.precision in known:
        chosen = found.calibration.precision
    session = openvino.session if runtime == "openvino" else onnx.session
    encode = _Encode(found, session(path, chosen))
    calibration = calibrated_at(found.calibration, chosen, path)
    return Runtime(runtime, found.data, found.inputs, chosen, found.adapter, calibration, _Transform(found), encode)
