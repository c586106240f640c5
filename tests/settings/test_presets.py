"""Presets: files of changes, on top of any other settings."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from dmpt.cli import main
from dmpt.paper.parameters import count_parameters
from dmpt.settings.shipped import folder, shipped
from dmpt.settings.values import flatten
from dmpt.study.data import find_data
from dmpt.study.definition import find
from dmpt.study.reading import shipped_settings
from dmpt.study.results import ENDING, read
from dmpt.study.rows import config_of
from dmpt.training.log import LOG
from runs import fit, settings, toy, with_

PRESETS = ("dmpt+", "dmpt-fast", "decoupled", "decoupled-fast")
ADVISED = {"own", *(name for name in shipped() if name.endswith("_peer"))}
BASES = sorted({*shipped()} - {*PRESETS, *ADVISED})


def changes(preset: str) -> dict[str, Any]:
    return shipped_settings(preset)


def params(capsys: pytest.CaptureFixture[str], *configs: str) -> dict[str, Any]:
    main(["params", *(word for name in configs for word in ("--config", name)), "--ids", "171", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("base", BASES)
def test_they_train_fewer_parameters_than_what_they_change(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = params(capsys, base)["trained"]
    for preset in PRESETS:
        assert params(capsys, base, preset)["trained"] < whole


def test_the_rank_of_lora_that_trains_as_many(capsys: pytest.CaptureFixture[str]) -> None:
    asked = params(capsys, "rgbnt201")
    assert asked["equal_lora_rank"] == 457  # as in studies/comparison.yaml
    main(["params", "--config", "rgbnt201", "--ids", "171"])
    assert capsys.readouterr().out.endswith("lora.rank 457\n")
    bare = ["--semantic.length", "0", "--modality.length", "0", "--bind.depth", "0", "--text.loss", "off"]
    lora = ["--backbone.tune", "lora", "--backbone.lora_rank", "457", "--ids", "171", "--json"]
    main(["params", "--config", "rgbnt201", *bare, *lora])
    found = json.loads(capsys.readouterr().out)
    assert found["trained"] == pytest.approx(asked["trained"], rel=0.002)
    assert "equal_lora_rank" not in found
    main(["params", "--config", "rgbnt201", *bare, "--json"])
    assert "equal_lora_rank" not in json.loads(capsys.readouterr().out)  # heads alone: no LoRA trains as few


def test_their_parameters_for_clip_and_171_identities(capsys: pytest.CaptureFixture[str]) -> None:
    """Without P and, in ``dmpt-fast``, without the first six layers' prompts: the paper's 17,895,168 less these."""
    p, prompts = 12 * (512 * 768 + 768), 12 * 3 * 32 * 768
    assert params(capsys, "rgbnt201", "dmpt+")["trained"] == 17_895_168 - p
    assert params(capsys, "rgbnt201", "dmpt-fast")["trained"] == 17_895_168 - p - prompts // 2


def test_they_change_what_they_name_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*configs: str) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["train", *(word for name in configs for word in ("--config", name)), "--print_config"])
        flat: dict[str, Any] = flatten(yaml.safe_load(capsys.readouterr().out))
        return flat

    before = printed("rgbnt201_vit")
    for preset in PRESETS:
        after = printed("rgbnt201_vit", preset)
        assert after == before | changes(preset)


def test_dmpt_fast_is_dmpt_plus_from_the_middle_on() -> None:
    assert changes("dmpt-fast") == changes("dmpt+") | {"semantic.first_layer": "middle"}


def test_dmpt_plus_learns_by_two_terms(tmp_path: Path) -> None:
    config = config_of(flatten(asdict(settings(toy(tmp_path / "toy"), epochs=1))) | changes("dmpt+"))
    trainer = fit(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / LOG).read_text().splitlines()]
    assert {name for line in lines for name in line.get("losses", {})} == {"ce", "metric"}
    assert trainer.network.prompts is not None
    assert trainer.network.prompts.modality is None


@pytest.mark.parametrize("name", sorted(ADVISED))
def test_what_we_advise_is_the_default_where_nothing_of_the_paper_is_reproduced(name: str) -> None:
    found = changes(name)
    assert found | changes("decoupled") == found


def test_own_cameras_hold_identities_out_where_there_are_enough() -> None:
    assert changes("own")["train.select"] == "auto"


def test_decoupled_trains_as_few_parameters_as_peers_with_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT-BoA trains 6.62 M on RGBNT201. Ours by hand: (16 + 3 x 4) (4 D + 4 D + 2 D + 8 D + 2 D) in 8 blocks."""
    d = 768
    maps, attention = (d + 3 * d) + 2 * d + (d + 4 * d) + (4 * d + d), 4 * d * d
    updates, fast = 8 * (16 + 3 * 4) * maps, 6 * (24 + 3 * 6) * maps
    heads = 171 * 6 * d + 6 * d
    thin = params(capsys, "rgbnt201", "decoupled")["trained"]
    assert thin == pytest.approx(updates + attention + heads, rel=0.002)
    assert thin <= 6.6e6
    assert params(capsys, "rgbnt201", "decoupled-fast")["trained"] == thin - updates + fast


def test_decoupled_fast_is_decoupled_from_the_middle_on_with_larger_ranks() -> None:
    assert changes("decoupled-fast") == changes("decoupled") | {
        "lora.first_layer": "middle",
        "lora.rank": 24,
        "lora.rank_per_modality": 6,
    }


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_dmpt_fast_begins_in_the_middle_of_any_tower(depth: int, tmp_path: Path) -> None:
    tower = with_(settings(tmp_path), backbone={"overrides": {"embed_dim": 48, "depth": depth, "num_heads": 3}})
    plain = flatten(asdict(tower))
    by_hand = config_of(plain | changes("dmpt+") | {"semantic.first_layer": depth // 2})
    fast = config_of(plain | changes("dmpt-fast"))
    assert count_parameters(fast, 4) == count_parameters(by_hand, 4)


@pytest.mark.parametrize("name", ["finalists", "tuning"])
def test_finalists_are_tested_with_seeds_that_chose_nothing(name: str) -> None:
    study = find(name)
    assert study.split == "test"
    seeds = set(range(study.base["train.seed"], study.base["train.seed"] + study.seeds))
    files = (folder("studies").parent / "results").glob(f"*/*{ENDING}")
    kept = [
        result for path in files if path.parent.name not in ("finalists", "tuning") for result in read(path).results
    ]
    assert len(kept) > 300
    assert not seeds & {result.seed for result in kept}


def test_finalists_are_tested_on_worlds_that_chose_nothing() -> None:
    names = [path.stem for path in (folder("studies") / "data").glob("*.yaml")]
    used = {name: world for name in names if (world := find_data(name).world)}
    fresh = {name: used.pop(name) for name in ("synthetic_fresh", "vehicles_fresh")}
    assert len(used) > 3
    assert not {world.seed for world in fresh.values()} & {world.seed for world in used.values()}
    assert find("finalists").data[0] == "synthetic_fresh"
    assert set(find("tuning").data) - {"market_mm"} == set(fresh)


def test_the_finalists_are_the_presets() -> None:
    rows = {row.name: row for row in find("finalists").rows}
    for preset in PRESETS[:2]:
        assert rows[preset].change == changes(preset)


def test_the_finalists_of_low_rank_updates_are_the_presets() -> None:
    rows = {row.name: row for row in find("tuning").rows}
    for preset in ("dmpt+", "decoupled", "decoupled-fast"):
        assert rows[preset].change == changes(preset)
