"""Pictures in, vectors out: what an engineer calls.

model = dmpt.load("runs/x")
vectors = model.embed(rgb="a.jpg", nir="b.jpg", tir="c.png")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dmpt.adapter.calibration import Calibration
from dmpt.adapter.calibration import load as load_calibration
from dmpt.adapter.folder import TENSORS, Card, adapter_folder, load_card, network_of
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, sha256
from dmpt.base.terminal import warn
from dmpt.data.transforms import TestTransform
from dmpt.embed.extract import PRECISIONS, Encoder
from dmpt.embed.pictures import Order, cropped, listed, pixels_of
from dmpt.embed.verdict import Verdict, judge
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.scores import between
from dmpt.settings.modalities import MODALITIES

Boxes = Sequence[Sequence[float]] | Mapping[str, Sequence[Sequence[float]]]


class Embedder:
    """A trained model, ready for pictures; threads may share it.

    Args:
        network: in evaluation mode, on its device, its tower in ``precision``.
        card: the adapter's.
        precision: of the computation, a key of ``PRECISIONS``.
        adapter: sha256 of its tensors' file.
        calibration: of that at this precision; None = scores mean no more than their order.

    Attributes:
        modalities: that it reads.
        value_range: values of 16-bit images that become black and white.
        transform: from decoded images to what ``encode`` takes.
        encode: normalised images to embeddings (``embed.extract.Encoder``), for those who decode themselves.
    """

    def __init__(self, network: DMPT, card: Card, precision: str, adapter: str, calibration: Calibration | None = None):
        data = card.config.data
        assert data.mean is not None and data.std is not None  # noqa: PT018  # a card has them filled in
        self.card, self.precision, self.adapter, self.calibration = card, precision, adapter, calibration
        self.modalities: tuple[str, ...] = tuple(data.modalities)
        self.value_range: tuple[float, float] = data.value_range  # type: ignore[assignment]  # measured by training
        self.transform = TestTransform(data.size, data.mean, data.std)
        self.encode = Encoder(network, PRECISIONS[precision])

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

    def _prepared(self, batch: Mapping[str, list[Any]], start: int, order: Order) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images ``(3, B, 3, H, W)``, zeros where absent, and which are there ``(3, B)``."""
        count = len(next(iter(batch.values())))
        images = torch.zeros(len(MODALITIES), count, 3, *self.transform.size)
        present = torch.zeros(len(MODALITIES), count, dtype=torch.bool)
        for m, name in enumerate(MODALITIES):
            for row, picture in enumerate(batch.get(name, [None] * count)):
                if picture is not None:
                    pixels = pixels_of(picture, f"{name}[{start + row}]", self.value_range, order)
                    self.transform({name: pixels}, {name: images[m, row]})
                    present[m, row] = True
        if (empty := ~present.any(dim=0)).any():
            raise UserError(f"sample {start + int(empty.nonzero()[0])} has no picture; give it one at least")
        return images, present


def load(
    name: str | Path,
    *,
    which: Literal["last", "best"] | None = None,
    weights: str | None = None,
    precision: Literal["fp32", "bf16", "fp16"] | None = None,
) -> Embedder:
    """A trained model.

    Args:
        name: a run folder, an adapter folder, or ``package:tiny``, which comes with dmpt.
        which: of a run: ``last`` or ``best``; None = the one that training selected.
        weights: of the backbone, where they are not where training found them.
        precision: None = that of the calibration where there is one, else bf16 where the processor computes it
            natively, else fp32.

    Raises:
        UserError: there is no adapter, its backbone is not there, or its calibration is that of another adapter.
    """
    folder = adapter_folder(expanded(name), which)
    card, gpu = load_card(folder), torch.cuda.is_available()
    if precision == "fp16" and not gpu:
        raise UserError("precision fp16 needs a GPU; give bf16 or fp32")
    calibration = load_calibration(folder)
    adapter = sha256(folder / TENSORS) if calibration is None else calibration.adapter
    chosen: str = precision or ("bf16" if _native_bf16(gpu) else "fp32")
    if calibration is not None and precision is None and (gpu or calibration.precision != "fp16"):
        chosen = calibration.precision
    if calibration is not None and calibration.precision != chosen:
        warn(f"{folder} is calibrated at precision {calibration.precision}; at {chosen} its scores are not calibrated")
        calibration = None
    network, _ = network_of(folder, card, weights, PRECISIONS[chosen])
    return Embedder(network.to("cuda" if gpu else "cpu"), card, chosen, adapter, calibration)


def _native_bf16(gpu: bool) -> bool:
    """Whether bf16 is quicker than fp32 here: elsewhere it is emulated."""
    if gpu:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases do not say
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
