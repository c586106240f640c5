"""A file as dmpt export writes it, whose graph is made by hand: a feature is the mean colour of a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dmpt.runtime.exported import Exported, write
from dmpt.settings.config import DataConfig

SIZE = (32, 16)
DATA = DataConfig(size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), value_range=(0.0, 4000.0))
_KINDS = {"normalised": TensorProto.FLOAT, "pixels": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


def facts(**changes: Any) -> Exported:
    own: dict[str, Any] = {
        "adapter": "a" * 64,
        "backbone": "b" * 64,
        "data": DATA,
        "inputs": ("rgb", "nir", "tir"),
        "input": "normalised",
        "precision": "fp32",
        "object": "person",
        "licence": "ours",
        "parity": 1e-7,
    }
    return Exported(**(own | changes))


def graph_of(found: Exported) -> bytes:
    """Absent modalities are masked, whatever stands in them; graphs of pixels normalise."""
    levels = (np.array([255 * v for v in own or ()], np.float32)[:, None, None] for own in (DATA.mean, DATA.std))
    constants = dict(zip(("mean", "std"), levels, strict=True)) | {"zero": np.float32(0), "hw": np.array([2, 3])}
    several, nodes, parts = len(found.inputs) > 1, [], []
    names = list(found.inputs) if several else ["images"]
    for m, name in enumerate(names):
        last = name
        if found.input == "uint8":
            nodes.append(helper.make_node("Transpose", [last], [f"{name}_t"], perm=[0, 3, 1, 2]))
            nodes.append(helper.make_node("Cast", [f"{name}_t"], [f"{name}_f"], to=TensorProto.FLOAT))
            last = f"{name}_f"
        if found.input != "normalised":
            nodes.append(helper.make_node("Sub", [last, "mean"], [f"{name}_s"]))
            nodes.append(helper.make_node("Div", [f"{name}_s", "std"], [f"{name}_n"]))
            last = f"{name}_n"
        nodes.append(helper.make_node("ReduceMean", [last, "hw"], [f"{name}_m"], keepdims=0))
        last = f"{name}_m"
        if several:
            constants[f"place_{name}"] = np.array([m])
            nodes.append(helper.make_node("Gather", ["present", f"place_{name}"], [f"{name}_p"], axis=1))
            nodes.append(helper.make_node("Where", [f"{name}_p", last, "zero"], [f"{name}_w"]))
            last = f"{name}_w"
        parts.append(last)
    nodes.append(helper.make_node("Concat", parts, ["all"], axis=1))
    nodes.append(helper.make_node("LpNormalization", ["all"], ["features"], axis=1, p=2))
    shape = [*SIZE, 3] if found.input == "uint8" else [3, *SIZE]
    inputs = [helper.make_tensor_value_info(name, _KINDS[found.input], ["batch", *shape]) for name in names]
    if several:
        inputs.append(helper.make_tensor_value_info("present", TensorProto.BOOL, ["batch", len(names)]))
    output = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 3 * len(names)])
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "toy", inputs, [output], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def toy_file(path: Path, **changes: Any) -> Path:
    found = facts(**changes)
    write(graph_of(found), found, path)
    return path


def mean_colour(pixels: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Of a picture ``(H, W, 3)``, before the vector is brought to length 1."""
    mean, std = np.array(DATA.mean), np.array(DATA.std)
    found: np.ndarray = (pixels.reshape(-1, 3).mean(axis=0) / 255 - mean) / std  # type: ignore[type-arg]
    return found
