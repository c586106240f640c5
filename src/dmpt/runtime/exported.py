"""A file that ``dmpt export`` wrote: what it says of itself in its metadata, and how it runs."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmpt import __version__
from dmpt.adapter.calibration import Calibration, parse
from dmpt.base.errors import UserError, one_line
from dmpt.base.files import write_atomically
from dmpt.data.images import Pixels, resize
from dmpt.retrieval.embeddings import Embeddings, Features
from dmpt.runtime import onnx, openvino
from dmpt.runtime.metadata import sealed, unsealed
from dmpt.runtime.runtime import Images, Present, Run, Runtime, calibrated_at
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.numbers import Share
from dmpt.settings.rules import check
from dmpt.settings.values import checked

Input = Literal["normalised", "uint8", "pixels"]
"""What a graph is fed: normalised float32 NCHW; or pixels, which it normalises: uint8 NHWC, or float32 NCHW, 0..255."""
FORMAT = "dmpt-onnx/1"
_MOST_PIXELS = 4096
"""Of a side: no transformer takes more, and a file that says so would have memory taken for them."""


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
    parity: Share
    standardisation: Features | None = None
    calibration: Calibration | None = None
    cost: Mapping[str, Any] | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the graph's inputs, without the batch."""
        (height, width), count = self.data.size, len(self.inputs)
        images = [(height, width, 3) if self.input == "uint8" else (3, height, width)] * count
        return [*images, (count,)] if count > 1 else [*images]

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
    parts = sealed(graph, found.to_metadata())

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.writelines(parts)

    write_atomically(path, fill)


def read(path: Path) -> Exported:
    """What a file says of itself.

    Raises:
        UserError: it cannot be read, another program wrote it, or it was changed.
    """
    try:
        said, whole = unsealed(path)
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
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError, UserError) as error:
        what = f"it lacks dmpt.{error.args[0]}" if isinstance(error, KeyError) else one_line(str(error))[:300]
        raise UserError(f"{path} says what dmpt export does not write ({what}); export it again") from error


def _exported(own: Mapping[str, str], path: Path) -> Exported:
    names = ("size", "mean", "std", "value_range", "modalities")
    cohort = base64.b64decode(own["cohort"], validate=True) if "cohort" in own else None
    said = {
        "adapter": own["adapter_sha256"],
        "backbone": own["backbone_sha256"] or None,
        "data": {"pad": 0, **{name: json.loads(own[name]) for name in names}},
        "inputs": json.loads(own["inputs"]),
        "parity": json.loads(own["parity"]),
        "cost": json.loads(own.get("cost", "null")),
        **{name: own[name] for name in ("input", "precision", "object", "licence")},
    }
    found = checked(Exported, said, "metadata")
    data = found.data
    check(Config(data=data))
    if None in (data.mean, data.std) or data.value_range == "auto":
        raise ValueError("its preprocessing is not whole")
    if not found.inputs or list(found.inputs) != [name for name in data.modalities if name in found.inputs]:
        raise ValueError(f"inputs are {[*found.inputs]}, of {[*data.modalities]}")
    if max(data.size) > _MOST_PIXELS:
        raise ValueError(f"a size of {data.size[0]}x{data.size[1]}")
    table = None
    if "standardisation" in own:
        table = np.array(json.loads(own["standardisation"]), np.float32).reshape(8, 2)
        if not np.isfinite(table).all():
            raise ValueError("a standardisation that is no number")
    calibration = parse(own["calibration"], str(path), cohort) if "calibration" in own else None
    return replace(found, standardisation=table, calibration=calibration)


class GraphEncoder:
    """Images to embeddings, by a graph.

    Args:
        found: what it takes.
        run: what runs it.
        batches: run all samples of a call at once; else one by one.
    """

    def __init__(self, found: Exported, run: Run, batches: bool = True) -> None:
        self._found, self._run, self._batches = found, run, batches
        self._places = [MODALITIES.index(name) for name in found.inputs]

    def __call__(self, images: Images, present: Present) -> Embeddings:
        """As ``runtime.Encode``; of a graph that normalises the images are pixels, 0..255."""
        images, present = np.asarray(images), np.asarray(present)
        given: list[NDArray[Any]] = [np.ascontiguousarray(images[place]) for place in self._places]
        if self._found.input == "uint8":
            given = [np.ascontiguousarray(own.transpose(0, 2, 3, 1).astype(np.uint8)) for own in given]
        if len(given) > 1:
            given.append(np.ascontiguousarray(present[self._places].T))
        size = len(images[0]) if self._batches else 1
        parts = [self._run([own[row : row + size] for own in given]) for row in range(0, len(images[0]), size)]
        flat, *shared = (np.concatenate(own) for own in zip(*parts, strict=True))
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
    # Dynamic quantisation scales by all that a run holds: in a batch a vector would depend on the other samples.
    encode = GraphEncoder(found, session(path, chosen, found.shapes), batches=found.precision != "int8")
    calibration = calibrated_at(found.calibration, chosen, path)
    return Runtime(runtime, found.data, found.inputs, chosen, found.adapter, calibration, _Transform(found), encode)
