"""OpenVINO, on the processor: it reads the same file, and computes in bf16 where it is asked to."""

import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dmpt.base.errors import UserError, one_line
from dmpt.runtime.onnx import threads
from dmpt.runtime.runtime import Run, check_shapes, need


@cache
def _core() -> Any:
    """One for the process, never freed.

    For AMX a core gives its thread another stack for signals, and takes that back at its end. Of several the last to
    end puts back one that is freed, and the next signal, as of Ctrl-C, ends the process without a word.
    """
    import openvino

    return openvino.Core()


def session(path: Path, precision: str, shapes: Sequence[tuple[int, ...]]) -> Run:
    """What runs a graph.

    Args:
        path: of the file.
        precision: of the computation: bf16, else the file's own.
        shapes: of its inputs, without the batch.

    Raises:
        UserError: OpenVINO is not installed or cannot run it, or its inputs are others.
    """
    try:
        import openvino
    except ImportError as error:
        raise need("openvino", "openvino") from error
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
    if threads():
        settings["INFERENCE_NUM_THREADS"] = threads()
    try:
        compiled = _core().compile_model(str(path), "CPU", settings)
    except Exception as error:  # its errors have no common class
        raise UserError(f"OpenVINO {openvino.__version__} cannot run {path}: {one_line(str(error))[:300]}") from error
    found = [tuple(side.get_max_length() for side in [*one.partial_shape][1:]) for one in compiled.inputs]
    check_shapes(path, found, shapes)
    own = threading.local()  # a request is one call's at a time

    def run(given: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if not hasattr(own, "request"):
            own.request = compiled.create_infer_request()
        found = own.request.infer(given)
        return [found[output].copy() for output in compiled.outputs]

    return run
