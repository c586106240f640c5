"""Several processes at once, kills, a full disk, storage that cannot be written to, a fork."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_store import filled
from worker import ROWS, batches_of

from dmpt.base.errors import UserError
from dmpt.gallery.changes import add, label
from dmpt.gallery.purge import purge
from dmpt.gallery.store import create_gallery, open_gallery
from drawn import drawn, model

WORKER = Path(__file__).parent / "worker.py"
BATCHES = 8
"""That each of two writers adds."""
KILLS = int(os.environ.get("DMPT_KILLS", "3"))
"""docs/reliability.md says what 20 brought."""


def started(*arguments: object) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(WORKER), *map(str, arguments)], text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.long
def test_two_writers_and_five_readers(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    readers = [started("read", gallery.path) for _ in range(5)]
    writers = [started("add", gallery.path, name, BATCHES) for name in "ab"]
    for writer in writers:
        out, err = writer.communicate(timeout=120)
        assert (writer.returncode, len(out.split())) == (0, BATCHES), err
    for reader in readers:
        out, err = reader.communicate("", timeout=120)
        assert reader.returncode == 0, err
        assert len(out.split()) >= 1
    gallery.refresh()
    assert gallery.version == 1 + 2 * BATCHES  # every write is one version
    assert len(gallery) == 1 + 2 * BATCHES * (ROWS - 1)
    assert [len(batches_of(gallery, name)) for name in "ab"] == [BATCHES, BATCHES]


@pytest.mark.long
def test_kills_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    gallery = create_gallery(tmp_path / "g.lance", model())
    draw, acknowledged, unanswered = random.Random(7), -1, 0
    for _ in range(KILLS):
        writer = started("add", gallery.path, "a", 10**6)
        assert writer.stdout is not None
        first = int(writer.stdout.readline())  # it is at work
        assert first in (max(0, acknowledged), acknowledged + 1)
        time.sleep(draw.uniform(0, 0.5))
        writer.kill()
        out, _ = writer.communicate(timeout=60)
        acknowledged = max([first, *map(int, out.split())])
        rows = batches_of(gallery.refresh(), "a")
        assert rows == dict.fromkeys(range(len(rows)), ROWS - 1)  # all whole, none between is lacking
        assert acknowledged + 1 <= len(rows) <= acknowledged + 2  # one may be there that was not acknowledged yet
        unanswered += len(rows) - acknowledged - 1
    print(f"{KILLS} kills, {acknowledged + 1} adds acknowledged, 0 lost, 0 twice, {unanswered} whole but unanswered")
    before = gallery.read(["key"]).num_rows
    purge(gallery)  # what kills left behind goes
    assert len(gallery) == before


LIMITED = """
import resource, signal, sys
sys.path[:0] = sys.argv[2:]
import numpy as np
from dmpt.base.errors import UserError
from dmpt.gallery.changes import add
from dmpt.gallery.store import open_gallery
from drawn import drawn, model
gallery = open_gallery(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    add(gallery, model(), drawn(5000), list(map(str, range(5000))))
except UserError as error:
    print(error)
"""


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(gallery.path), *paths], capture_output=True, text=True, timeout=60
    )
    said = f"{gallery.path}: the disk is full; nothing of this adding was kept; free space and do it again\n"
    assert done.stdout == said, done.stderr
    assert (gallery.refresh().version, len(gallery), gallery.embeddings().features.shape[0]) == (2, 6, 6)


READING = """
import os, sys
sys.path[:0] = sys.argv[2:]
from dmpt.base.errors import UserError
from dmpt.gallery.changes import label
from dmpt.gallery.history import history, stats
from dmpt.gallery.store import open_gallery
if os.geteuid() == 0:  # whom no rights keep out
    os.setgid(65534), os.setuid(65534)
gallery = open_gallery(sys.argv[1])
print(len(gallery), len(gallery.embeddings()), gallery.count("pid IS NULL"), len(history(gallery)), stats(gallery).rows)
try:
    label(gallery, {"1": "x"})
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
def test_storage_that_cannot_be_written_to_can_be_read(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    for path in [gallery.path, *gallery.path.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in gallery.path.parents:  # pytest's own are private
        if parent.is_relative_to(Path(tmp_path.parts[0], *tmp_path.parts[1:2])) and os.access(parent, os.W_OK):
            parent.chmod(parent.stat().st_mode | 0o055)
    done = subprocess.run(
        [sys.executable, "-c", READING, str(gallery.path), *paths], capture_output=True, text=True, timeout=60
    )
    first, _, said = done.stdout.partition("\n")
    assert first == "6 6 3 2 6", done.stderr
    assert said == f"{gallery.path}: labelling is not allowed here (Permission denied); check its rights\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_process_is_refused(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    read, written = os.pipe()
    child = os.fork()
    if not child:
        try:
            len(gallery)
        except UserError as error:
            os.write(written, str(error).encode())
        os._exit(0)
    os.close(written)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        assert (
            pipe.read() == f"{gallery.path}: this process was forked, where the store hangs; start processes with spawn"
        )


def test_a_row_that_another_program_spoiled_is_named(tmp_path: Path) -> None:
    gallery = filled(tmp_path)
    table = gallery.read(where="key = '3'")
    vector = np.full(8, np.nan, np.float32).tolist()
    name = next(name for name in ("rgb", "nir", "tir") if table.column(name)[0].as_py())
    at = table.column_names.index(name)
    spoiled = table.set_column(at, table.schema.field(at), pa.array([vector], table.schema.field(at).type))
    gallery.dataset.merge_insert("key").when_matched_update_all().execute(spoiled)
    with pytest.raises(UserError, match=rf"g\.lance: 3 was changed by another program: {name} is not of length 1"):
        gallery.refresh().embeddings()
    assert label(open_gallery(gallery.path), {"1": "x"}).changed == 1
    add(gallery, model(), drawn(1), ["3"])
    assert len(gallery.embeddings()) == 6
