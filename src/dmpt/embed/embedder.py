"""Pictures in, vectors out: what an engineer calls.

model = dmpt.load("runs/x")
vectors = model.embed(rgb="a.jpg", nir="b.jpg", tir="c.png")
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.embed.pictures import Order, cropped, listed, pixels_of
from dmpt.embed.verdict import Verdict, judge
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.scores import between
from dmpt.runtime.runtime import Images, Present, Runtime
from dmpt.settings.modalities import MODALITIES

Boxes = Sequence[Sequence[float]] | Mapping[str, Sequence[Sequence[float]]]


class Embedder:
    """A trained model, ready for pictures; threads may share it.

    Args:
        runtime: what runs it.

    Attributes:
        runtime: torch, onnx or openvino.
        card: what training wrote; None of an exported file.
        data: how pictures are prepared, as ``Runtime`` has it.
        modalities: that it reads.
        value_range: values of 16-bit images that become black and white.
        precision: of the computation: fp32, bf16, fp16 or int8.
        adapter: sha256 of ``adapter.safetensors``.
        calibration: of that at this precision; None = scores mean no more than their order.
        transform: from decoded images to what ``encode`` takes, for those who decode themselves.
        encode: images ``(3, B, 3, H, W)``, and which of them are there ``(3, B)``, to embeddings.
    """

    def __init__(self, runtime: Runtime):
        self.runtime, self.card = runtime.name, runtime.card
        self.data, self.modalities, self.value_range = runtime.data, runtime.modalities, runtime.data.black_and_white
        self.precision, self.adapter, self.calibration = runtime.precision, runtime.adapter, runtime.calibration
        self.transform, self.encode = runtime.transform, runtime.encode

    @cached_property
    def blank(self) -> Embeddings:
        """Of one sample with blank pictures of all that the model reads: it tells the widths of its vectors."""
        picture = np.zeros((*self.data.size, 3), np.uint8)
        return self.embed(*(picture if name in self.modalities else None for name in MODALITIES))

    def embed(
        self,
        rgb: Any = None,
        nir: Any = None,
        tir: Any = None,
        *,
        boxes: Boxes | None = None,
        order: Order = "rgb",
        batch_size: int = 64,
    ) -> Embeddings:
        """Features of one sample or of several.

        Args:
            rgb: the visible picture: a path, an image of Pillow, an array, a tensor (``embed.pictures.pixels_of``);
                or a list of them, where None stands for a sample that lacks it.
            nir: the near-infrared one, likewise.
            tir: the thermal one. Any subset of the three will do.
            boxes: samples are cut from one frame of each modality: left, top, right and bottom of each, the same in all
                frames, or by modality.
            order: of the channels of arrays and tensors.
            batch_size: samples per pass.

        Returns:
            Embeddings of N samples; ``flat`` are vectors of length 1.

        Raises:
            UserError: nothing is given, numbers of pictures differ, a picture or a box cannot be used, or ``order`` or
                ``batch_size`` is none.
        """
        given = {name: listed(own) for name, own in zip(MODALITIES, (rgb, nir, tir), strict=True) if own is not None}
        if unknown := sorted(given.keys() - set(self.modalities)):
            raise UserError(f"{unknown[0]} is given, but the model reads {', '.join(self.modalities)}")
        if not isinstance(batch_size, int | np.integer) or batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be a whole number of at least 1")
        counts = {name: len(own) for name, own in given.items()}
        if not counts or not min(counts.values()) or len(set(counts.values())) > 1:
            raise UserError(f"pictures given: {counts or 'none'}; give as many of each modality, at least one")
        if boxes is not None:
            if set(counts.values()) != {1}:
                raise UserError(f"boxes cut samples from one frame of each modality; there are {counts}")
            given, order = self._cut({name: own[0] for name, own in given.items()}, boxes, order), "rgb"
        count = len(next(iter(given.values())))
        parts = []
        for start in range(0, count, batch_size):
            batch = {name: own[start : start + batch_size] for name, own in given.items()}
            parts.append(self.encode(*self._prepared(batch, start, order)))
        return join(*parts)

    def similarity(self, first: Embeddings, second: Embeddings) -> NDArray[np.float32]:
        """Of every sample of the one to every sample of the other, ``(N, M)``; no score depends on the others."""
        return between(first, second)

    def compare(self, first: Embeddings, second: Embeddings, fmr: float = 0.01) -> Verdict:
        """Whether two are the same; without calibration a score, and no more can be said.

        Args:
            first: a sample of the one, or several: its shots.
            second: of the other.
            fmr: the share of strangers that may pass as the same, in (0, 1).

        Raises:
            UserError: there are no shots of one of them, or ``fmr`` is no such share.
        """
        if not 0 < fmr < 1:  # NaN too
            raise UserError(f"fmr is {fmr}; it must be a number between 0 and 1, both excluded")
        if not len(first) or not len(second):
            raise UserError(f"compare takes shots of one and of another; these are {len(first)} and {len(second)}")
        return judge(first, second, self.calibration, fmr)

    def _cut(self, frames: dict[str, Any], boxes: Boxes, order: Order) -> dict[str, list[Any]]:
        """The samples that boxes show in frames, their channels in the order RGB."""
        by_modality = boxes if isinstance(boxes, Mapping) else dict.fromkeys(frames, boxes)
        if by_modality.keys() != frames.keys() or len({len(own) for own in by_modality.values()}) > 1:
            counts = {name: len(own) for name, own in by_modality.items()}
            raise UserError(f"boxes are for {counts}, frames for {', '.join(frames)}; give as many boxes in each")
        if not all(map(len, by_modality.values())):
            raise UserError("no boxes are given; leave boxes out to embed whole frames")
        found: dict[str, list[Any]] = {}
        for name, frame in frames.items():
            pixels = pixels_of(frame, name, self.value_range, order)
            cuts = (cropped(pixels, box, f"box {index} of {name}") for index, box in enumerate(by_modality[name]))
            found[name] = [cut.transpose(1, 2, 0) for cut in cuts]
        return found

    def _prepared(self, batch: Mapping[str, list[Any]], start: int, order: Order) -> tuple[Images, Present]:
        """What ``encode`` takes: zeros where absent."""
        count = len(next(iter(batch.values())))
        images = np.zeros((len(MODALITIES), count, 3, *self.data.size), np.float32)
        present = np.zeros((len(MODALITIES), count), np.bool_)
        for m, name in enumerate(MODALITIES):
            for row, picture in enumerate(batch.get(name, [None] * count)):
                if picture is not None:
                    pixels = pixels_of(picture, f"{name}[{start + row}]", self.value_range, order)
                    self.transform({name: pixels}, {name: images[m, row]})
                    present[m, row] = True
        if not (some := present.any(axis=0)).all():
            raise UserError(f"sample {start + int(some.argmin())} has no picture; give it one at least")
        return images, present


def load(
    name: str | Path,
    *,
    which: Literal["last", "best"] | None = None,
    weights: str | None = None,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
    runtime: Literal["torch", "onnx", "openvino"] | None = None,
) -> Embedder:
    """A trained model.

    Args:
        name: a run folder, an adapter folder, ``package:tiny``, which comes with dmpt, or a file that ``dmpt export``
            wrote, which needs no torch.
        which: of a run: ``last`` or ``best``; None = the one that training selected.
        weights: of the backbone, where they are not where training found them.
        precision: None = that of the calibration where there is one, else bf16 where the processor computes it
            natively, else fp32; of a file the one that it was written in, but for OpenVINO.
        runtime: what computes; None = torch, of a file ONNX Runtime (``onnx``).

    Raises:
        UserError: there is no adapter, its backbone is not there, its calibration is that of another adapter, or a
            file was changed; or what is given does not fit.
    """
    place = expanded(name)
    if place.suffix != ".onnx":
        if runtime in ("onnx", "openvino"):
            raise UserError(f"runtime {runtime} runs a file, and {name} is none; dmpt export makes one")
        from dmpt.runtime.torch import load as load_folder

        return Embedder(load_folder(place, which, weights, precision))
    for given, value in (("which", which), ("weights", weights)):
        if value is not None:
            raise UserError(f"{name} is a file that holds all it needs; leave out {given} {value}")
    if runtime == "torch":
        raise UserError(f"{name} is a file for ONNX Runtime or OpenVINO; give the run that it was exported from")
    from dmpt.runtime.exported import load as load_file

    return Embedder(load_file(place, precision, runtime or "onnx"))
