"""What the method and its extensions compute is what they computed before they were told apart, in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from by_name import CASES, IDS, LABELS, PRESENT, SUBSET, TEXT_WIDTH, drawn, fill, inputs, settings, summary, words
from dmpt.extensions.assemble import build_backbone, build_network, build_objective
from dmpt.extensions.distillation import both_views
from dmpt.extensions.readings import words_for_prompts
from dmpt.settings.rules import check
from dmpt.settings.values import from_dict
from dmpt.towers.image import build_vit
from dmpt.towers.phrases import TextTargets

STORED = np.load(Path(__file__).parents[1] / "fixtures" / "numbers.npz")
KEYS = sorted({name.rpartition("/")[0] for name in STORED.files})


def close(found: Tensor, key: str) -> None:
    expected = torch.from_numpy(STORED[key])
    assert expected.dtype == torch.float64
    assert expected.numel() > 0
    torch.testing.assert_close(found.detach(), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_every_case_is_stored() -> None:
    assert {key.partition(": ")[2] for key in KEYS} == set(CASES)
    assert len(KEYS) == 29


@pytest.mark.parametrize("key", KEYS)
def test_numbers_are_those_of_the_fixture(key: str) -> None:
    kind, _, name = key.partition(": ")
    config = from_dict(settings(CASES[name], kind))
    check(config)
    vit, tower = build_vit(config.backbone, config.data.size)
    chosen = None
    if config.modality.length:
        chosen = words_for_prompts(config.modality.source, config.modality.length, config.modality.width, words())
    network, heads = build_network(config, build_backbone(config, vit), tower, IDS, chosen)
    network.double()
    fill((n, t) for n, t in network.state_dict().items() if not n.endswith("modality.words"))
    text = TextTargets(drawn("text", 6, TEXT_WIDTH), torch.tensor([0, 2, 4]), 7.0)
    objective = build_objective(config, network, heads, text if config.text.loss != "off" else None)
    images, both = inputs(kind), config.missing.view == "both"
    present = PRESENT if config.missing.dropout and not both else None
    if len(config.data.modalities) == 2:
        present = torch.tensor([True, True, False])[:, None].expand(-1, len(LABELS))

    network.train()
    tokens = network.tokens(images, present)
    output = network.read(tokens, present)
    terms: dict[str, Any] = objective(output, LABELS)
    if both:
        view = network.read(tokens, SUBSET)
        terms = both_views(objective, output, view, LABELS, config.loss.distil, config.loss.metric_scale)
    close(output.features.x, f"{key}/features")
    close(torch.stack(list(terms.values())), f"{key}/terms")
    torch.stack(list(terms.values())).sum().backward()
    gradients = {n: p.grad for n, p in network.trained().items() if p.grad is not None}
    close(summary(gradients), f"{key}/gradients")

    with torch.no_grad():
        at_test = network.eval()(images, present)
        close(network.test_feature(at_test.features), f"{key}/test")
        if "shared" in at_test.also:
            close(at_test.also["shared"], f"{key}/shared")


@pytest.mark.parametrize("key", KEYS)
def test_a_fixture_is_not_trivial(key: str) -> None:
    assert np.ptp(STORED[f"{key}/features"]) > 0.1
    assert (STORED[f"{key}/gradients"][:, 0] > 0).mean() > 0.7  # a modality that is not in use has none
