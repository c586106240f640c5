"""The vectors of a gallery as a search reads them, whatever versions came before."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmpt.base.errors import UserError
from dmpt.gallery import vectors
from dmpt.gallery.changes import add, label, remove
from dmpt.gallery.purge import purge
from dmpt.gallery.store import Gallery, create_gallery, open_gallery
from dmpt.gallery.vectors import forget, mapped
from dmpt.retrieval.search import grouped, search
from drawn import drawn, model


def searched_as_in_memory(gallery: Gallery) -> None:
    """Positions and scores are those of all rows in memory, read from the table."""
    found, query = mapped(gallery), drawn(4, seed=99, shared=bool(gallery.model.shared))
    assert len(found.addresses) == len(gallery)
    ours = search(query, found.vectors, 12, found.counted)
    if not len(gallery):
        assert (ours.positions == -1).all()
        return
    theirs = search(query, grouped(gallery.embeddings()), 12)
    assert np.array_equal(ours.positions, theirs.positions)
    assert np.array_equal(ours.scores, theirs.scores, equal_nan=True)


@given(st.lists(st.sampled_from(["add one", "add", "remove", "label", "again", "back"]), max_size=12), st.booleans())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_after_any_changes_it_is_what_the_table_says(
    tmp_path_factory: pytest.TempPathFactory, changes: list[str], shared: bool
) -> None:
    own = model(shared)
    gallery = create_gallery(tmp_path_factory.mktemp("any") / "g.lance", own)
    for step, change in enumerate(changes):
        keys = gallery.read(["key"]).column("key").to_pylist()
        if change.startswith("add"):
            count = 1 if change == "add one" else 9
            add(gallery, own, drawn(count, seed=step, shared=shared), [f"{step}-{row}" for row in range(count)])
        elif change == "remove" and keys:
            remove(gallery, keys[::3])
        elif change == "label" and keys:
            label(gallery, {keys[-1]: "x"})
        elif change == "again" and keys:
            add(gallery, own, drawn(1, seed=step, shared=shared), keys[:1])
        elif change == "back":
            gallery = Gallery(gallery.path, max(1, gallery.version - 1))
            searched_as_in_memory(gallery)
            gallery.refresh()
        searched_as_in_memory(gallery)


def test_what_is_there_is_not_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    add(gallery, model(), drawn(40), list(map(str, range(40))))
    mapped(gallery)
    copied: list[int] = []
    plain = vectors.to_embeddings
    monkeypatch.setattr(vectors, "to_embeddings", lambda batch, where: copied.append(len(batch)) or plain(batch, where))
    mapped(open_gallery(gallery.path))
    remove(gallery, ["3"])
    mapped(gallery)
    assert copied == []
    add(gallery, model(), drawn(1, seed=1), ["new"])
    mapped(gallery)
    assert copied == [1]
    add(gallery, model(), drawn(1, seed=2), ["newer"])
    mapped(gallery)
    assert copied == [1, 1, 1]  # the small ones together
    assert len(list((gallery.path / "_vectors").iterdir())) == 2


def test_what_is_damaged_or_forgotten_is_copied_again(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    add(gallery, model(), drawn(9), list(map(str, range(9))))
    searched_as_in_memory(gallery)
    (segment,) = (gallery.path / "_vectors").iterdir()
    (segment / "flat.npy").write_bytes((segment / "flat.npy").read_bytes()[:200])
    searched_as_in_memory(gallery)
    assert not segment.exists()
    forget(gallery)
    assert not (gallery.path / "_vectors").exists()
    searched_as_in_memory(gallery)


def test_where_the_gallery_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    add(gallery, model(), drawn(9), list(map(str, range(9))))
    (gallery.path / "_vectors").write_text("as if on read-only storage")
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    searched_as_in_memory(gallery)
    assert len(list((tmp_path / "cache" / "vectors").iterdir())) == 1
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("nor here")
    with pytest.raises(UserError, match=r"cannot be written .*; set DMPT_CACHE to a folder that can"):
        mapped(gallery)


def test_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    add(gallery, model(), drawn(9), list(map(str, range(9))))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        UserError, match=r"no room for a copy of its vectors in .*_vectors .No space left on device.; free"
    ):
        mapped(gallery)
    assert list((gallery.path / "_vectors").iterdir()) == []


def test_a_purge_forgets_them(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    add(gallery, model(), drawn(9), list(map(str, range(9))))
    mapped(gallery)
    remove(gallery, ["3"])
    purge(gallery)
    assert not (gallery.path / "_vectors").exists()
    searched_as_in_memory(gallery)
