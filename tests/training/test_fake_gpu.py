"""A training step of every shipped config on a GPU that is not there: no tensor is left on the CPU.

Torch's fake tensors have shapes, precisions and devices but no values, so that towers and pictures of full size take no
time, and two of them that do not lie on one device are an error as on a real GPU. Backward needs a driver: gradients
are made up.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from by_name import CASES
from dmpt.data.loader import Batch
from dmpt.extensions import assemble as assembling
from dmpt.runtime.torch import PRECISIONS
from dmpt.settings.config import Config, DataConfig, TextConfig, TrainConfig
from dmpt.settings.rules import check
from dmpt.settings.shipped import folder, read_settings, shipped
from dmpt.settings.values import flatten, from_dict, nest
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.packaged import local
from dmpt.towers.phrases import ATTRIBUTES, PHRASES, PROMPTS, TextFile
from dmpt.training import trainer as training
from dmpt.training.state import Progress
from dmpt.training.trainer import Trainer

GPU = torch.device("cuda")
IDS, LABELS = 5, torch.tensor([0, 0, 3, 3])
PRESENT = torch.ones(3, 4, dtype=torch.bool)
SHIPPED = shipped()
aten = torch.ops.aten


class FakeGPU(FakeTensorMode):
    """Fake tensors that answer what they cannot know: numbers are 1, what may be there is, and whether all is, is said.

    Args:
        complete: no sample lacks a modality.
    """

    def __init__(self, complete: bool):
        super().__init__(allow_non_fake_inputs=True)
        self.complete, self.last, self.chosen = complete, None, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        last, self.last = self.last, func
        if func is aten._local_scalar_dense.default:
            return self.complete if last is aten.all.default else torch.ones((), dtype=args[0].dtype).tolist()
        if func is aten.nonzero.default:
            self.chosen += 1
            return args[0].new_zeros(args[0].numel(), args[0].ndim, dtype=torch.int64)
        return super().__torch_dispatch__(func, types, args, kwargs)


class Alone:
    """What a trainer asks of accelerate, for one process with a GPU."""

    device, scaler, num_processes, process_index = GPU, None, 1, 0

    def __init__(self, precision: torch.dtype):
        self.precision, self.trained = precision, dict[str, Tensor]()

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        # Not torch.autocast, which is off where there is no GPU.
        before = torch.get_autocast_dtype("cuda")
        torch.set_autocast_dtype("cuda", self.precision)
        torch.set_autocast_enabled("cuda", self.precision != torch.float32)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.set_autocast_dtype("cuda", before)

    def prepare(self, optimizer: Any) -> Any:
        return optimizer

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor

    def backward(self, loss: Tensor) -> None:
        assert loss.requires_grad
        for tensor in self.trained.values():
            tensor.grad = torch.zeros_like(tensor)

    def clip_grad_norm_(self, tensors: Any, most: float) -> Tensor:
        return nn.utils.clip_grad_norm_(tensors, most)


def empty_vit(config: Any, size: tuple[int, int], **options: Any) -> tuple[Any, TowerInfo]:
    """``build_vit`` without a file, and without values."""
    vit, tower = build_vit(config, size, load=False)
    projection = None if tower.projection is None else torch.empty(tower.projection.shape)
    return vit.to_empty(device="cpu"), replace(tower, projection=projection)


def made_up_text(config: TextConfig) -> TextFile:
    if config.tower.startswith("package:"):
        return TextFile.load(local("package:text.safetensors"))
    words = {m: torch.zeros(n, 512) for m, n in zip(PHRASES, (3, 5, 5), strict=True)}
    attributes = {m: torch.zeros(n, 512) for m, n in zip(ATTRIBUTES, (1, 3, 3), strict=True)}
    return TextFile(words, attributes, torch.zeros(len(PROMPTS), 512), 100.0, config.tower, "", "quick" in config.tower)


def settings(*names: str, **changes: Any) -> Config:
    """Shipped files over each other, and changes by section; of the tower's blocks, which are all alike, three."""
    merged: dict[str, Any] = {}
    for name in names:
        merged |= read_settings(folder() / f"{name}.yaml", name)
    merged |= flatten(changes)
    merged["backbone.overrides"] = {**merged.get("backbone.overrides", {}), "depth": 3}
    config = from_dict(nest(merged))
    check(config)
    return config


def trainer_of(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trainer:
    """A trainer on the GPU that is not there; to be called inside a ``FakeGPU``."""
    precision = PRECISIONS[config.train.precision]
    trainer: Any = Trainer.__new__(Trainer)
    trainer.out, trainer.precision, trainer.progress = tmp_path, precision, Progress()
    trainer.accelerator = Alone(precision)
    trainer.data = SimpleNamespace(
        labels=dict.fromkeys(range(IDS)),
        dataset=SimpleNamespace(object="person"),
        value_range=config.data.value_range,
        select="last",
    )
    monkeypatch.setattr(assembling, "build_vit", empty_vit)
    monkeypatch.setattr(assembling, "text_file", made_up_text)
    monkeypatch.setattr(training.announce, "card_of", lambda *_: None)
    monkeypatch.setattr(training, "identity", lambda *_: None)
    real = assembling.assemble

    def outside(*arguments: Any) -> Any:
        with torch._subclasses.fake_tensor.unset_fake_temporarily():
            return real(*arguments)

    monkeypatch.setattr(training, "assemble", outside)
    trainer._build(config, start=None)
    trainer.accelerator.trained = trainer.trained
    return trainer


def step(trainer: Trainer) -> None:
    """A batch and the optimiser's step; whether samples lack modalities is for ``FakeGPU`` to say."""
    images = torch.zeros(3, len(LABELS), 3, *trainer.config.data.size)
    line = trainer._step(Batch(images, LABELS, PRESENT, PRESENT), 1000)
    assert line["losses"]
    assert ("grad_norm" in line) == (trainer.config.train.accumulate == 1)


def judge(trainer: Trainer) -> Tensor:
    """Test features, as ``extract`` makes them."""
    network = trainer.network.eval()
    with trainer._as_saved(), torch.no_grad(), trainer.accelerator.autocast():
        present = PRESENT.to(GPU)
        images = torch.zeros(3, len(LABELS), 3, *trainer.config.data.size, device=GPU)
        feature = network.test_feature(network(images, None if present.all() else present, network.bake()).features)
    network.train()
    return feature


def on_the_gpu(feature: Tensor) -> None:
    assert isinstance(feature, FakeTensor)
    assert feature.device.type == "cuda"


def alike() -> dict[str, str]:
    """The first of shipped configs that compute the same, by the names of all of them."""
    groups: dict[str, list[str]] = {}
    for name in SHIPPED:
        config = settings(name)
        data = replace(DataConfig(), size=config.data.size, modalities=config.data.modalities)
        groups.setdefault(repr(replace(config, data=data, train=TrainConfig())), []).append(name)
    return {" ".join(names): names[0] for names in groups.values()}


ALIKE = alike()


@pytest.mark.parametrize("names", ALIKE)
def test_every_shipped_config(names: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As shipped; then in bfloat16 with prompts as tokens, and samples that lack modalities."""
    config = settings(ALIKE[names], train={"ema": 0.99})
    with FakeGPU(complete=len(config.data.modalities) == 3) as gpu:
        trainer = trainer_of(config, monkeypatch, tmp_path)
        step(trainer)
        assert (gpu.chosen == 0) == gpu.complete
        gpu.complete = False
        trainer.network.form, trainer.accelerator.precision = "token", torch.bfloat16
        trainer.network.backbone.keep_in(torch.bfloat16)
        step(trainer)
        assert gpu.chosen > 0  # samples were told apart
        on_the_gpu(judge(trainer))


OWN = (
    *("rank 4, one SA", "exchange behind layer 0", "common prompts", "feature cls+bind", "neck after", "linear probe"),
    *("trained projection", "LoRA beside prompts", "missing, learned tokens", "missing, whole and subset"),
)
"""Parts that no shipped config has; the other cases put the same together otherwise."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in OWN else pytest.mark.long) for c in CASES])
def test_every_part(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train.accumulate": 9, "backbone.projection_dim": 128}  # no optimiser's step
    if case != "full fine-tuning":  # fake tensors that are trained cannot be cast to what they are
        changes["train.precision"] = "bf16"
    config = settings("tiny", **nest(flatten(CASES[case]) | changes))
    with FakeGPU(complete=not config.missing.dropout and len(config.data.modalities) == 3):
        trainer = trainer_of(config, monkeypatch, tmp_path)
        step(trainer)
        on_the_gpu(judge(trainer))


def test_identity_tokens_and_the_text_tower(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with FakeGPU(complete=True):
        trainer = trainer_of(settings("tiny", text={"loss": "identity"}), monkeypatch, tmp_path)
        assert "identity_text.tokens" in trainer.trained
        step(trainer)


def kinds(network: nn.Module) -> dict[str, str]:
    """A tensor of each kind, by the kind: its name without numbers. Scalars may lie anywhere."""
    named = [*network.named_parameters(), *network.named_buffers()]
    return {re.sub(r"\d+", "N", name): name for name, tensor in named if tensor.ndim}


def complains(trainer: Trainer) -> bool:
    try:
        step(trainer)
        judge(trainer)
    except RuntimeError as error:
        return "same device" in str(error)
    return False


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.long)])
def test_whatever_is_left_on_the_cpu_is_found(every: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = {"dropout": 0.3, "absent": "learned"}
    text, train = {"loss": "identity"}, {"accumulate": 999}
    config = settings("tiny", heads="paper", missing=missing, text=text, train=train)
    with FakeGPU(complete=False):
        trainer = trainer_of(config, monkeypatch, tmp_path)
        network = trainer.network
        step(trainer)
        found, left = list(kinds(network).values())[::every], []
        assert len(found) > 40 / every
        for name in found:
            part, _, last = name.rpartition(".")
            module = network.get_submodule(part)
            where = module._parameters if last in module._parameters else module._buffers
            before = where[last]
            where[last] = nn.Parameter(torch.zeros(before.shape), before.requires_grad)
            if not complains(trainer):
                left.append(name)
            where[last] = before
        assert not complains(trainer)
    # What is moved at its use, and what mixes with scalars alone.
    assert set(left) <= {"bind.layers.0.external.absent", "also.shared.mean", "also.shared.variance"}
