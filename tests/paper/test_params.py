"""The parameter table, against DESIGN's arithmetic and against real modules."""

import pytest

from dmpt.extensions.assemble import build
from dmpt.paper.parameters import count_parameters, equal_lora_rank
from dmpt.settings.config import (
    BackboneConfig,
    BindConfig,
    Config,
    MissingConfig,
    ModalityConfig,
    SemanticConfig,
    TextConfig,
)
from dmpt.study.data import find_data
from dmpt.study.rows import config_of
from runs import settings, with_


def by_name(config: Config, ids: int = 171) -> dict[tuple[str, bool], int]:
    return {(c["name"], c["trained"]): c["count"] for c in count_parameters(config, ids)["components"]}


def test_the_papers_setting_gives_17_9_million_and_6_5_percent() -> None:
    result = count_parameters(Config(heads="paper"), 171)
    assert result["trained"] == 17_895_168
    assert result["towers"] == 258_421_248
    assert result["paper_ratio"] == pytest.approx(6.48, abs=0.005)
    counts = by_name(Config(heads="paper"))
    assert counts["semantic prompts S", True] == 884_736
    assert counts["modality prompts: mapping P", True] == 4_727_808
    assert counts["bind: external interaction", True] == 4_134_144
    assert counts["bind: internal interaction SA", True] == 7_087_104
    assert counts["bind: LayerNorm of SA", True] == 4_608
    assert counts["image projection", False] == 393_216
    assert counts["backbone, one copy for three streams", False] == 86_140_416 - 393_216


def test_the_default_gives_what_the_readme_says() -> None:
    assert count_parameters(Config(), 171)["trained"] == 17_630_976


def test_in_memory_counts_one_tower() -> None:
    result = count_parameters(Config(), 171)
    frozen = sum(c["count"] for c in result["components"] if not c["trained"])
    assert result["in_memory"] == result["trained"] + frozen
    assert 86_140_416 < frozen < 86_170_000  # the tower with its projection, words, and batch norms' statistics


def test_what_is_switched_off_is_not_counted() -> None:
    bare = Config(
        semantic=SemanticConfig(0), modality=ModalityConfig(0), bind=BindConfig(0), text=TextConfig(loss="off")
    )
    assert {name for name, _ in by_name(bare)} == {
        "backbone, one copy for three streams",
        "heads: batch norm",
        "heads: classifiers",
    }
    assert ("bind: external interaction", True) not in by_name(Config(bind=BindConfig(external=False)))


def test_the_imagenet_tower_trains_its_projection() -> None:
    config = Config(backbone=BackboneConfig(name="vit_base_patch16_224.augreg_in21k", projection="trained"))
    assert by_name(config)["image projection", True] == 768 * 512
    assert count_parameters(config, 171)["towers"] == 257_239_296


def test_words_of_a_ready_text_file_have_a_width_of_their_own() -> None:
    config = config_of(find_data("synthetic").settings)
    network, _, _ = build(config, 150, "person")
    assert count_parameters(config, 150)["trained"] == sum(p.numel() for p in network.trained().values())


def test_identity_tokens_are_counted_per_modality() -> None:
    config = Config(text=TextConfig(loss="identity"))
    assert by_name(config)["identity tokens of the text loss", True] == 3 * 171 * 4 * 512


def test_an_equal_lora_rank_where_the_bind_knows_what_is_absent() -> None:
    plain = Config(missing=MissingConfig(dropout=0.3))
    learned = Config(missing=MissingConfig(dropout=0.3, absent="learned"))
    assert equal_lora_rank(learned, 171) >= equal_lora_rank(plain, 171)


def test_learned_words_are_trained() -> None:
    counts = by_name(Config(modality=ModalityConfig(source="learned", length=2, width=512)))
    assert counts["modality prompts: words", True] == 3 * 2 * 512


def test_full_fine_tuning_counts_the_tower_as_trained(tmp_path: object) -> None:
    config = with_(settings(tmp_path), backbone={"tune": "full"})  # type: ignore[arg-type]
    assert by_name(config)["backbone, one copy for three streams", True] > 50_000
