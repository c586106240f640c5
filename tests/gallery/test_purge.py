"""After a purge no file of the folder holds what was removed."""

from pathlib import Path

import lance
import numpy as np
import pyarrow.compute as pc
import pytest
from test_store import filled

from dmpt.base.errors import UserError
from dmpt.base.lock import Lock
from dmpt.gallery.changes import add, label, remove, rollback
from dmpt.gallery.failures import failures_path, write_failures
from dmpt.gallery.purge import purge
from dmpt.gallery.sources import Failure
from dmpt.gallery.store import Gallery, open_gallery
from drawn import drawn, model


def holding(gallery: Gallery, vectors: list[bytes]) -> set[str]:
    """Files that hold one of the vectors, or the key, of a person."""
    files = [path for path in gallery.path.rglob("*") if path.is_file()]
    return {path.parent.name for path in files if any(vector in path.read_bytes() for vector in vectors)}


def test_nothing_is_left_of_a_person(tmp_path: Path) -> None:
    gallery = filled(tmp_path, 40)
    person = "pid = 'p2'"
    vectors = [
        np.array(vector, np.float32).tobytes()
        for row in gallery.read(["rgb", "nir", "tir"], person).to_pylist()
        for vector in row.values()
        if vector
    ]
    add(gallery, model(), drawn(3, seed=1), ["2", "n", "m"])  # sample 2 looks otherwise since
    label(gallery, {"6": None})
    kept = gallery.read(["key", "pid", "site"], "pid <> 'p2' or pid is null").sort_by("key")
    assert holding(gallery, vectors) == {"data"}
    remove(gallery, ["6"])
    remove(gallery, pids=["p2"])
    (gallery.path / "data" / "killed.lance").write_bytes(b"half" + vectors[0])  # of an add that was killed
    (gallery.path / "_deletions").mkdir(exist_ok=True)
    (gallery.path / "_deletions" / ".tmpQx81").write_bytes(b"half" + vectors[0])  # and of one in the midst of a file
    assert holding(gallery, vectors) == {"data", "_deletions"}
    reader = open_gallery(gallery.path)
    done = purge(gallery)
    assert done.versions > 3
    assert done.freed > 0
    assert holding(gallery, vectors) == set()
    assert (
        reader.refresh()
        .read(["key", "pid", "site"])
        .sort_by("key")
        .equals(kept.filter(pc.not_equal(kept.column("key"), "6")))
    )
    assert [version["version"] for version in gallery.dataset.versions()] == [done.version]
    with pytest.raises(UserError, match="dmpt gallery history lists the versions"):
        rollback(gallery, 2)
    assert purge(gallery).versions <= 1  # and again does no harm
    remove(gallery, where="true")
    purge(gallery)
    assert len(gallery) == 0
    assert list((gallery.path / "data").iterdir()) == []


def test_no_list_of_broken_files_names_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path)
    for failures in ([Failure("rgb/ada/1.jpg", "is damaged")], []):  # the newest version does not name her
        write_failures(gallery.path, failures)
    remove(gallery, ["1"])
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(UserError, match=r"g\.failures\.lance names samples too and could not be deleted"):
            purge(gallery)
    purge(gallery)
    assert not failures_path(gallery.path).exists()
    assert not any(b"rgb/ada" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_who_writes_is_waited_for_and_a_tag_is_respected(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    gallery.deadline = 0.3
    writer = Lock(gallery.path / "_dmpt.lock", shared=True)
    with pytest.raises(UserError, match=r"purging waited 0\.3 s for others; do it again"):
        purge(gallery)
    writer.release()
    gallery.deadline = 60
    lance.dataset(str(gallery.path)).tags.create("mine", 1)
    with pytest.raises(UserError, match=r"purging failed .*mine"):
        purge(gallery)
    assert len(gallery.refresh()) == 6
