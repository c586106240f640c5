"""A gallery as its versions have it; what is said where there is none, or none that can be read or written."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from dmpt.base.errors import UserError
from dmpt.gallery.changes import Change, add, keys_of, label, remove, rollback
from dmpt.gallery.deadline import within
from dmpt.gallery.schema import schema_of
from dmpt.gallery.store import DEADLINE, PATIENCE, Gallery, create_gallery, open_gallery
from drawn import drawn, model

OTHER = replace(model(), adapter="b" * 64)


def filled(path: Path, count: int = 6) -> Gallery:
    """Version 2 has rows 0, 1, ..., every other one labelled."""
    gallery = create_gallery(path / "g.lance", model(), [pa.field("site", pa.string())], "pictures")
    pids = [None if row % 2 else f"p{row % 4}" for row in range(count)]
    add(gallery, model(), drawn(count), list(map(str, range(count))), pid=pids, extra={"site": ["north"] * count})
    return gallery


def rows(gallery: Gallery, *columns: str) -> list[tuple[object, ...]]:
    return sorted(tuple(row.values()) for row in gallery.read(["key", *columns]).to_pylist())


def test_what_is_added_is_read(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    assert (gallery.version, len(gallery), gallery.source) == (2, 6, "pictures")
    again = open_gallery(str(tmp_path / "g.lance"))
    np.testing.assert_allclose(again.embeddings().features, drawn(6).features, rtol=2**-22)
    assert again.model.metadata() == model().metadata()
    assert [len(batch) for batch in again.scan(["key"], batch_size=4)] == [4, 2]
    assert again.count("pid is null") == 3
    assert again.read(["key"], "site = 'north' and pid = 'p2'").column("key").to_pylist() == ["2"]


def test_a_source_lies_beside_its_gallery_or_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path)
    (tmp_path / "pictures").mkdir()
    assert gallery.source == str(tmp_path / "pictures")
    monkeypatch.chdir(gallery.path)
    assert open_gallery(".").source == str(tmp_path / "pictures")
    (tmp_path / "pictures").rmdir()
    assert open_gallery(".").source == "pictures"


def test_an_upsert_replaces_by_key_and_keeps_what_it_does_not_say(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    new = drawn(3, seed=7)
    assert add(gallery, model(), new, ["4", "x", "5"], pid=[None, "q", "r"]) == Change(3, added=1, changed=2)
    assert rows(gallery, "pid", "site")[-3:] == [("4", "p0", "north"), ("5", "r", "north"), ("x", "q", None)]
    found = dict(zip(gallery.read(["key"]).column("key").to_pylist(), gallery.embeddings().features, strict=True))
    np.testing.assert_allclose(np.stack([found[key] for key in ("4", "x", "5")]), new.features, rtol=2**-22)
    before = rows(gallery, "pid", "site")
    assert add(gallery, model(), new, ["4", "x", "5"], pid=[None, "q", "r"]).added == 0
    assert rows(gallery, "pid", "site") == before


def test_a_reader_sees_one_version(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    reader, old = open_gallery(gallery.path), open_gallery(gallery.path, version=1)
    remove(gallery, ["1"])
    assert (len(gallery), len(reader), len(old)) == (5, 6, 0)
    assert len(reader.refresh()) == 5


def test_remove_label_and_roll_back(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    assert remove(gallery, ["0", "1", "4", "5"]) == Change(3, removed=4)
    assert rows(gallery, "pid") == [("2", "p2"), ("3", None)]
    assert label(gallery, {"2": None, "3": "Åsa 🙂"}) == Change(4, changed=2)
    assert rows(gallery, "pid", "site") == [("2", None, "north"), ("3", "Åsa 🙂", "north")]
    assert rollback(gallery, 2).version == 5
    assert len(gallery) == 6
    assert gallery.embeddings().features.shape == (6, 3, 8)
    assert keys_of(gallery, pids=["p2"]) == ["2"]


def test_what_is_named_in_several_ways_meets_all_of_them(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    assert keys_of(gallery, ["4", "2", "1"], pids=["p0"]) == ["4"]
    assert keys_of(gallery, ["4", "2", "1"], where="key < '4'") == ["1", "2"]
    assert keys_of(gallery, pids=["p0", "p2"], where="key < '4'") == ["0", "2"]
    assert keys_of(gallery, ["1"], pids=["p0"]) == []
    assert remove(gallery, ["0", "2"], pids=["p0"], where="key < '1'") == Change(3, removed=1)
    assert remove(gallery, ["1"], where="pid = 'p0'") == Change(3)


def test_mistakes_change_nothing(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    for said, call in {
        "has no key z; dmpt gallery export": lambda: remove(gallery, ["z", "1"]),
        "has no pid nobody": lambda: remove(gallery, pids=["nobody"]),
        "nothing is named; give keys": lambda: remove(gallery),
        "No field named colour.*; the condition was: .colour = 3": lambda: remove(gallery, where="colour = 3"),
        "the condition was: .key = ';": lambda: remove(gallery, where="key = ';"),
        "has no column colour; it has key, rgb": lambda: gallery.read(["colour"]),
        "has no key q": lambda: label(gallery, {"q": "a"}),
        "10000 characters; give at most 1000": lambda: label(gallery, {"1": "🙂" * 10000}),
        "holds vectors of adapter": lambda: add(gallery, OTHER, drawn(1), ["n"]),
        "has no column street; .* fixed": lambda: add(gallery, model(), drawn(1), ["n"], extra={"street": ["a"]}),
        "column site holds string .* not list": lambda: add(gallery, model(), drawn(1), ["n"], extra={"site": [[1]]}),
        "version 9; dmpt|lists the versions": lambda: rollback(gallery, 9),
    }.items():
        with pytest.raises(UserError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
        assert ".rs:" not in str(error.value)
    assert gallery.refresh().version == 2


HALF_READ = {  # each begins with a whole condition, at which Lance would stop
    "pid = 'p0' key = '4'": "the condition was: ",
    "pid = 'p0' AN key = '4'": "the condition was: ",
    "pid = 'p0'; x": "the condition was: ",
    "pid = 'p0') AN key = '4'": "has a parenthesis too many; take it out: ",
    "pid = 'p0') OR (true": "has a parenthesis too many",
    "pid = 'p0' /* ( */ ) x": "has a comment",
    "pid = 'p0' -- x": "has a comment",
    " ": "the condition is empty; give one, as in \"site = 'north'\"",
}


@pytest.mark.parametrize("where", HALF_READ)
def test_a_condition_is_read_to_its_end_or_not_at_all(tmp_path: Path, where: str) -> None:
    gallery = filled(tmp_path)
    for call in (
        lambda: gallery.read(["key"], where),
        lambda: list(gallery.scan(where=where)),
        lambda: gallery.count(["pid IS NOT NULL", where]),
        lambda: gallery.addresses(where),
        lambda: remove(gallery, where=where),
        lambda: keys_of(gallery, where=where),
    ):
        with pytest.raises(UserError, match=HALF_READ[where]):
            call()
    assert gallery.refresh().version == 2


def test_several_conditions_all_hold(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    assert gallery.count(["key = '0' OR key = '2'", "pid = 'p0' OR pid = '(--'"]) == 1
    assert gallery.count([]) == 6


def test_where_there_is_no_gallery(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(UserError) as error:
            open_gallery(path)
        return str(error.value).replace(str(tmp_path), "")

    assert said(tmp_path / "no.lance") == "/no.lance does not exist; dmpt embed or dmpt gallery add makes a gallery"
    assert said(tmp_path).startswith(" is no gallery; give the folder")
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other.lance"))
    assert said(tmp_path / "other.lance").startswith("/other.lance is a table, but no gallery")
    later = schema_of(model()).with_metadata({**model().metadata(), "dmpt.format": "2"})
    lance.write_dataset(later.empty_table(), str(tmp_path / "later.lance"))
    assert said(tmp_path / "later.lance") == "/later.lance has format 2; this version of dmpt reads 1; update dmpt"
    gallery = filled(tmp_path)
    with pytest.raises(UserError, match="is there already; give another name"):
        create_gallery(gallery.path, model())
    for manifest in (gallery.path / "_versions").iterdir():
        manifest.write_bytes(manifest.read_bytes()[:20])
    assert said(gallery.path).startswith("/g.lance: opening failed")
    (tmp_path / "damaged").mkdir()
    gallery = filled(tmp_path / "damaged")
    for file in (gallery.path / "data").iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UserError, match=r"g\.lance: reading failed"):
        open_gallery(gallery.path).embeddings()


def test_an_empty_gallery(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model(True))
    assert len(gallery) == 0
    items = gallery.embeddings()
    assert items.features.shape == (0, 3, 8)
    assert list(gallery.scan()) == []
    with pytest.raises(UserError, match="has no key a"):
        remove(gallery, ["a"])


def test_a_call_that_hangs_ends_with_one_line(tmp_path: Path) -> None:
    never = threading.Event()
    before = time.monotonic()
    with pytest.raises(UserError, match=r"g\.lance: reading took longer than 0\.1 s; see whether its storage answers"):
        within(0.1, tmp_path / "g.lance", "reading", never.wait)
    assert time.monotonic() - before < 2
    never.set()


def test_one_row_waits_for_one_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, waits = filled(tmp_path), dict[str, float]()

    def watched(seconds: float, path: Path, what: str, call: Callable[[], object]) -> object:
        waits[what] = max(waits.get(what, 0), seconds)
        return within(seconds, path, what, call)

    monkeypatch.setattr("dmpt.gallery.store.within", watched)
    add(gallery, model(), drawn(1), ["n"])
    label(gallery, {"n": "a"})
    remove(gallery, ["n"], pids=["a"], where="true")
    rollback(gallery, 2)
    assert set(waits) == {"opening", "reading", "adding", "labelling", "removing", "rolling back"}
    assert max(waits.values()) == DEADLINE
    gallery.write("all", lambda _: None, 25_000)
    gallery.write("more", lambda _: None, 10**9)
    assert (waits["all"], waits["more"]) == (3 * DEADLINE, PATIENCE * DEADLINE)
    gallery.embeddings()
    assert waits["reading"] == PATIENCE * DEADLINE


def test_a_single_io_thread_hangs_nothing(tmp_path: Path) -> None:
    code = "import sys; sys.path[:0] = sys.argv[2:]\n"
    code += "from test_store import filled; from pathlib import Path; print(len(filled(Path(sys.argv[1]))))"
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), *map(str, (Path(__file__).parent, Path(__file__).parents[1]))],
        env={**os.environ, "LANCE_IO_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout == "6\n", found.stderr
