"""An index proposes; scores are exact, and what it has not seen is compared too."""

from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from dmpt.base.errors import UserError
from dmpt.gallery.changes import add, remove
from dmpt.gallery.index import load_index, make_index
from dmpt.gallery.rows import to_batch
from dmpt.gallery.search import Search
from dmpt.gallery.store import Gallery, create_gallery
from dmpt.gallery.vectors import forget, mapped
from drawn import drawn, model

COUNT = 1500


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Indexed; then some rows are removed and some are added."""
    made = create_gallery(tmp_path_factory.mktemp("index") / "g.lance", model(True))
    cameras = [str(row % 20) for row in range(COUNT)]
    add(made, model(True), drawn(COUNT, ids=75, shared=True), [f"{row:05}" for row in range(COUNT)], camera=cameras)
    index = make_index(made, recall=0.9)
    assert 0.9 <= index.recall <= 1
    remove(made, [f"{row:05}" for row in range(0, COUNT, 50)])
    add(made, model(True), drawn(3, seed=5, shared=True), ["new0", "new1", "new2"])
    return made


def test_most_neighbours_are_found_and_their_scores_are_exact(gallery: Gallery) -> None:
    queries = [drawn(COUNT, ids=75, shared=True)[row : row + 1] for row in range(0, COUNT, 61)]
    exact, found = Search(gallery)(queries, group=None), Search(gallery, indexed=True)(queries, group=None)
    shares = []
    for one, other in zip(exact, found, strict=True):
        scores = {hit.key: hit.score for hit in one}
        shares.append(np.mean([hit.key in scores for hit in other]))
        assert all(hit.score == scores[hit.key] for hit in other if hit.key in scores)
    assert np.mean(shares) > 0.9


def test_rows_that_are_new_are_candidates_and_removed_ones_are_not(gallery: Gallery) -> None:
    found = mapped(gallery)
    index = load_index(gallery, found)
    assert int(index.new.sum()) == 3
    new = drawn(3, seed=5, shared=True)
    for row in range(3):
        (hits,) = Search(gallery, indexed=True)([new[row : row + 1]], 1, group=None)
        assert hits[0].key == f"new{row}"
        chosen = index.candidates(new[row : row + 1], 2)
        assert chosen[-4:-1].all()
        assert not chosen[-1] or not found.counted[-1]
        assert 3 < chosen.sum() < COUNT / 2


def test_few_that_meet_a_condition_are_all_compared(gallery: Gallery) -> None:
    query = [drawn(1, seed=9, shared=True)]
    plain = Search(gallery)(query, 40, conditions=["camera = '7'"], group=None)
    assert Search(gallery, indexed=True)(query, 40, conditions=["camera = '7'"], group=None) == plain


def test_an_index_is_of_one_models_vectors(tmp_path: Path) -> None:
    """Whatever version holds which, as after ``dmpt gallery rebuild`` and ``rollback``."""
    path, first = tmp_path / "g.lance", model(width=8)
    made = create_gallery(path, first)
    add(made, first, drawn(COUNT, ids=75), [f"{row:05}" for row in range(COUNT)])
    make_index(made, recall=0.8)
    others = [model(width=4), replace(first, precision="bf16"), replace(first, adapter="b" * 64), model(True)]
    for version, other in enumerate(others, start=3):
        items = drawn(20, width=other.width, shared=bool(other.shared))
        rows = to_batch(other, items, list(map(str, range(20))))
        lance.write_dataset(pa.Table.from_batches([rows]), path, mode="overwrite")
        gallery = Gallery(path, version)
        assert gallery.model.metadata() == other.metadata()
        said = "g.lance has an index of another model's vectors; make it anew with dmpt gallery index, or search withou"
        with pytest.raises(UserError, match=said):
            Search(gallery, indexed=True)
        assert Search(gallery)([items[:1]], 1)[0][0].key == "0"
    index = Search(Gallery(path, 2), indexed=True).index
    assert index is not None
    assert not index.new.any()


def test_what_has_no_index(tmp_path: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    small = create_gallery(tmp_path / "g.lance", model())
    add(small, model(), drawn(40), list(map(str, range(40))))
    with pytest.raises(UserError, match="has 40 rows; an index is for a million, and needs 1280"):
        make_index(small)
    with pytest.raises(UserError, match="has no index; make one with dmpt gallery index, or search without"):
        Search(small, indexed=True)
    monkeypatch.setattr("dmpt.gallery.index._PROBES", (1,))
    with pytest.raises(UserError, match=r"an index finds .* % of the ten nearest here, not 99\.9 %; ask for less"):
        make_index(gallery, recall=0.999)
    file = gallery.path / "_index" / "index.npz"
    whole = file.read_bytes()
    for damaged in (whole[:1000], b"no archive"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be read .*; make it again with dmpt gallery index"):
            Search(gallery, indexed=True)
    forget(gallery)
    assert not file.exists()
