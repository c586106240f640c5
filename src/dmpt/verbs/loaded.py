"""How a trained model is loaded for pictures: flags that the verbs share which embed."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dmpt.settings.recipe import Precision

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder


@dataclass(frozen=True)
class Loaded:
    """What is not given is as the adapter has it.

    Attributes:
        which: Of a run; default: the one training selected.
        precision: Default: that of the calibration, else bf16 where the processor computes it natively, else fp32.
        weights: Weights file, when it has moved.
        runtime: What computes. Default: torch, and of a file of dmpt export ONNX Runtime.
    """

    which: Literal["last", "best"] | None = None
    precision: Precision | None = None
    weights: str | None = field(default=None, metadata={"flag": "backbone.weights"})
    runtime: Literal["torch", "onnx", "openvino"] | None = None

    def load(self, model: Path) -> "Embedder":
        """A run folder, an adapter folder, ``package:tiny`` or an exported file, ready for pictures."""
        from dmpt.embed.embedder import load

        return load(model, which=self.which, weights=self.weights, precision=self.precision, runtime=self.runtime)
