"""ONNX Runtime, on the processor."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dmpt.base.errors import UserError, one_line
from dmpt.runtime.runtime import Run, check_shapes, need


def session(path: Path, precision: str, shapes: Sequence[tuple[int, ...]]) -> Run:
    """What runs a graph; ``OMP_NUM_THREADS`` limits its threads, as it does torch's.

    Args:
        path: of the file.
        precision: of the computation; here the file's own.
        shapes: of its inputs, without the batch.

    Raises:
        UserError: ONNX Runtime is not installed or cannot run it, or its inputs are others.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise need("onnxruntime", "onnx") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads()
    options.log_severity_level = 3
    # Threads that wait in a loop for the next call take the cores of whoever decodes its pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        found = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UserError(f"ONNX Runtime {ort.__version__} cannot run {path}: {one_line(str(error))[:300]}") from error
    names = [one.name for one in found.get_inputs()]
    check_shapes(path, [tuple(one.shape[1:]) for one in found.get_inputs()], shapes)

    def run(given: list[NDArray[Any]]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = found.run(None, dict(zip(names, given, strict=True)))
        return outputs

    return run


def threads() -> int:
    """What ``OMP_NUM_THREADS`` says; 0 = as the runtime likes."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdigit() else 0
