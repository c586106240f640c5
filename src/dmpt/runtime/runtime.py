"""The small interface behind ``dmpt.Embedder``: what is known of a model that runs, and the two things that it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dmpt.adapter.calibration import Calibration
from dmpt.base.errors import UserError
from dmpt.base.terminal import warn
from dmpt.data.images import Pixels
from dmpt.retrieval.embeddings import Embeddings
from dmpt.settings.config import DataConfig

if TYPE_CHECKING:
    from dmpt.adapter.folder import Card

Images = NDArray[np.float32]
Present = NDArray[np.bool_]
Run = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]
"""From a graph's inputs to its outputs, in their order; threads may call it at once."""


class Transform(Protocol):
    """From decoded pictures to what a model takes."""

    def __call__(self, images: Mapping[str, Pixels], out: Mapping[str, Any], /) -> object:
        """Write each picture ``(3, H, W)`` to its place in ``out``, float32 ``(3, *size)``."""


class Encode(Protocol):
    """From what ``Transform`` wrote to embeddings; threads may call it at once."""

    def __call__(self, images: Images, present: Present, /) -> Embeddings:
        """Images ``(3, B, 3, H, W)``, of which those that are ``present`` ``(3, B)`` are read, to B embeddings."""


@dataclass(frozen=True, eq=False)
class Runtime:
    """A trained model that runs.

    Attributes:
        name: torch, onnx or openvino.
        data: ``size``, ``mean``, ``std``, ``value_range`` (two numbers) and ``modalities`` are those of training.
        modalities: that it reads here; those of training, or some of them.
        precision: of the computation: fp32, bf16, fp16 or int8.
        adapter: sha256 of ``adapter.safetensors``.
        calibration: of that at this precision; None = scores mean no more than their order.
        transform: from pictures to images.
        encode: from images to embeddings.
        card: what training wrote; None of an exported file.
    """

    name: Literal["torch", "onnx", "openvino"]
    data: DataConfig
    modalities: tuple[str, ...]
    precision: str
    adapter: str
    calibration: Calibration | None
    transform: Transform
    encode: Encode
    card: "Card | None" = None


def calibrated_at(calibration: Calibration | None, precision: str, where: object) -> Calibration | None:
    """A calibration where it is of this precision; else a note, and None.

    Args:
        calibration: of the adapter.
        precision: of the computation.
        where: what the user calls the model.
    """
    if calibration is None or calibration.precision == precision:
        return calibration
    warn(f"{where} is calibrated at precision {calibration.precision}; at {precision} its scores are not calibrated")
    return None


def check_shapes(path: Path, found: Sequence[tuple[Any, ...]], said: Sequence[tuple[int, ...]]) -> None:
    """Refuse a graph whose inputs are not those that its file speaks of.

    Args:
        path: of the file.
        found: shapes of the graph's inputs, without the batch.
        said: those that it shall have.

    Raises:
        UserError: they differ.
    """
    if [*found] != [*said]:
        raise UserError(f"{path} says that it takes {[*said]}, but its graph takes {[*found]}; export it again")


def need(package: str, extra: str) -> UserError:
    """What to say where a package is not installed."""
    return UserError(f"this takes {package}, which is not installed: pip install 'dmpt[{extra}]'")
