"""``dmpt evaluate --missing``: cases, every pair of subsets, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.data.missing import restrict
from dmpt.data.records import Dataset, Record
from dmpt.embed.extract import Seen
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.evaluation.missing import _MIXED_SEED, _any_to_any, square, views
from dmpt.retrieval.embeddings import join
from dmpt.retrieval.metrics import evaluate as score
from dmpt.settings.modalities import MODALITIES
from items import items, oracle, some_labels
from runs import fit, own_data, settings, toy, with_

SUBSETS = [tuple(m for i, m in enumerate(MODALITIES) if code >> i & 1) for code in (7, 6, 5, 3, 4, 2, 1)]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(with_(settings(data, epochs=2), missing={"dropout": 0.4}), folder)
    return folder


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2


def test_all_cases_are_printed_and_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run), "--missing", "all", "--rerank"])
    said = capsys.readouterr().out
    for words in (
        "M(NIR+TIR)",
        "mean of the cases",
        "mismatched",
        "the gallery in a column",
        "RGB+NIR+TIR",
        "k-reciprocal re-ranking",
        "same_camera",
    ):
        assert words in said
    found = json.loads((run / "metrics.json").read_text())
    cases = found["missing"]["cases"]
    assert list(cases) == ["M(RGB)", "M(NIR)", "M(TIR)", "M(RGB+NIR)", "M(RGB+TIR)", "M(NIR+TIR)"]
    assert found["missing"]["mean"]["mAP"] == pytest.approx(sum(x["mAP"] for x in cases.values()) / 6)
    pairs = found["missing"]["any_to_any"]["pairs"]
    by_pair = {(tuple(p["query"]), tuple(p["gallery"])): p["mAP"] for p in pairs}
    assert len(by_pair) == 49
    assert by_pair[MODALITIES, MODALITIES] == found["mAP"]
    assert by_pair[("tir",), ("tir",)] == cases["M(RGB+NIR)"]["mAP"]
    means = found["missing"]["any_to_any"]
    assert means["matched"]["mAP"] == pytest.approx(sum(v for (q, g), v in by_pair.items() if q == g) / 7)
    assert means["mismatched"]["mAP"] == pytest.approx(sum(v for (q, g), v in by_pair.items() if q != g) / 42)
    apart = [v for (q, g), v in by_pair.items() if not set(q) & set(g)]
    assert len(apart) == 12
    assert means["disjoint"]["mAP"] == pytest.approx(sum(apart) / 12)
    assert found["k_reciprocal_reranked"]["method"] == "k-reciprocal re-ranking (k1=20, k2=6, lambda=0.3)"
    plain = evaluate(run).to_dict()
    assert "missing" not in plain
    assert "k_reciprocal_reranked" not in plain
    assert plain["mAP"] == found["mAP"]


def test_a_case_is_a_test_set_without_these_images(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = evaluate(run, without="tir+RGB").missing
    assert list(one["cases"]) == ["M(RGB+TIR)"]
    assert "any_to_any" not in one

    def only(layout: str, root: str, *settings: Any) -> Dataset:
        whole = load_dataset(layout, root)
        test = tuple(restrict(whole.gallery, ("nir",)))
        return replace(whole, query=test, gallery=test)

    monkeypatch.setattr("dmpt.evaluation.opened.load_dataset", only)
    assert evaluate(run).metrics.mAP == one["cases"]["M(RGB+TIR)"]["mAP"]


@pytest.mark.parametrize("what", ["rgb+nir+tir", "infrared", "rgb+rgb", ""])
def test_an_unknown_case_is_refused(run: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    refused("evaluate", str(run), f"--missing={what}")
    assert (
        "of this model can be missing: rgb, nir, tir, rgb+nir, rgb+tir, nir+tir; or give all"
        in capsys.readouterr().err.replace("\n", " ")
    )


def test_without_a_shared_part_it_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(settings(data, epochs=1), tmp_path / "run")
    main(["evaluate", str(tmp_path / "run"), "--missing", "all"])
    assert "no shared part was trained" in capsys.readouterr().out


def test_a_case_without_a_valid_query_is_named(tmp_path: Path) -> None:
    toys = toy(tmp_path / "toy")
    data = own_data(tmp_path / "own", toys, lambda record, name: name != "tir" or record.camera == 1)
    fit(with_(settings(toys, epochs=0), data={"root": str(data), "layout": "manifest"}), tmp_path / "run")
    with pytest.raises(UserError, match=r"--missing rgb\+nir: no query has a match"):
        evaluate(tmp_path / "run", without="all")


def test_a_test_split_without_the_models_modalities(tmp_path: Path) -> None:
    toys = toy(tmp_path / "toy")
    data = own_data(tmp_path / "own", toys, lambda record, name: name == "rgb")
    settled = with_(settings(toys, epochs=0), data={"root": str(data), "layout": "manifest", "modalities": ("tir",)})
    fit(settled, tmp_path / "run")
    with pytest.raises(UserError, match="no query sample has tir, which the model reads"):
        evaluate(tmp_path / "run")


def test_a_run_is_evaluated_in_the_precision_of_its_training(data: Path, tmp_path: Path) -> None:
    fit(settings(data, epochs=0, precision="bf16"), tmp_path / "run")
    assert evaluate(tmp_path / "run").provenance["precision"] == "bf16"
    assert evaluate(tmp_path / "run", Conditions(precision="fp32")).provenance["precision"] == "fp32"


def seen_in(kept: tuple[str, ...]) -> Seen:
    """9 queries and 15 gallery items whose features depend on what is left, as the interaction makes them."""
    has = np.array([m in kept for m in MODALITIES])
    code = sum(2 ** MODALITIES.index(m) for m in kept)
    sides = items(9, code, has, standardised=True), items(15, 10 + code, has, standardised=True)
    return Seen(*sides, some_labels(9), some_labels(15, 1))


def test_any_to_any_is_every_pair_and_a_draw_of_views() -> None:
    seen = {kept: seen_in(kept) for kept in SUBSETS}
    labels = seen[SUBSETS[0]].query_labels, seen[SUBSETS[0]].gallery_labels
    found = _any_to_any(seen, "none")
    for pair in found["pairs"]:
        one, other = seen[tuple(pair["query"])], seen[tuple(pair["gallery"])]
        assert pair["mAP"] == score(one.query, other.gallery, *labels, "none").mAP
    chance, sights = np.random.default_rng(_MIXED_SEED), list(seen.values())
    choice = chance.integers(0, 7, 9), chance.integers(0, 7, 15)
    query = join(*(sights[c].query[np.array([i])] for i, c in enumerate(choice[0])))
    gallery = join(*(sights[c].gallery[np.array([i])] for i, c in enumerate(choice[1])))
    assert found["mixed"]["mAP"] == score(query, gallery, *labels, "none").mAP
    raw = score(query, replace(gallery, standardisation=None), *labels, "none").mAP
    assert found["mixed_unstandardised"]["mAP"] == raw != found["mixed"]["mAP"]


def test_each_side_is_cut_to_what_is_left() -> None:
    query, gallery = (
        [Record({m: Path(f"{s}{i}_{m}") for m in MODALITIES}, i, 1) for i in range(n)] for s, n in (("q", 9), ("g", 15))
    )
    found = views((query, gallery), MODALITIES, [("rgb",), ("rgb", "nir")])
    assert found == {MODALITIES: (), ("nir", "tir"): ("rgb",), ("tir",): ("rgb", "nir")}
    with pytest.raises(UserError, match=r"--missing rgb: the test set has no image of nir or tir"):
        views((query, restrict(gallery, ("rgb",))), MODALITIES, [("rgb",)])


def test_any_to_any_as_a_square_is_each_pair_by_itself() -> None:
    """Against a slow transcription: every pair of subsets is ranked by hand."""
    seen = {kept: seen_in(kept) for kept in SUBSETS}
    names, values = square(_any_to_any(seen, "none"))
    assert names == ["RGB", "NIR", "TIR", "RGB+NIR", "RGB+TIR", "NIR+TIR", "RGB+NIR+TIR"]
    for one, row in zip(names, values, strict=True):
        for other, value in zip(names, row, strict=True):
            asked, searched = (seen[tuple(name.lower().split("+"))] for name in (one, other))
            scores = oracle(asked.query, searched.gallery)
            precisions = []
            for line, pid in zip(scores, asked.query_labels.pids, strict=True):
                hits = searched.gallery_labels.pids[np.argsort(-line, kind="stable")] == pid
                ranks = np.flatnonzero(hits) + 1
                precisions += [np.mean(np.arange(1, len(ranks) + 1) / ranks)] if len(ranks) else []
            assert value == pytest.approx(100 * np.mean(precisions), abs=1e-6), (one, other)
