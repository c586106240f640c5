"""The models behind the service: what each is, and its passes, which clients share."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dmpt.adapter.calibration import Calibration
from dmpt.base.errors import UserError
from dmpt.embed.embedder import Embedder
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.rates import Rates
from dmpt.serve.batcher import Batcher
from dmpt.serve.decoding import Shot
from dmpt.serve.figures import Figures
from dmpt.serve.refused import Refused
from dmpt.serve.vectors import Shape
from dmpt.settings.modalities import MODALITIES


class Served:
    """A loaded model.

    Args:
        name: by which clients choose it.
        embedder: of ``dmpt.load``.
        thread: the one that computes, for all models.
        figures: of the service.

    Attributes:
        name: as given.
        embedder: as given.
        shape: of its vectors.
        batcher: its passes.
    """

    def __init__(self, name: str, embedder: Embedder, thread: Executor, figures: Figures):
        self.name, self.embedder, self._thread, self._figures = name, embedder, thread, figures
        self.shape = Shape.of(embedder)  # a pass, which also readies what is made at the first
        self.batcher: Batcher[Shot, Embeddings] = Batcher(self._pass, thread)

    async def embed(self, shots: Sequence[Shot]) -> Embeddings:
        """Vectors of shots, which share passes with those of others.

        Raises:
            Refused: the model's numbers overflow on one.
        """
        found = join(*await asyncio.gather(*(self.batcher(shot) for shot in shots)))
        if not np.isfinite(found.flat).all():
            raise Refused(422, "the model's numbers overflow on a picture; look at it")
        return found

    def check(self, modalities: Sequence[str]) -> None:
        """Refuse those that the model does not read.

        Raises:
            Refused: there is one.
        """
        if unknown := [name for name in modalities if name not in self.embedder.modalities]:
            own = ", ".join(self.embedder.modalities)
            raise Refused(422, f"{unknown[0]} is given, but the model {self.name} reads {own}")

    def _pass(self, shots: Sequence[Shot]) -> list[Embeddings]:
        start = time.perf_counter()
        given = {name: [shot.get(name) for shot in shots] for name in MODALITIES if any(name in shot for shot in shots)}
        found = self.embedder.embed(**given, batch_size=len(shots))  # type: ignore[arg-type]
        self._figures.batch.labels(self.name).observe(len(shots))
        self._figures.model_seconds.labels(self.name).observe(time.perf_counter() - start)
        return [found[row : row + 1] for row in range(len(shots))]

    @property
    def looks(self) -> bool:
        """Whether it can say where its tokens look; an exported graph cannot."""
        return self.embedder.runtime == "torch"

    async def gaze(self, shot: Shot) -> dict[str, Any]:
        """Where its tokens look in a shot, as multiples of an even look.

        Raises:
            Refused: it cannot say.
        """
        if not self.looks:
            raise Refused(422, f"{self.name} is an exported graph, which does not say where it looks; serve the run")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._gaze, shot)

    def _gaze(self, shot: Shot) -> dict[str, Any]:
        import torch

        from dmpt.embed.attention import gaze

        model, card, encode = self.embedder, self.embedder.card, cast(Any, self.embedder.encode)
        assert card is not None  # of what looks
        config = card.config
        images = torch.zeros(len(MODALITIES), 1, 3, *config.data.size)
        present = torch.zeros(len(MODALITIES), 1, dtype=torch.bool)
        places = {name: MODALITIES.index(name) for name in shot}
        pixels = {name: np.ascontiguousarray(own.transpose(2, 0, 1)) for name, own in shot.items()}
        model.transform(pixels, {name: images[m, 0] for name, m in places.items()})
        present[list(places.values())] = True
        seen = gaze(encode.network, images, present, config)
        ratios = {kind: own[:, 0] for kind, own in seen.ratios.items()}
        rows: dict[str, int] = {name: number for number, name in enumerate(config.data.modalities)}
        maps = {name: {kind: _rounded(own[rows[name]]) for kind, own in ratios.items()} for name in shot}
        grid = next(iter(ratios.values())).shape[1:]
        return {"size": list(config.data.size), "grid": list(grid), "lookers": list(ratios), "maps": maps}

    @property
    def about(self) -> dict[str, Any]:
        """What clients are told of it."""
        model = self.embedder
        return {
            "name": self.name,
            "adapter": model.adapter,
            "precision": model.precision,
            "runtime": model.runtime,
            "modalities": list(model.modalities),
            "size": list(model.data.size),
            "width": self.shape.width,
            "shared": self.shape.shared,
            "attention": self.looks,
            "calibration": None if model.calibration is None else _calibration(model.calibration),
        }


def names_of(runs: Sequence[str | Path]) -> list[str]:
    """What clients call models: the last parts of their folders' names, as many as tell them apart.

    Raises:
        UserError: one is given twice.
    """
    parts = [Path(run).parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-count:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"a run is given twice among {', '.join(map(str, runs))}; give each once")


def meant(scores: Mapping[str, float], calibration: Calibration | None, shots: int) -> dict[str, dict[str, Any]]:
    """What each modality says alone, and how often strangers' says as much.

    Args:
        scores: by modality.
        calibration: of the model; None = not calibrated.
        shots: of the query.
    """
    said = {}
    for name, score in scores.items():
        rate = None if calibration is None else calibration.fmr(score, [name])
        said[name] = {"score": score, "fmr": None if rate is None else min(1.0, shots * rate)}
    return said


def _rounded(values: NDArray[np.float32]) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in values.tolist()]


def _calibration(found: Calibration) -> dict[str, Any]:
    return {
        "split": found.split,
        "data": found.data,
        "views": found.views,
        "identities": found.identities,
        "items": found.items,
        "normalised": found.cohort is not None,
        "sets": [_rates(table) for table in found.tables],
    }


def _rates(table: Rates) -> Mapping[str, Any]:
    curve = table.curve
    return {
        "common": list(table.common),
        "pooled": table.pooled,
        "identities": table.identities,
        "mates": table.mates,
        "strangers": table.strangers,
        "eer": table.eer,
        "least": table.least,
        "thresholds": [
            {"fmr": limit.fmr, "score": limit.threshold, "fnmr": 1 - limit.tar} for limit in table.thresholds
        ],
        "curve": [
            {"score": score, "fmr": table.rate(strangers), "fnmr": 1 - mates / table.mates}
            for score, strangers, mates in zip(curve.scores, curve.strangers, curve.mates, strict=True)
        ],
    }
