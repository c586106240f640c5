"""Proposed identities are those of average linkage on the whole matrix; nothing is written unless it is asked for."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from dmpt.base.errors import UserError
from dmpt.gallery import cluster
from dmpt.gallery.changes import Change, add, label, remove
from dmpt.gallery.cluster import apply, propose
from dmpt.gallery.store import Gallery, create_gallery
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.scores import blocks
from drawn import drawn, model


def scores_of(items: Embeddings) -> np.ndarray:
    found = np.concatenate([s.copy() for _, s in blocks(items, items, match_copies=False, mixed=True)])
    return (found + found.T) / 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.floats(-0.2, 0.9))
def test_groups_are_those_of_the_whole_matrix(seed: int, threshold: float) -> None:
    items = drawn(25, seed=seed, shared=True, ids=0 if seed % 2 else 5)
    limits = np.full(8, threshold) + np.linspace(0, 0.1, 8)
    margins = scores_of(items) - limits[items.codes[:, None] & items.codes]
    distances = margins.max() - margins
    np.fill_diagonal(distances, 0)
    wanted = fcluster(linkage(squareform(distances, checks=False), "average"), margins.max() - 1e-9, "distance")
    found = np.zeros(25, int)
    groups = [g for whole in cluster._hanging_together(items, limits) for g in cluster._average(items, whole, limits)]
    for name, rows in enumerate(groups):
        found[rows] = name
    assert ((found[:, None] == found) == (wanted[:, None] == wanted)).all()


def people(path: Path, labelled: int = 0) -> Gallery:
    """Thirty samples of five, of whom row % 5 says who it is; the first are labelled."""
    gallery = create_gallery(path / "g.lance", model())
    pids = [f"p{row % 5}" if row < labelled else None for row in range(30)]
    items = drawn(30, ids=5, present=np.ones((30, 3), np.bool_))
    add(gallery, model(), items, [f"{row % 5}/{row}" for row in range(30)], pid=pids)
    return gallery


def test_people_are_found_and_known_ones_recognised(tmp_path: Path) -> None:
    gallery = people(tmp_path, labelled=3)
    found = propose(gallery, [0.6] * 8)
    assert [(one.pid, one.known, len(one.keys)) for one in found] == [
        ("new-2-1", False, 6),
        ("new-2-2", False, 6),
        ("p0", True, 5),
        ("p1", True, 5),
        ("p2", True, 5),
    ]
    for one in found:
        assert len({key[0] for key in one.keys}) == 1
        assert one.known is False or one.pid[1] == one.keys[0][0]
        assert one.margin > 0
    assert gallery.refresh().version == 2
    label(gallery, {"4/4": "somebody"})  # meanwhile
    assert apply(gallery, found) == Change(4, changed=26)
    assert gallery.read(["pid"], "key = '4/4'").column("pid").to_pylist() == ["somebody"]
    assert gallery.count("pid is null") == 0
    assert propose(gallery, [0.6] * 8) == []


@pytest.mark.parametrize("block", [1, 2, 7, 10_000])
def test_known_ones_are_compared_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model(True))
    items, names = drawn(60, seed=3, ids=12, shared=True), [None, "b", "a", "b", None, "c", "b"]
    add(gallery, model(True), items, [f"{row:02}" for row in range(60)], pid=[names[row % 7] for row in range(60)])
    remove(gallery, ["20", "21"])
    items, labels = gallery.embeddings(), gallery.read(["pid"]).column("pid").to_pylist()
    limits = np.linspace(-0.1, 0.1, 8)
    margins = scores_of(items) - limits[items.codes[:, None] & items.codes]
    free = [row for row, pid in enumerate(labels) if pid is None]
    groups = [np.array(free[start : start + 3]) for start in range(0, len(free), 3)]
    wanted = []
    for group in groups:
        each = {
            pid: margins[np.ix_(group, [row for row, own in enumerate(labels) if own == pid])].mean() for pid in "abc"
        }
        best = max(each, key=lambda pid: each[pid])
        wanted.append((best, each[best]) if each[best] > 0 else (None, 0))
    assert len({pid for pid, _ in wanted}) > 2
    monkeypatch.setattr(cluster, "_BLOCK", block)
    monkeypatch.setattr(cluster, "_TOGETHER", 5)
    found = cluster._known(gallery, items, groups, limits)
    assert [pid for pid, _ in found] == [pid for pid, _ in wanted]
    np.testing.assert_allclose([margin for _, margin in found], [margin for _, margin in wanted], atol=1e-6)


def test_sets_that_have_no_threshold_say_nothing(tmp_path: Path) -> None:
    gallery = people(tmp_path)
    assert propose(gallery, [None] * 8) == []
    assert len(propose(gallery, [None] * 7 + [0.6])) == 5
    assert len(propose(gallery, [0.6] * 8, where="key < '2'")) == 2


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = people(tmp_path)
    for name, said in {
        "MOST": "30 samples have no label; at most 20 are compared; take fewer with --where",
        "_LARGEST": "30 samples hang together at this threshold; raise it",
        "_MOST_PAIRS": "more than 20 pairs lie above the threshold; raise it",
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(cluster, name, 20)
            with pytest.raises(UserError, match=said):
                propose(gallery, [-1.0] * 8)
    assert propose(create_gallery(tmp_path / "empty.lance", model()), [0.6] * 8) == []
