"""The linear probe: it starts as the frozen feature, and trains one map per modality and nothing else."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dmpt.extensions.linear_probe import LinearProbe
from dmpt.settings.config import Config
from runs import adapter_gives_what_was_trained, fit, settings, toy, with_
from small import BARE, Small, error_of, redraw, seeded, small_images, small_model, trains_all_that_is_to_be_trained


def bare(tune: str) -> Small:
    return small_model(backbone={"tune": tune}, text={"loss": "off"}, **BARE)


@torch.no_grad()
def test_it_starts_as_the_frozen_feature() -> None:
    frozen, tuned = bare("frozen").network, bare("linear").network
    images = small_images(frozen.backbone)
    assert error_of(tuned(images).features.x, frozen(images).features.x) < 1e-6


@torch.no_grad()
def test_it_is_one_linear_map_of_each_modality_behind_the_norm() -> None:
    probe = LinearProbe(8).double()
    redraw(probe, seeded(), 0.5)
    cls = torch.randn(3, 2, 8, generator=seeded(1)).double()
    found = probe(lambda x: x.square(), cls, None)
    for m, linear in enumerate(probe.map):
        weight, bias = linear.get_parameter("weight"), linear.get_parameter("bias")
        assert error_of(found[m], cls[m].square() @ weight.T + bias) < 1e-12


def test_its_maps_learn_and_the_tower_does_not() -> None:
    model = bare("linear")
    network = model.network
    own = {n for n in network.trained() if not n.startswith("heads.")}
    assert own == {f"readout.map.{m}.{part}" for m in range(3) for part in ("weight", "bias")}
    trains_all_that_is_to_be_trained(model)


def test_an_adapter_gives_the_features_of_the_trained_probe(tmp_path: Path) -> None:
    config = with_(settings(toy(tmp_path / "data"), epochs=1), **BARE, backbone={"tune": "linear"})
    adapter_gives_what_was_trained(config, tmp_path / "run")


def test_trained_heads_alone_leave_the_frozen_feature_as_it_was(tmp_path: Path) -> None:
    """Why the row of a linear probe needs ``linear`` or ``neck: after``."""
    frozen = with_(settings(toy(tmp_path / "data"), epochs=2), **BARE)
    images = torch.randn(3, 4, 3, 32, 16)

    def features(config: Config, name: str) -> Tensor:
        trainer = fit(config, tmp_path / name)
        trainer.network.eval()
        with torch.no_grad():
            return trainer.network.embed(images)

    untrained = features(with_(frozen, train={"epochs": 0}), "untrained")
    assert torch.equal(features(frozen, "heads"), untrained)
    assert not torch.allclose(features(replace(frozen, neck="after"), "neck"), untrained)
    assert not torch.allclose(features(with_(frozen, backbone={"tune": "linear"}), "linear"), untrained)
