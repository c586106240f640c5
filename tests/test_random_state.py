"""Loading and judging leave the caller's random numbers alone; a trainer may seed, and is the same as ever."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_files import tiny_clip
from dmpt.adapter.folder import load
from dmpt.data.check import check
from dmpt.data.layouts import load_dataset
from dmpt.embed.extract import extract
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.extensions.assemble import assemble
from dmpt.paper.parameters import count_parameters
from dmpt.report.pages import report
from dmpt.settings.config import BackboneConfig, Config
from dmpt.synthetic.write import write_world
from dmpt.towers.image import build_vit
from dmpt.towers.text import load_text_tower
from runs import fit, settings, toy


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(settings(toy(folder / "data", images=4), epochs=1), folder / "run")
    return folder / "run"


def states() -> tuple[bytes, ...]:
    """Of all generators that a caller shares with us."""
    kind, keys, *rest = np.random.get_state()
    numpy = repr((kind, np.asarray(keys).tolist(), rest)).encode()
    return torch.get_rng_state().numpy().tobytes(), numpy, repr(random.getstate()).encode()


def config_of(run: Path) -> Config:
    return load(run / "last")[1].config


def features(run: Path) -> None:
    network, card = load(run / "last")
    extract(network, load_dataset("rgbnt201", run.parent / "data").gallery, card.config.data)


CALLS: dict[str, Callable[[Path], object]] = {
    "adapter": lambda run: load(run / "last"),
    "random tower": lambda run: build_vit(config_of(run).backbone, (32, 16)),
    "tower of a file": lambda run: build_vit(tiny_clip()[0], (64, 32)),
    "shapes of a tower": lambda run: build_vit(BackboneConfig(), (256, 128), load=False),
    "text tower": lambda run: load_text_tower(tiny_clip()[1]),
    "evaluation": lambda run: evaluate(run, without="all", reranked=True),
    "evaluation by workers": lambda run: evaluate(run, Conditions(workers=1)),
    "features": features,
    "report": lambda run: report([evaluate(run)], run.parent / "report.html"),
    "comparison": lambda run: report([evaluate(run), evaluate(run / "last")], run.parent / "compare.html"),
    "check": lambda run: check("rgbnt201", run.parent / "data", workers=0),
    "parameters": lambda run: count_parameters(config_of(run), 8),
    "drawn world": lambda run: write_world(run.parent / "world", train_ids=1, test_ids=1, images=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_callers_random_numbers_stay(run: Path, name: str) -> None:
    before = states()
    CALLS[name](run)
    assert states() == before


def test_loading_seeds_no_gpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(3)
    assert seeded == [3]
    load(run / "last")
    assert seeded == [3]


def test_states_are_seen_to_move() -> None:
    for draw in (lambda: torch.rand(1), np.random.rand, random.random):
        before = states()
        draw()
        assert states() != before


def test_random_weights_are_those_of_the_run_whatever_was_drawn_before(run: Path) -> None:
    torch.manual_seed(1)
    one, _ = load(run / "last")
    torch.manual_seed(2)
    other, _ = load(run / "last")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    config = config_of(run).backbone
    assert build_vit(config, (32, 16))[1].sha256 != load(run / "last")[1].backbone_sha256  # of another seed


def test_a_trainer_draws_on_where_the_towers_initial_values_end(run: Path) -> None:
    """Kept results began from there."""
    config = config_of(run)
    config = replace(config, modality=replace(config.modality, length=0))
    network = assemble(config, 8, "person").network
    torch.manual_seed(config.train.seed)
    build_vit(config.backbone, config.data.size, keep_random_state=False)
    prompts = network.prompts.semantic.tokens
    bound = (6 / (3 * 16**2 + 48)) ** 0.5
    assert torch.equal(prompts.detach(), torch.empty(prompts.shape).uniform_(-bound, bound))
