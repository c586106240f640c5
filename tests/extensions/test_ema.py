"""The average of what is trained: against a transcription, and in runs that are broken off, validated and saved."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dmpt.adapter import folder as adapter
from dmpt.embed.extract import look
from dmpt.extensions.ema import EMA
from dmpt.training.trainer import Trainer
from runs import dying, fit, log, same_state, settings, toy, with_
from small import seeded, small_network


def test_what_says_never_seen_is_not_averaged() -> None:
    network = small_network(missing={"dropout": 0.3})
    seen = {"also.shared.mean", "also.shared.variance"}
    assert seen <= network.own_state().keys()
    averaged = EMA(network, 0.9).tensors.keys()
    assert "also.shared.project.0.weight" in averaged
    assert not seen & averaged


def test_the_average_is_the_transcription() -> None:
    network = small_network(text={"loss": "off"})
    name = "prompts.semantic.tokens"
    parameter = network.get_parameter(name)
    ema, expected = EMA(network, 0.5), parameter.detach().double().clone()
    for step in range(1, 21):
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(step)))
        ema.update(step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * parameter.detach().double()
    torch.testing.assert_close(ema.tensors[name].double(), expected, rtol=1e-5, atol=1e-6)
    live = {n: t.clone() for n, t in network.state_dict().items()}
    with ema.swapped_in():
        assert torch.equal(network.get_parameter(name), ema.tensors[name])
        assert all(torch.equal(t, ema.tensors[n]) for n, t in network.own_state().items() if n in ema.tensors)
    assert all(torch.equal(t, live[n]) for n, t in network.state_dict().items())


def test_the_average_is_saved_and_evaluated_and_training_goes_on_without_it(tmp_path: Path) -> None:
    config = settings(toy(tmp_path / "data"), epochs=2, select="val", val_share=0.5, ids=2)
    plain = fit(config, tmp_path / "plain")
    averaged = fit(with_(config, train={"ema": 0.9}), tmp_path / "averaged")
    same = zip(plain.network.own_state().items(), averaged.network.own_state().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in same)
    losses = [[line["losses"] for line in log(t.out) if "losses" in line] for t in (plain, averaged)]
    assert losses[0] == losses[1]
    assert averaged.ema is not None
    network, _ = adapter.load(tmp_path / "averaged" / "last")
    own = network.own_state()
    assert all(torch.equal(own[name], mean) for name, mean in averaged.ema.tensors.items())
    moved = [n for n in averaged.network.trained() if not torch.equal(own[n], averaged.network.own_state()[n])]
    assert set(moved) == set(averaged.network.trained())
    assert all(math.isfinite(line["val"]["mAP"]) for line in log(averaged.out) if "val" in line)


@pytest.mark.parametrize("steps", [3, 5])  # within a group whose gradients are summed; at an epoch's end
def test_an_interrupted_average_goes_on_exactly(tmp_path: Path, steps: int) -> None:
    config = settings(toy(tmp_path / "data"), epochs=2, save_every=1, ema=0.9, accumulate=2)
    fit(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(config, tmp_path / "broken"), steps).fit()
    fit(config, tmp_path / "broken", resume=True)
    assert same_state(tmp_path / "whole", tmp_path / "broken")
    with safe_open(tmp_path / "broken" / "state.safetensors", framework="pt") as file:
        assert any(name.startswith("ema.") for name in file.keys())  # noqa: SIM118  # it has no __iter__


def test_the_average_is_what_is_validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, seen = "prompts.semantic.tokens", list[Tensor]()

    def spy(network: Any, *rest: Any) -> Any:
        seen.append(network.get_parameter(name).detach().clone())
        return look(network, *rest)

    monkeypatch.setattr("dmpt.training.trainer.look", spy)
    config = settings(toy(tmp_path / "data"), epochs=1, select="val", val_share=0.5, ids=2, ema=0.9)
    trainer = fit(config, tmp_path / "run")
    assert trainer.ema is not None
    assert torch.equal(seen[-1], trainer.ema.tensors[name])
    assert not torch.equal(seen[-1], trainer.network.get_parameter(name))


def test_the_average_knows_how_far_training_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[int]()
    monkeypatch.setattr("dmpt.extensions.ema.EMA.update", lambda _, step: seen.append(step))
    fit(settings(toy(tmp_path / "data"), epochs=2, ema=0.9, accumulate=2), tmp_path / "run")
    assert seen == [line["step"] for line in log(tmp_path / "run") if "grad_norm" in line]
    assert len(seen) > 3
