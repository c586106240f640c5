"""The parameter table, against DESIGN's arithmetic and against real modules."""

from typing import Any

import pytest

from dmpt.extensions.assemble import assemble
from dmpt.paper.parameters import _lora_instead, count_parameters, equal_lora_rank
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
    network = assemble(config, 150, "person").network
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


def test_counts_of_the_bind() -> None:
    """For CLIP ViT-B/16: linears D -> n D of rank r hold r (n + 1) D + n D instead of n (D + 1) D."""

    def counts(**bind: Any) -> dict[str, int]:
        return {c["name"]: c["count"] for c in count_parameters(with_(Config(), bind=bind), 171)["components"]}

    d, r = 768, 64
    low = counts(rank=r)
    assert low["bind: external interaction"] == 7 * (2 * r * d + d)
    assert low["bind: internal interaction SA"] == 3 * (r * 4 * d + 3 * d + r * 2 * d + d)
    assert counts(share=True)["bind: internal interaction SA"] == 7_087_104 // 3
    assert counts(layers=(5,))["bind: internal interaction SA"] == 2 * 7_087_104
    assert counts(share=True)["bind: LayerNorm of SA"] == 4_608 // 3


def test_parameters_are_counted_apart_from_the_tower() -> None:
    lora = with_(_lora_instead(Config()), lora={"rank": 8})
    components = by_name(lora)
    assert components["low-rank updates, shared", True] == 12 * 4 * 768 * 8
    assert components["backbone, one copy for three streams", False] == 86_140_416 - 393_216
    assert count_parameters(lora, 171)["towers"] == count_parameters(Config(), 171)["towers"]
    probe = with_(lora, backbone={"tune": "linear"})
    assert by_name(probe)["linear probe", True] == 3 * (768 * 768 + 768)


@pytest.mark.parametrize("config", [Config(), Config(heads="modality")])
def test_lora_of_equal_count_is_the_nearest(config: Config) -> None:
    rank = equal_lora_rank(config, 171)
    wanted = count_parameters(config, 171)["trained"]
    ranks = (with_(_lora_instead(config), lora={"rank": rank + d}) for d in (-1, 0, 1))
    off = [abs(count_parameters(lora, 171)["trained"] - wanted) for lora in ranks]
    assert off[1] == min(off)
