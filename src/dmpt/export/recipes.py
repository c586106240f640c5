"""What other programs ask for beside the file, in their own words."""

import json
from pathlib import Path

from dmpt.base.files import write_text
from dmpt.runtime.exported import Exported
from dmpt.settings.modalities import MODALITIES

_TYPES = {"normalised": "TYPE_FP32", "pixels": "TYPE_FP32", "uint8": "TYPE_UINT8"}


def write_recipes(path: Path, found: Exported, width: int, shared: int) -> list[Path]:
    """Write them into a folder beside an exported file.

    Args:
        path: the file, ``x.onnx``; the folder is ``x.recipes``.
        found: what it says of itself.
        width: of ``features``.
        shared: of the shared part; 0 = it has none.

    Returns:
        What was written. boxmot and DeepStream take graphs with one input.

    Raises:
        UserError: a file cannot be written.
    """
    folder, name = path.with_suffix(".recipes"), path.stem
    texts = {
        "preprocess.json": _preprocess(found),
        f"triton/{name}/config.pbtxt": _triton(name, found, width, shared),
    }
    if len(found.inputs) == 1 and found.input != "uint8":
        texts["deepstream_tracker.yml"] = _deepstream(path, found, width)
        texts["boxmot.py"] = _boxmot(path, found, width)
    for place, text in texts.items():
        write_text(folder / place, text)
    return [folder / place for place in texts]


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
        "size": {"height": data.size[0], "width": data.size[1]},
        "resize": "bicubic, antialiased, to this size whatever the shape was (Pillow: Image.Resampling.BICUBIC)",
        "mean": data.mean,
        "std": data.std,
        "value_range": data.value_range,
        "of_16_bits": "(value - value_range[0]) * 255 / (value_range[1] - value_range[0]), rounded and clipped",
    }
    return json.dumps(said, indent=2) + "\n"


def _triton(name: str, found: Exported, width: int, shared: int) -> str:
    height, columns = found.data.size
    dims = f"{height}, {columns}, 3" if found.input == "uint8" else f"3, {height}, {columns}"
    one = len(found.inputs) == 1
    inputs = [(own, _TYPES[found.input], dims) for own in (["images"] if one else found.inputs)]
    if not one:
        inputs.append(("present", "TYPE_BOOL", str(len(found.inputs))))
    outputs = [("features", "TYPE_FP32", str(width)), *([("shared", "TYPE_FP32", str(shared))] if shared else [])]
    parts = [
        f"# The model is {name}/1/model.onnx of the model repository.",
        f'name: "{name}"',
        'backend: "onnxruntime"',
        "max_batch_size: 64",
        *(_tensors(kind, tensors) for kind, tensors in (("input", inputs), ("output", outputs))),
        "dynamic_batching { max_queue_delay_microseconds: 5000 }",
    ]
    return "\n".join(parts) + "\n"


def _tensors(kind: str, tensors: list[tuple[str, str, str]]) -> str:
    inner = ",\n".join(f'  {{ name: "{name}", data_type: {type_}, dims: [ {dims} ] }}' for name, type_, dims in tensors)
    return f"{kind} [\n{inner}\n]"


def _deepstream(path: Path, found: Exported, width: int) -> str:
    """The part ReID of NvDCF's settings. Its scale is one number, so that a graph for it normalises by itself."""
    height, columns = found.data.size
    warning = ""
    if found.input != "pixels":
        warning = "# This graph takes normalised images, which DeepStream cannot make: export with --input pixels.\n"
    return f"""{warning}ReID:
  reidType: 2
  onnxFile: {path.name}
  modelEngineFile: {path.stem}.engine
  batchSize: 64
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

import dmpt
import numpy as np

model = dmpt.load("{path.name}")


def embeddings(frame, boxes):
    """Vectors of length 1, (N, {width}): of boxes (left, top, right, bottom) in a frame of OpenCV."""
    if not len(boxes):
        return np.empty((0, {width}), np.float32)
    return model.embed({name}=frame, boxes=boxes, order="bgr").features[:, {place}]
'''
