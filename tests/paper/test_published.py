"""Published numbers: the file is whole, and what cannot be compared is never set beside what can."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.paper.cells import cells
from dmpt.paper.published import CASES, Row, ours, published

ROWS = published()


def row(dataset: str, method: str, **values: Any) -> Row:
    """The one row with these values."""
    found = [r for r in published(dataset) if r.method == method and all(getattr(r, k) == v for k, v in values.items())]
    assert len(found) == 1, found
    return found[0]


def test_every_row_is_whole() -> None:
    names = {"rgbnt201", "market1501_mm", "rgbnt100", "msvr310", "wmveid863", "rgbn300", "any"}
    assert {r.dataset for r in ROWS} == names
    for r in ROWS:
        assert r.method, r
        assert r.source, r
        assert r.missing in ("", *CASES), r
        ranks = [r.rank1, r.rank5, r.rank10]
        printed = [rank for rank in ranks if rank is not None]
        assert printed == sorted(printed), r
        assert all(0 < value <= 100 for value in (*printed, r.mAP or 1)), r
        assert (r.mAP is None) == (r.dataset == "any"), r
        assert r.rank5 is not None or r.rank10 is None, r


def test_no_row_is_there_twice() -> None:
    keys = Counter((r.dataset, r.method, r.backbone, r.missing, r.apart, r.source, r.note) for r in ROWS)
    assert [key for key, count in keys.items() if count > 1] == []


@pytest.mark.parametrize(
    ("dataset", "method", "chosen", "numbers"),
    [
        ("rgbnt201", "LRMM", {}, (52.3, 53.4, 64.6, 73.2)),
        ("rgbnt201", "TOP-ReID", {"missing": ""}, (72.3, 76.6, 84.7, 89.4)),
        ("rgbnt201", "Signal", {}, (80.3, 85.2, 91.4, 93.7)),
        ("rgbnt201", "HTT", {"backbone": "CLIP"}, (75.3, 77.3, 86.5, 90.9)),
        ("rgbnt201", "MambaPro", {}, (78.9, 83.4, 89.8, 91.9)),
        ("market1501_mm", "ICPL", {}, (85.1, 94.7, 98.4, 99.1)),
        ("market1501_mm", "EDITOR", {"source": "DESANet README"}, (78.8, 91.4, 97.4, 98.6)),
        ("rgbnt100", "CLIP-ReID", {}, (87.0, 96.9, None, None)),
        ("msvr310", "CCNet", {}, (36.4, 55.2, 72.4, 79.7)),
        ("msvr310", "ICPL", {}, (56.9, 77.7, 87.6, 91.5)),
        ("wmveid863", "FACENet", {}, (69.8, 77.0, 81.0, 84.2)),
        ("rgbn300", "UniCat", {}, (80.2, 92.9, None, None)),
        ("rgbnt201", "DeMo", {"missing": "RGB+TIR"}, (26.3, 24.9, None, None)),
        ("rgbnt100", "DENet", {"missing": "NIR+TIR"}, (50.1, 74.2, None, None)),
        ("msvr310", "MDReID", {"missing": "mismatched"}, (22.1, None, None, None)),
    ],
)
def test_rows_by_value(dataset: str, method: str, chosen: dict[str, str], numbers: tuple[float | None, ...]) -> None:
    found = row(dataset, method, **chosen)
    assert (found.mAP, found.rank1, found.rank5, found.rank10) == numbers


def test_parameters_by_value() -> None:
    assert row("any", "TransReID").trained_M == 278.23
    assert (row("rgbnt100", "DeMo", backbone="CLIP", missing="").trained_M, row("any", "DeMo baseline").gflops) == (
        98.79,
        34.28,
    )
    assert {r.trained_M for r in ROWS if r.method.startswith("DMPT")} == {17.9}


@pytest.mark.parametrize("measure", ["mAP", "rank1"])
def test_printed_means_are_the_means_of_six_cases(measure: str) -> None:
    means = [r for r in ROWS if r.missing == "mean"]
    assert len(means) == 5
    for mean in means:
        six = [getattr(row(mean.dataset, mean.method, missing=case), measure) for case in CASES[:6]]
        assert abs(sum(six) / 6 - getattr(mean, measure)) <= 0.1, mean


def test_methods_that_train_on_the_test_set_stand_apart() -> None:
    apart = {(r.method, r.apart) for r in ROWS if r.apart}
    assert apart == {("HTT", "test-time-trained"), ("ProxyTTT", "test-time-trained"), ("MDReID", "re-ranked")}
    assert all(r.apart for r in ROWS if r.method in ("HTT", "ProxyTTT"))


def test_the_papers_cells_agree_with_the_table() -> None:
    for name, cell in cells().items():
        dataset, kind = name.split("-", 1) if not name.startswith("table") else ("", "")
        if not dataset:
            continue
        method = {"clip": "DMPT", "vit": "DMPT", "baseline1": "DMPT Baseline 1", "baseline2": "DMPT Baseline 2"}[kind]
        printed = row(dataset, method, backbone="CLIP" if kind == "clip" else "ViT")
        assert cell.paper == {k: getattr(printed, k) for k in ("mAP", "rank1", "rank5", "rank10") if k in cell.paper}
        assert ("rank5" in cell.paper) == (printed.rank5 is not None)


def metrics(folder: Path, **changes: Any) -> Path:
    """A run that was evaluated on the whole of RGBNT201."""
    provenance = {
        "adapter": str(folder / "last"),
        "which": "last",
        "step": 60,
        "seed": 3,
        "selected": "last",
        "data": "rgbnt201",
        "commit": "abc123",
        "dmpt": "0.1",
    }
    content: dict[str, Any] = {
        "protocol": "same_camera",
        "mAP": 80.25,
        "rank1": 81.0,
        "rank5": 90.0,
        "rank10": 95.0,
        "queries": 836,
        "gallery": 836,
        "skipped": [],
        "provenance": provenance | {k: changes.pop(k) for k in list(changes) if k in provenance},
    }
    (folder / "last").mkdir(parents=True)
    card = {"config": {"backbone": {"name": "vit_tiny"}}}
    (folder / "last" / "config.json").write_text(json.dumps(card))
    (folder / "metrics.json").write_text(json.dumps(content | changes))
    return folder


def test_ours_says_where_it_comes_from(tmp_path: Path) -> None:
    (mine,) = ours(metrics(tmp_path / "a"))
    assert mine.method == "ours"
    assert (mine.dataset, mine.mAP, mine.rank10, mine.apart) == ("rgbnt201", 80.25, 95.0, "")
    assert mine.source == str(tmp_path / "a" / "last")
    assert mine.note == "seed 3, step 60, commit abc123"
    assert mine.backbone == "vit_tiny"
    assert "dmpt 0.1" in ours(metrics(tmp_path / "b", commit=None))[0].note
    assert ours(metrics(tmp_path / "c", selected="test", which="best"))[0].note.endswith("best epoch on test")
    moved = metrics(tmp_path / "d", selected="test", which="model")  # a copy of the folder best
    content = json.loads((moved / "metrics.json").read_text())
    content["provenance"]["chosen_by"] = "test"
    (moved / "metrics.json").write_text(json.dumps(content))
    assert ours(moved)[0].note.endswith("best epoch on test")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"protocol": "none"}, "protocol none"),
        ({"queries": 900}, "other data: 900 query samples, not 836"),
        ({"queries": 24}, "other data: 24 query samples, not 836"),
        ({"gallery": 9, "protocol": "none"}, "protocol none, other data: 9 gallery samples, not 836"),
        ({"skipped": ["x", "y"]}, "2 missing or broken files left out"),
    ],
)
def test_ours_stands_apart_when_it_is_not_the_data_sets_number(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    assert [row.apart for row in ours(metrics(tmp_path / "a", **changes))] == [reason]


def test_a_model_of_two_modalities_is_not_taken_for_one_of_three(tmp_path: Path) -> None:
    case = {"mAP": 50.0, "rank1": 51.0, "rank5": 52.0, "rank10": 53.0}
    without = {"cases": {"M(RGB)": case, "M(NIR)": case}, "mean": case, "any_to_any": {"mismatched": case}}
    run = metrics(tmp_path / "a", missing=without)
    content = json.loads((run / "metrics.json").read_text())
    content["provenance"]["modalities"] = ["rgb", "nir"]
    (run / "metrics.json").write_text(json.dumps(content))
    assert [(row.missing, row.apart) for row in ours(run)] == [
        ("", "reads RGB+NIR alone"),
        ("RGB+TIR", "reads RGB+NIR alone"),
        ("NIR+TIR", "reads RGB+NIR alone"),
    ]


def test_ours_with_missing_modalities_or_re_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def numbers(mAP: float) -> dict[str, float]:
        return {"mAP": mAP, "rank1": mAP + 1, "rank5": mAP + 2, "rank10": mAP + 3}

    without = {
        "cases": {"M(RGB)": numbers(50), "M(NIR+TIR)": numbers(40)},
        "mean": numbers(60),
        "any_to_any": {"matched": numbers(20), "mismatched": numbers(30), "disjoint": numbers(10)},
    }
    again = {"method": "k-reciprocal", **numbers(90)}
    run = metrics(tmp_path / "a", missing=without, k_reciprocal_reranked=again)
    found = ours(run)
    assert [(row.missing, row.mAP, row.apart) for row in found] == [
        ("", 80.25, ""),
        ("", 90.0, "re-ranked (k-reciprocal)"),
        ("RGB", 50.0, ""),
        ("NIR+TIR", 40.0, ""),
        ("mean", 60.0, ""),
        ("mismatched", 30.0, ""),
    ]
    bare = metrics(tmp_path / "bare")
    main(["results", "--dataset", "rgbnt201", "--missing", "--runs", str(run), str(bare)])
    captured = capsys.readouterr()
    assert captured.err == f"left out: {bare} was evaluated with all modalities alone\n"
    lines = captured.out.splitlines()
    assert "│ ours " in lines[4]  # the highest mean
    cells_of = [cell.strip() for cell in lines[4].split("│")[2:10]]
    assert cells_of == ["50.0/51.0", "-", "-", "-", "-", "40.0/41.0", "60.0/61.0", "30.0/31.0"]
    main(["results", "--dataset", "rgbnt201", "--runs", str(run)])
    comparable, _, apart = capsys.readouterr().out.partition("not to be compared")
    assert ("80.2 │" in comparable, "90.0 │ 91.0" in comparable, "90.0 │ 91.0" in apart) == (True, False, True)


def test_ours_stands_in_the_table_by_mAP(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, elsewhere = metrics(tmp_path / "a"), metrics(tmp_path / "b", data="msvr310", protocol="same_scene")
    toy = metrics(tmp_path / "toy", queries=24, mAP=99.0)
    main(["results", "--dataset", "rgbnt201", "--runs", str(here), str(elsewhere), str(toy), "--json"])
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert f"left out: {elsewhere} was evaluated on msvr310" in captured.err
    assert [r["mAP"] for r in rows] == sorted((r["mAP"] for r in rows), reverse=True)
    assert {r["missing"] for r in rows} == {""}
    place = [r["source"] for r in rows].index(str(here / "last"))
    assert (rows[place - 1]["method"], rows[place + 1]["method"]) == ("Signal", "IDEA")
    assert {r["dataset"] for r in rows} == {"rgbnt201"}

    main(["results", "--dataset", "rgbnt201", "--runs", str(here), str(toy)])
    comparable, _, apart = (said := capsys.readouterr().out).partition("not to be compared")
    assert said.count("rgbnt201, protocol same_camera") == 2
    assert "not yet run" not in said
    main(["results", "--dataset", "rgbnt201"])
    assert "ours: not yet run here; dmpt results --dataset rgbnt201 --runs RUN" in capsys.readouterr().out
    for text in ("test-time-trained", "re-ranked", "24 query", "ProxyTTT, AAAI"):
        assert text not in comparable
        assert text in apart
    assert str(here / "last") in comparable
    assert "seed 3, step 60, commit abc123" in comparable


def test_missing_modalities_have_a_table_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    main(["results", "--dataset", "rgbnt201", "--missing"])
    lines = capsys.readouterr().out.splitlines()
    assert [name for name in ("M(RGB)", "M(NIR+TIR)", "mean", "mismatched") if name not in lines[2]] == []
    top = next(line for line in lines if "│ TOP-ReID " in line)
    assert "54.4/57.5" in top
    assert "44.4/45.4" in top
    main(["results", "--dataset", "wmveid863", "--missing"])
    assert capsys.readouterr().out == "nothing is published for wmveid863\n"


def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"holds no metrics.json; run dmpt evaluate"):
        ours(tmp_path)
    for text in ("{", "[]", '{"provenance": {}}'):
        (tmp_path / "metrics.json").write_text(text)
        with pytest.raises(UserError, match=r"metrics.json is damaged"):
            ours(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["results", "--dataset", "rgbnt200"])
    assert stop.value.code == 2
    assert "rgbnt201" in capsys.readouterr().err
