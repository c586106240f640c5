"""OpenVINO, on the processor: it reads the same file, and computes in bf16 where it is asked to."""

import threading
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dmpt.base.errors import UserError, one_line
from dmpt.runtime.onnx import threads
from dmpt.runtime.runtime import Run, need


def session(path: Path, precision: str) -> Run:
    """What runs a graph.

    Raises:
        UserError: OpenVINO is not installed, or cannot run it.
    """
    try:
        import openvino
    except ImportError as error:
        raise need("openvino", "openvino") from error
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads():
        settings["INFERENCE_NUM_THREADS"] = threads()
    try:
        compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    except Exception as error:  # its errors have no common class
        raise UserError(f"OpenVINO {openvino.__version__} cannot run {path}: {one_line(str(error))[:300]}") from error
    own = threading.local()  # a request is one call's at a time

    def run(given: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer(given)
        return [found[output].copy() for output in compiled.outputs]

    return run
