"""What a gallery went through, and what it holds."""

from datetime import datetime, timedelta, timezone
from pathlib import Path

import lance
import pyarrow as pa
from test_store import filled

from dmpt.gallery.changes import add, label, remove, rollback
from dmpt.gallery.history import history, stats
from dmpt.gallery.purge import purge
from dmpt.gallery.store import create_gallery
from drawn import drawn, model


def test_every_write_is_one_version_and_says_what_it_was(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    add(gallery, model(), drawn(3), ["4", "x", "5"])
    label(gallery, {"x": "q"})
    remove(gallery, ["x", "1"])
    rollback(gallery, 2)
    lines = history(gallery)
    assert [(line.version, line.what, line.rows) for line in lines] == [
        (1, "created", 0),
        (2, "added 6", 6),
        (3, "added 1, changed 2", 7),
        (4, "changed 1", 7),
        (5, "removed 2", 5),
        (6, "rolled back to 2", 6),
    ]
    times = [line.time for line in lines]
    assert times == sorted(times)
    assert datetime.now(timezone.utc) - times[0] < timedelta(minutes=5)
    remove(gallery, ["1"])
    purge(gallery)
    assert [line.what for line in history(gallery)] == ["purged"]
    lance.dataset(str(gallery.path)).add_columns({"theirs": "1"})
    assert history(gallery)[-1].what.startswith("changed by another program (")


def test_what_it_holds(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model(), [pa.field("track", pa.int64())], "pictures")
    empty = stats(gallery)
    assert (empty.rows, empty.pids, empty.cameras, empty.fragments, empty.bytes) == (0, 0, {}, 0, 0)
    items = drawn(30)
    cameras = [None if row == 0 else str(row % 3) for row in range(30)]
    add(gallery, model(), items, [*map(str, range(30))], pid=["a", "b"] * 10 + [None] * 10, camera=cameras)
    found = stats(gallery)
    assert (found.version, found.rows, found.pids, found.unlabelled, found.versions) == (2, 30, 2, 10, 2)
    assert found.cameras == {"0": 9, "1": 10, "2": 10}
    assert sum(found.modalities.values()) == 30
    assert found.modalities["rgb+nir+tir"] == (items.codes == 7).sum()
    assert found.columns == {"track": "int64"}
    assert found.source == "pictures"
    assert 0 < found.bytes < found.disk
