"""What the parts of ``gpu.py`` share: where they run, what they found, and shipped settings with stand-ins."""

import copy
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from dmpt.base.errors import one_line
from dmpt.settings.config import BackboneConfig, Config
from dmpt.settings.values import dotted
from dmpt.study.reading import shipped_settings
from dmpt.study.rows import config_of
from dmpt.synthetic.write import write_world
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.phrases import ATTRIBUTES, PHRASES, PROMPTS, TextFile
from goals import goal
from models import Case, Precision

Found = TypeVar("Found")
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
"""The tower of the smoke test."""
BATCH = {"train.ids": 4, "train.instances": 2}
"""Of every config; its own 64 or 128 samples would take minutes, and more memory than many cards have."""
LEAST = 4
"""Samples; a card that cannot hold so few is too small."""


class Towers:
    """Random towers, each drawn once: for a ViT-B timm takes seconds."""

    def __init__(self) -> None:
        self.drawn: dict[str, tuple[Any, TowerInfo]] = {}

    def __call__(self, config: BackboneConfig, size: tuple[int, int], **options: bool) -> tuple[Any, TowerInfo]:
        """A copy, as ``build_vit`` gives it; the random state stays, so it is the same whether one was there or not."""
        key = f"{replace(config, tune='frozen')} {size}"
        if key not in self.drawn:
            self.drawn[key] = build_vit(config, size)
        return copy.deepcopy(self.drawn[key])


@dataclass
class Bench:
    """Where a part measures, and what it has found so far.

    Attributes:
        device: ``cuda``, or ``cpu`` in the smoke test.
        smoke: everything in miniature.
        scratch: a folder that is removed at the end.
        until: by ``time.monotonic``, when a part that can end early ends.
        towers: in the place of ``build_vit``.
        found: figures; filled as they come, so that a part that fails keeps what it had.
        goals: of all parts.
        broken: what must hold and does not.
    """

    device: str
    smoke: bool
    scratch: Path
    until: float
    towers: Towers = field(default_factory=Towers)
    found: dict[str, Any] = field(default_factory=dict)
    goals: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that the device can train in, the fast ones first."""
        return ("bf16", "fp32") if self.device == "cpu" else ("bf16", "fp16", "fp32")

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.until

    def goal(self, name: str, measured: float, limit: float, at_most: bool = True) -> bool:
        """Print and keep a goal; returns whether it is met."""
        met = goal(name, measured, limit, at_most)
        self.goals.append({"name": name, "measured": measured, "limit": limit, "at_most": at_most, "met": met})
        return met

    def must(self, name: str, measured: float, limit: float, at_most: bool = True) -> None:
        """A goal without which the part counts as failed."""
        if not self.goal(name, measured, limit, at_most):
            self.broken.append(f"{name} is {measured:.3g}")

    def said(self, error: BaseException) -> str:
        """An error in a line that names nobody's folders."""
        return one_line(f"{type(error).__name__}: {error}".replace(str(self.scratch), "SCRATCH"))

    def wait(self) -> None:
        """Until the device has done what it was given: its work is queued."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, call: Callable[[], object]) -> Callable[[], None]:
        """``call``, done when it returns."""

        def whole() -> None:
            call()
            self.wait()

        return whole

    def free(self) -> None:
        """Give the device's memory back that nobody uses."""
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def fitting(self, samples: int, measure: Callable[[int], Found]) -> Found:
        """``measure`` of so many samples, of half as many where the device's memory does not hold them, and so on."""
        while True:
            try:
                return measure(samples)
            except torch.OutOfMemoryError:
                if samples <= LEAST:
                    raise
            print(f"{samples} samples do not fit into the device's memory")
            self.free()
            samples //= 2

    def world(self, kind: Literal["person", "vehicle"]) -> Path:
        """Drawn data: 4 identities to train on, of which every batch of 4 takes all, and 2 to test with."""
        root = self.scratch / kind
        if not root.exists():
            write_world(root, object=kind, train_ids=4, test_ids=2, images=8, workers=1)
        return root

    @cached_property
    def text(self) -> Path:
        """A text file of random words in the place of CLIP's, which is a download."""
        path, draw = self.scratch / "text.safetensors", torch.Generator().manual_seed(0)

        def words(counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
            return {name: 0.02 * torch.randn(count, 512, generator=draw) for name, count in counts.items()}

        phrases, attributes = words(dict.fromkeys(PHRASES, 3)), words(dict.fromkeys(ATTRIBUTES, 1))
        features = torch.randn(len(PROMPTS), 512, generator=draw)
        TextFile(phrases, attributes, features, 100.0, "a stand-in", "0" * 64, quick_gelu=True).save(path)
        return path

    def config(self, name: str, changes: Mapping[str, Any]) -> Config:
        """A file of ``configs/`` with random weights and words where its own are downloads.

        Args:
            name: of the file; one that goes on top of others goes on top of ``rgbnt201``.
            changes: other settings, as dotted keys.
        """
        own = shipped_settings(name)
        if "data.size" not in own:
            own = shipped_settings("rgbnt201") | own
        flat = dotted(Config()) | own
        if not flat["backbone.weights"].startswith("package:"):
            flat |= {"backbone.weights": "random", "text.file": str(self.text)}
            if self.smoke:
                small = [side // 4 for side in flat["data.size"]]
                flat |= {"backbone.overrides": SMALL, "data.size": small, "data.pad": 2}
        return config_of(flat | dict(changes))

    def case(self, config: Config, samples: int) -> Case:
        """Batches of noise for some settings."""
        own = config.backbone
        return Case(own.name, config.data.size, samples, config.train.precision, own.overrides, self.device)
