"""What other programs ask for beside the file, in their own words."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.base.files import write_atomically
from dmpt.runtime.exported import Exported
from dmpt.settings.modalities import MODALITIES

_TYPES = {"normalised": "TYPE_FP32", "pixels": "TYPE_FP32", "uint8": "TYPE_UINT8"}
_DEEPSTREAM, _BOXMOT = "deepstream_tracker.yml", "boxmot_embeddings.py"


@contextmanager
def recipes_beside(path: Path, found: Exported, width: int, shared: int) -> Iterator[list[Path]]:
    """Inside, recipes lie in a folder beside an exported file, and none of an earlier one's; after an error as before.

    Args:
        path: the file, ``x.onnx``; the folder is ``x.recipes``. Other files in it are left alone.
        found: what it says of itself.
        width: of ``features``.
        shared: of the shared part; 0 = it has none.

    Yields:
        What was written. boxmot and DeepStream take graphs with one input.

    Raises:
        UserError: a file cannot be written.
    """
    folder = path.with_suffix(".recipes")
    texts = recipes_of(path, found, width, shared)
    before = {place: _content(folder / place) for place in (*texts, _DEEPSTREAM, _BOXMOT)}
    try:
        for place in before:
            _put(folder / place, texts[place].encode("utf-8", "surrogateescape") if place in texts else None)
        yield [folder / place for place in texts]
    except BaseException:
        for place, content in before.items():
            with suppress(UserError):  # where it could not be written it is as it was
                _put(folder / place, content)
        for place in texts:
            with suppress(OSError):  # it holds something, or was never made
                for parent in Path(folder.name, place).parents[:-1]:
                    (path.parent / parent).rmdir()
        raise


def _content(path: Path) -> bytes | None:
    """Of a file; None where there is none."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); remove it") from error


def _put(path: Path, content: bytes | None) -> None:
    """The file holds this, or is not there."""
    if content is not None:
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        return
    with suppress(FileNotFoundError, NotADirectoryError):
        try:
            path.unlink()
        except (IsADirectoryError, PermissionError) as error:
            raise UserError(f"{path} is in the way ({error.strerror}); remove it") from error


def recipes_of(path: Path, found: Exported, width: int, shared: int) -> dict[str, str]:
    """Texts by their places in the folder; arguments are those of ``recipes_beside``."""
    name = path.stem
    texts = {
        "preprocess.json": _preprocess(found),
        f"triton/{name}/config.pbtxt": _triton(name, found, width, shared),
    }
    if len(found.inputs) == 1:
        texts[_BOXMOT] = _boxmot(path, found, width)
        if found.input != "uint8":
            texts[_DEEPSTREAM] = _deepstream(path, found, width)
    return texts


def _batch(found: Exported) -> int:
    """Samples in a run: int8 scales by all that one holds, and vectors of a batch would depend on each other."""
    return 1 if found.precision == "int8" else 64


def _preprocess(found: Exported) -> str:
    """For those who feed it by hand."""
    data = found.data
    fed = {
        "normalised": "float32 (batch, 3, H, W), RGB: (pixels / 255 - mean) / std",
        "uint8": "uint8 (batch, H, W, 3), RGB: pixels as they are; the graph normalises",
        "pixels": "float32 (batch, 3, H, W), RGB: pixels from 0 to 255; the graph normalises",
    }[found.input]
    said = {
        "inputs": found.inputs,
        "input": fed,
        "present": None if len(found.inputs) == 1 else f"bool (batch, {len(found.inputs)}), in the order of inputs",
        "batch": "any" if _batch(found) > 1 else "1: int8 scales by all that a run holds, other samples too",
        "size": {"height": data.size[0], "width": data.size[1]},
        "resize": "bicubic, antialiased, to this size whatever the shape was (Pillow: Image.Resampling.BICUBIC)",
        "mean": data.mean,
        "std": data.std,
        "value_range": data.value_range,
        "of_16_bits": "(value - value_range[0]) * 255 / (value_range[1] - value_range[0]), rounded and clipped",
    }
    return json.dumps(said, indent=2) + "\n"


def _triton(name: str, found: Exported, width: int, shared: int) -> str:
    names = [*found.inputs, "present"] if len(found.inputs) > 1 else ["images"]
    kinds = {"present": "TYPE_BOOL"}
    inputs = [
        (own, kinds.get(own, _TYPES[found.input]), ", ".join(map(str, shape)))
        for own, shape in zip(names, found.shapes, strict=True)
    ]
    outputs = [("features", "TYPE_FP32", str(width)), *([("shared", "TYPE_FP32", str(shared))] if shared else [])]
    batch = _batch(found)
    parts = [
        f"# The model is {name}/1/model.onnx of the model repository.",
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        *([] if batch > 1 else ["# int8 scales by all that a run holds: in batches others would change a vector."]),
        f"max_batch_size: {batch}",
        *(_tensors(kind, tensors) for kind, tensors in (("input", inputs), ("output", outputs))),
        *(["dynamic_batching { max_queue_delay_microseconds: 5000 }"] if batch > 1 else []),
    ]
    return "\n".join(parts) + "\n"


def _tensors(kind: str, tensors: list[tuple[str, str, str]]) -> str:
    inner = ",\n".join(f'  {{ name: "{name}", data_type: {type_}, dims: [ {dims} ] }}' for name, type_, dims in tensors)
    return f"{kind} [\n{inner}\n]"


def _deepstream(path: Path, found: Exported, width: int) -> str:
    """The part ReID of NvDCF's settings. Its scale is one number, so that a graph for it normalises by itself."""
    height, columns = found.data.size
    said = [
        "DeepStream resizes in its own way, and not bicubically with antialiasing as training did: its vectors differ",
        "from those of dmpt. Compare them with each other, at thresholds of their own.",
    ]
    if found.input != "pixels":
        said.insert(0, "This graph takes normalised images, which DeepStream cannot make: export with --input pixels.")
    comment = "\n".join(f"# {line}" for line in said)
    return f"""{comment}
ReID:
  reidType: 2
  onnxFile: {json.dumps(path.name)}
  modelEngineFile: {json.dumps(path.stem + ".engine")}
  batchSize: {_batch(found)}
  reidFeatureSize: {width}
  inferDims: [3, {height}, {columns}]
  inputOrder: 0
  colorFormat: 0
  networkMode: 0
  offsets: [0.0, 0.0, 0.0]
  netScaleFactor: 1.0
  addFeatureNormalization: 0
  keepAspc: 0
"""


def _boxmot(path: Path, found: Exported, width: int) -> str:
    """Boxmot's own backend resizes bilinearly and takes ImageNet's mean: the vectors would be others."""
    name = found.inputs[0]
    place = MODALITIES.index(name)
    return f'''"""Appearance for a tracker of boxmot: hand it vectors, and leave its own ReID backend out.

    tracker.update(detections, frame, embeddings(frame, detections[:, :4]))
"""

from pathlib import Path

import dmpt
import numpy as np

model = dmpt.load(Path(__file__).resolve().parents[1] / {json.dumps(path.name)})


def embeddings(frame, boxes):
    """Vectors of length 1, (N, {width}): of boxes (left, top, right, bottom) in a frame of OpenCV."""
    if not len(boxes):
        return np.empty((0, {width}), np.float32)
    return model.embed({name}=frame, boxes=boxes, order="bgr").features[:, {place}]
'''
