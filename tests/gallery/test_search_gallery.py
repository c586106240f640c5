"""Search in a gallery: filters, groups, several shots, and what scores mean."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dmpt.base.errors import UserError
from dmpt.gallery.changes import add, remove
from dmpt.gallery.filters import conditions
from dmpt.gallery.search import Hit, Search
from dmpt.gallery.store import Gallery, create_gallery, open_gallery
from dmpt.gallery.times import MOMENT
from dmpt.retrieval.embeddings import Embeddings, join
from dmpt.retrieval.scores import blocks
from drawn import drawn, model

COUNT = 60
ITEMS = drawn(COUNT, ids=12, shared=True)
COLUMNS: dict[str, Any] = {
    "pid": [None if row % 5 == 4 else f"p{row % 12}" for row in range(COUNT)],
    "camera": [None if row % 7 == 6 else f"c'{row % 3}" for row in range(COUNT)],
    "site": ["north" if row % 2 else "süd" for row in range(COUNT)],
    "time": [f"2026-03-{1 + row % 28:02}T12:00:00Z" for row in range(COUNT)],
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    extra = [pa.field("site", pa.string()), pa.field("time", MOMENT)]
    made = create_gallery(tmp_path_factory.mktemp("search") / "g.lance", model(True), extra)
    own = {name: COLUMNS[name] for name in ("site", "time")}
    keys = [f"{row:03}.png" for row in range(COUNT)]
    add(made, model(True), ITEMS, keys, pid=COLUMNS["pid"], camera=COLUMNS["camera"], extra=own)
    return made


def rows(hits: list[Hit]) -> list[int]:
    return [int(hit.key[:3]) for hit in hits]


def query(seed: int = 3) -> Embeddings:
    return drawn(1, seed=seed, shared=True)


def scored(asked: Embeddings) -> Any:
    """Scores with all items, by the mixed form."""
    return next(iter(blocks(asked, ITEMS, mixed=True)))[1].copy()


def test_a_hit_says_what_the_table_says(gallery: Gallery) -> None:
    asked = query()
    (hits,) = Search(gallery)([asked], 5, group=None)
    expected = scored(asked)[0]
    assert rows(hits) == np.argsort(-expected, kind="stable")[:5].tolist()
    for hit, row in zip(hits, rows(hits), strict=True):
        assert hit.score == pytest.approx(float(expected[row]), abs=1.5e-6)
        assert (hit.pid, hit.camera) == (COLUMNS["pid"][row], COLUMNS["camera"][row])
        both = ITEMS.present[row] & asked.present[0]
        assert hit.modalities == tuple(np.array(["rgb", "nir", "tir"])[both])
        assert hit.columns["site"] == COLUMNS["site"][row]
        assert hit.columns["time"].isoformat().startswith(COLUMNS["time"][row][:19])
        assert hit.fmr is hit.expected_false_matches is hit.distance is None


FILTERS: list[tuple[dict[str, Any], Any]] = [
    ({"camera": ["c'1"]}, lambda row: COLUMNS["camera"][row] == "c'1"),
    ({"camera": ["c'1", "c'0"]}, lambda row: COLUMNS["camera"][row] in ("c'1", "c'0")),
    ({"not_camera": ["c'1"]}, lambda row: COLUMNS["camera"][row] != "c'1"),
    ({"after": "2026-03-10"}, lambda row: row % 28 >= 9),
    ({"before": "2026-03-10T12:00:00Z", "after": "1772884800"}, lambda row: 6 <= row % 28 < 9),
    ({"where": "site = 'süd' OR pid = 'p1'"}, lambda row: row % 2 == 0 or COLUMNS["pid"][row] == "p1"),
    ({"where": "site = 'süd' OR pid = 'p1'", "camera": ["c'2"]}, lambda row: (
        COLUMNS["camera"][row] == "c'2" and (row % 2 == 0 or COLUMNS["pid"][row] == "p1")
    )),
    ({"where": "site = 'nowhere'"}, lambda row: False),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "kept"), FILTERS, ids=lambda each: str(each) if isinstance(each, dict) else "")
def test_a_filter_searches_the_filtered_table(gallery: Gallery, flags: dict[str, Any], kept: Any) -> None:
    left = [row for row in range(COUNT) if kept(row)]
    asked = query()
    (hits,) = Search(gallery)([asked], COUNT, conditions=conditions(gallery, **flags), group=None)
    order = np.argsort(-scored(asked)[0][left], kind="stable")
    assert rows(hits) == [left[row] for row in order]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"after": "soon"}, "--after: 'soon' is no time"),
        ({"after": "2026", "time_column": "seen"}, "has no column seen; it has key, "),
        ({"before": "2026-03-01", "time_column": "site"}, "column site of .* holds string, no moments; filter it with"),
    ],
)
def test_filters_that_say_nothing(gallery: Gallery, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        conditions(gallery, **flags)


@pytest.mark.parametrize("where", ["sit = 'x'", "site = ", "site = 'x' site = 'y'"])
def test_conditions_that_cannot_be_read(gallery: Gallery, where: str) -> None:
    with pytest.raises(UserError, match="the condition was: "):
        Search(gallery)([query()], conditions=conditions(gallery, where=where))


@pytest.mark.parametrize("k", [1, 4, 12, 50])
def test_the_best_stands_for_its_group(gallery: Gallery, k: int) -> None:
    asked = [query(seed) for seed in range(5)]
    found = Search(gallery)(asked, k)
    for one, hits in zip(asked, found, strict=True):
        seen, expected = set[str | None](), []
        for row in np.argsort(-scored(one)[0], kind="stable"):
            pid = COLUMNS["pid"][row]
            if pid is None or pid not in seen:
                expected.append(int(row))
                seen.add(pid)
        assert rows(hits) == expected[:k]
    sites = Search(gallery)(asked, 9, group="site")
    assert [len({hit.columns["site"] for hit in hits}) for hits in sites] == [2] * 5
    with pytest.raises(UserError, match="has no column track"):
        Search(gallery)(asked, group="track")
    with pytest.raises(UserError, match=r"column rgb holds .*; group by one of labels, such as pid"):
        Search(gallery)(asked, group="rgb")


def test_several_shots(gallery: Gallery) -> None:
    shots = drawn(3, seed=8, shared=True)
    (hits,) = Search(gallery)([shots], COUNT, group=None, shots="max")
    assert rows(hits) == np.argsort(-np.round(scored(shots).max(axis=0), 6), kind="stable").tolist()
    best = scored(shots).argmax(axis=0)
    common = [ITEMS.present[row] & shots.present[best[row]] for row in rows(hits)]
    assert [hit.modalities for hit in hits] == [tuple(np.array(["rgb", "nir", "tir"])[both]) for both in common]
    (mean,) = Search(gallery)([shots], 5, group=None)
    assert [hit.score for hit in mean] != [hit.score for hit in hits[:5]]
    both = Search(gallery)([shots, query()], 5, group=None)
    assert both == [mean, Search(gallery)([query()], 5, group=None)[0]]


class Told:
    """A calibration whose FMR falls with the score, and none for pairs without a common modality."""

    def fmr(self, score: float, common: int) -> float | None:
        return None if common == 0 else float(np.clip(1 - score, 0.001, 1))

    def fpir_threshold(self, common: tuple[str, ...], n: int, fpir: float) -> float:
        assert (n, fpir) == (COUNT, 0.1)
        return 0.3 if len(common) > 1 else 2.0


def test_what_a_score_means(gallery: Gallery) -> None:
    told: Any = Told()
    (hits,) = Search(gallery)([query()], COUNT, group=None, calibration=told)
    for hit in hits:
        if not hit.modalities:
            assert hit.fmr is hit.expected_false_matches is None
        else:
            assert hit.fmr == told.fmr(hit.score, 1)
            assert hit.expected_false_matches == pytest.approx(COUNT * (hit.fmr or 0))
    (known,) = Search(gallery)([query()], COUNT, group=None, calibration=told, fpir=0.1)
    assert known == [hit for hit in hits if len(hit.modalities) > 1 and hit.score > 0.3]
    three = query(4)
    (several,) = Search(gallery)([join(three, three, three)], COUNT, group=None, calibration=told)
    for one, hit in zip(Search(gallery)([three], COUNT, group=None, calibration=told)[0], several, strict=True):
        assert (hit.fmr is None) == (one.fmr is None)
        assert hit.fmr is None or hit.fmr == pytest.approx(min(1, 3 * (one.fmr or 0)), abs=1e-5)
    with pytest.raises(UserError, match="not calibrated, so nothing says who is known"):
        Search(gallery)([query()], fpir=0.1)


def test_re_ranking_orders_by_distance_and_keeps_the_scores(gallery: Gallery) -> None:
    plain = {hit.key: hit for hit in Search(gallery)([query()], COUNT, group=None)[0]}
    (hits,) = Search(gallery)([query()], COUNT, group=None, reranked=True)
    distances = [hit.distance for hit in hits if hit.distance is not None]
    assert len(distances) == COUNT
    assert distances == sorted(distances)
    assert [replace(hit, distance=None) for hit in hits] == [plain[hit.key] for hit in hits]
    assert [hit.key for hit in hits] != list(plain)
    (several,) = Search(gallery)([drawn(2, seed=1, shared=True)], 3, shots="max", reranked=True)
    assert len(several) == 3


def test_one_version_is_searched(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    with pytest.raises(UserError, match=r"g\.lance is empty; fill it with dmpt gallery add"):
        Search(gallery)
    add(gallery, model(), drawn(4), list("abcd"), camera=["x"] * 4)
    finder = Search(gallery)
    remove(gallery, ["a"])
    assert {hit.key for hit in finder([drawn(1)], 9, conditions=["camera = 'x'"])[0]} == set("abcd")
    assert {hit.key for hit in Search(open_gallery(gallery.path))([drawn(1)], 9)[0]} == set("bcd")


def test_no_modality_in_common(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model(True))
    rgb, tir = (np.array([[name == which for name in ("rgb", "nir", "tir")]]) for which in ("rgb", "tir"))
    add(gallery, model(True), drawn(5, shared=True, present=np.repeat(rgb, 5, axis=0)), list("abcde"))
    finder, asked = Search(gallery), drawn(1, seed=4, shared=True, present=tir)
    assert not (asked.codes & finder.present(finder.counted())).any()
    assert (drawn(1, shared=True, present=rgb).codes & finder.present(finder.counted())).all()
    (hits,) = finder([asked])
    assert [hit.modalities for hit in hits] == [()] * 5
