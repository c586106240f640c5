"""However a source is cut, whoever dies on the way: each sample is in the gallery once, as the model sees it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import dmpt
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.embed.embedder import Embedder
from dmpt.gallery import done as done_module
from dmpt.gallery.changes import label
from dmpt.gallery.done import Committed, Done, commit, refuse_gaps, shards_folder
from dmpt.gallery.failures import failures_path
from dmpt.gallery.reading import embedded
from dmpt.gallery.rows import to_batch
from dmpt.gallery.schema import Model
from dmpt.gallery.shards import embed_shard, plan, vanished
from dmpt.gallery.sources import Failure, Source, read_source
from dmpt.gallery.store import Gallery
from runs import with_shared_part

SIZE = 3
"""Samples per batch: the toy's 24 test samples are 8."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_shared_part(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def model(run: Path) -> Embedder:
    return dmpt.load(run, precision="fp32")


@pytest.fixture
def test_set(run: Path, tmp_path: Path) -> Path:
    """A copy of the toy's test images, of which one lacks a modality."""
    shutil.copytree(run.parent / "data" / "test", tmp_path / "test")
    (tmp_path / "test" / "NI" / "000010_cam1_0_02.jpg").unlink()
    return tmp_path / "test"


def embed(model: Embedder, source: Source, out: Path, count: int = 2) -> Committed:
    for shard in plan(source, out, count, SIZE):
        embed_shard(model, shard)
    return commit(out)


def rows_of(out: Path) -> pa.Table:
    return Gallery(out).read().sort_by("key")


def counts(done: Committed) -> tuple[int, int, int, int]:
    return done.added, done.changed, done.kept, done.failed


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_rows_are_the_models_however_many_shards(model: Embedder, test_set: Path, tmp_path: Path, count: int) -> None:
    source = read_source(test_set)
    assert counts(embed(model, source, tmp_path / "g.lance", count)) == (24, 0, 0, 0)
    lists = {name: [sample.paths.get(name) for sample in source.samples] for name in ("rgb", "nir", "tir")}
    direct = to_batch(
        Model.of(model),
        model.embed(**lists, batch_size=SIZE),  # type: ignore[arg-type]
        [sample.key for sample in source.samples],
        content=[sample.digest(sample.contents(source.root)) for sample in source.samples],
    )
    found = rows_of(tmp_path / "g.lance")
    assert found.combine_chunks() == pa.Table.from_batches([direct]).combine_chunks()
    gallery = Gallery(tmp_path / "g.lance")
    assert (gallery.version, gallery.source) == (2, str(test_set))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.lance", "test"]


def test_a_shard_is_whole_batches(test_set: Path, tmp_path: Path) -> None:
    source = read_source(test_set)
    for count in (None, 1, 2, 5, 30):
        shards = plan(source, tmp_path, count, SIZE)
        assert [sample for shard in shards for sample in shard.samples] == list(source.samples)
        assert all(len(shard.samples) % SIZE == 0 for shard in shards[:-1])
        assert [shard.index for shard in shards] == list(range(len(shards)))
    assert [len(shard.samples) for shard in plan(source, tmp_path, None, 1)] == [12, 12]


def test_the_same_again_and_what_changed(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    embed(model, read_source(test_set), out)
    first = rows_of(out)
    assert counts(embed(model, read_source(test_set), out, 3)) == (0, 0, 24, 0)
    assert Gallery(out).version == 2
    key, other = "RGB/000009_cam1_0_00.jpg", "RGB/000012_cam2_0_05.jpg"
    label(Gallery(out), {key: "Ada"})
    shutil.copy(test_set / other, test_set / key)
    shutil.copy(test_set / "TI" / Path(other).name, test_set / "TI" / "new.jpg")
    (test_set / "RGB" / "000011_cam1_0_00.jpg").write_bytes(b"no image")
    for name in ("RGB", "NI", "TI"):
        (test_set / name / "000012_cam2_0_05.jpg").unlink()
    source = read_source(test_set)
    assert counts(embed(model, source, out)) == (1, 1, 21, 1)
    assert vanished(out, source) == 1
    now = {row["key"]: row for row in rows_of(out).to_pylist()}
    then = {row["key"]: row for row in first.to_pylist()}
    assert sorted(now) == sorted([*then, "TI/new.jpg"])
    assert now[key]["pid"] == "Ada"
    assert now[key]["content"] != then[key]["content"]
    assert now["TI/new.jpg"]["present"] == 4
    assert all(now[name] == then[name] for name in then if name != key)
    failed = lance.dataset(str(failures_path(out))).to_table().to_pylist()
    assert [one["key"] for one in failed] == ["RGB/000011_cam1_0_00.jpg"]
    assert "is damaged or no image" in failed[0]["reason"]
    shutil.copy(test_set / key, test_set / "RGB" / "000011_cam1_0_00.jpg")
    assert counts(embed(model, source, out)) == (0, 1, 23, 0)
    assert lance.dataset(str(failures_path(out))).count_rows() == 0


def test_columns_of_ones_own_travel_along(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in (test_set / "RGB").iterdir())[:4]
    cells = ["yard,3,2026-03-01T14:00Z,Ada Ω", ",,,", "hall,5,1772373600,7", "hall,6,never,7"]
    rows = [f"RGB/{name},{cell}" for name, cell in zip(names, cells, strict=True)]
    (test_set / "manifest.csv").write_text("\n".join(["rgb,site,count,time,pid", *rows, "RGB/gone.jpg,,,,"]))
    assert counts(embed(model, read_source(test_set), tmp_path / "g.lance")) == (3, 0, 0, 2)
    afternoon = datetime(2026, 3, 1, 14, tzinfo=timezone.utc)
    found = rows_of(tmp_path / "g.lance")
    assert found.select(["pid", "site", "count", "time"]).to_pylist() == [
        {"pid": "Ada Ω", "site": "yard", "count": 3, "time": afternoon},
        {"pid": None, "site": None, "count": None, "time": None},
        {"pid": "7", "site": "hall", "count": 5, "time": afternoon},
    ]
    (test_set / "manifest.csv").write_text(f"rgb,place\nRGB/{names[3]},here\n")
    with pytest.raises(UserError, match=r"g.lance has no column place; it has "):
        embed(model, read_source(test_set), tmp_path / "g.lance")


def test_what_cannot_be_read_keeps_nobody_else_back(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes((test_set / "RGB" / "000009_cam1_0_00.jpg").read_bytes())
    (test_set / "RGB" / "000009_cam1_0_00.jpg").unlink()
    (test_set / "RGB" / "000009_cam1_0_00.jpg").symlink_to(tmp_path / "secret.jpg")
    (test_set / "NI" / "000009_cam1_0_02.jpg").write_bytes(b"")
    source = read_source(test_set)
    found = list(embedded(model, source.samples, source.root, batch_size=64, workers=3))
    assert [failure.key for failure in found[0].failures] == [sample.key for sample in source.samples[:2]]
    assert "leads out of" in found[0].failures[0].reason
    assert "is empty (0 bytes)" in found[0].failures[1].reason
    assert found[0].rows == list(range(2, 24))
    assert counts(embed(model, source, tmp_path / "g.lance")) == (22, 0, 0, 2)


def test_numbers_that_overflow_are_failures(model: Embedder, test_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, encode = read_source(test_set), model.encode

    def overflowing(*given: Any) -> Any:
        found = encode(*given)
        found.features[1] = np.nan
        return found

    monkeypatch.setattr(model, "encode", overflowing)
    (batch,) = embedded(model, source.samples[:4], source.root)
    assert batch.rows == [0, 2, 3]
    assert batch.embeddings is not None
    assert len(batch.embeddings) == len(batch.contents) == 3
    assert [failure.key for failure in batch.failures] == [source.samples[1].key]


def test_a_modality_that_the_model_does_not_read(
    model: Embedder, test_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "modalities", ("nir",))
    source = read_source(test_set)
    (batch,) = embedded(model, source.samples, source.root)
    assert batch.embeddings is not None
    assert batch.embeddings.codes.tolist() == [2] * 23
    assert batch.failures == [Failure("RGB/000010_cam1_0_02.jpg", "has none of nir, which the model reads")]


def shard(index: int, count: int = 3, **changes: Any) -> Done:
    return replace(Done(index, count, "L", {"dmpt.adapter": "a"}, ["key"], 5, 0, None, []), **changes)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, "holds no shard that is done; run dmpt embed without --commit first"),
        ({"a": shard(1)}, r"2 of 3 shards are missing \(0, 2\); run dmpt embed with --shards 0/3 and so on"),
        ({"a": shard(0), "b": shard(1), "c": shard(2), "d": shard(1)}, r"shard 1 is there twice \(b.json, d.json\)"),
        ({"a": shard(0), "b": shard(1, 2)}, r"2 numbers of shards; remove those that are not meant \(a.json\)"),
        ({"a": shard(0), "b": shard(1, listing="M"), "c": shard(2)}, r"2 listings of the source.*\(b.json\)"),
        ({"a": shard(0, model={}), "b": shard(1), "c": shard(2)}, r"2 models; remove .*\(a.json\), and run"),
        ({"a": shard(0), "b": shard(1), "c": shard(2, columns=[])}, r"2 sets of columns.*\(c.json\)"),
    ],
)
def test_shards_that_are_not_all_there_once(found: Mapping[str, Done], said: str) -> None:
    with pytest.raises(UserError, match=said):
        refuse_gaps(found, Path("g.shards"))


def test_a_source_that_changed_between_shards(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    embed_shard(model, plan(read_source(test_set), out, 2, SIZE)[0])
    shutil.copy(test_set / "RGB" / "000009_cam1_0_00.jpg", test_set / "RGB" / "zzz.jpg")
    later = plan(read_source(test_set), out, 2, SIZE)
    embed_shard(model, later[1])
    with pytest.raises(UserError, match="2 listings of the source, which changed meanwhile; remove those"):
        commit(out)
    assert len(Gallery(out)) == 0
    for one in later:
        embed_shard(model, one)
    assert counts(commit(out)) == (25, 0, 0, 0)


def test_another_adapter_is_refused(
    model: Embedder, test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, source = tmp_path / "g.lance", read_source(test_set)
    parts = plan(source, out, 1, SIZE)
    first = parts[0].name(Model.of(model))
    embed(model, source, out)
    monkeypatch.setattr(model, "adapter", "b" * 64)
    assert parts[0].name(Model.of(model)) != first
    with pytest.raises(UserError, match=f"holds vectors of adapter .*, these are of {'b' * 12}"):
        embed(model, source, out)


def test_a_commit_that_died_is_given_again(
    model: Embedder, test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the store's own commit, before ours knows of it; and then once more from shards that are left."""
    out = tmp_path / "g.lance"
    for one in plan(read_source(test_set), out, 2, SIZE):
        embed_shard(model, one)
    with monkeypatch.context() as patch:
        patch.setattr(done_module.secrets, "token_hex", lambda size: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            commit(out)
    assert len(Gallery(out)) == 24
    assert shards_folder(out).is_dir()
    assert commit(out).version == 2
    assert len(Gallery(out)) == 24
    assert not shards_folder(out).exists()


def test_what_was_added_meanwhile_is_not_there_twice(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    source = read_source(test_set)
    for one in plan(source, out, 2, SIZE):
        embed_shard(model, one)
    shutil.copytree(shards_folder(out), tmp_path / "again.shards")
    commit(out)
    lance.dataset(str(out)).optimize.compact_files()
    (tmp_path / "again.shards").rename(shards_folder(out))
    assert counts(commit(out)) == (0, 24, 0, 0)
    assert Gallery(out).read(["key"]).column("key").to_pylist() == [sample.key for sample in source.samples]


def test_a_commit_leaves_the_shards_of_others(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "g.lance", read_source(test_set)
    first, second = plan(source, out, 2, SIZE)
    waiting = embed_shard(model, second)
    (mine,) = plan(replace(source, samples=source.samples[:1]), out, 1, SIZE)
    embed_shard(model, mine)
    assert counts(commit(out, only={mine.name(Model.of(model))})) == (1, 0, 0, 0)
    assert {path.name.partition(".json")[0] for path in shards_folder(out).iterdir()} == {second.name(Model.of(model))}
    assert embed_shard(model, second) == waiting
    embed_shard(model, first)
    assert counts(commit(out)) == (23, 0, 1, 0)
    assert not shards_folder(out).exists()


def test_shards_begin_at_once(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    parts = plan(read_source(test_set), out, 4, SIZE)
    with ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda one: embed_shard(model, one), parts))
    assert sum(one.rows for one in done) == 24
    assert embed_shard(model, parts[2]) == done[2]
    assert counts(commit(out)) == (24, 0, 0, 0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("LanceError(IO): No space left on device (os error 28)", "g.lance: the disk is full; nothing of this"),
        ("Read-only file system (os error 30)", "writing a shard is not allowed here; what was there is untouched"),
    ],
)
def test_a_store_that_cannot_be_written_to(
    model: Embedder, test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, said: str
) -> None:
    out = tmp_path / "g.lance"
    parts = plan(read_source(test_set), out, 2, SIZE)
    embed_shard(model, parts[0])

    def create(*arguments: Any, **options: Any) -> Any:
        raise OSError(error)

    with monkeypatch.context() as patch:
        patch.setattr("dmpt.gallery.shards.LanceFragment.create", create)
        with pytest.raises(UserError, match=said):
            embed_shard(model, parts[1])
    with pytest.raises(UserError, match="1 of 2 shards are missing"):
        commit(out)
    embed_shard(model, parts[1])
    assert counts(commit(out)) == (24, 0, 0, 0)


def test_a_shard_that_is_damaged(model: Embedder, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    shards_folder(out).mkdir()
    (shards_folder(out) / "x.json").write_text('{"format": 1, "index": 0}')
    with pytest.raises(UserError, match=r"x.json says of no shard that it is done .*; remove it, and run the shard"):
        commit(out)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, output, errors."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = 0
        try:
            main([*map(str, arguments)])
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capsys.readouterr()

    return call


def test_the_command(said: Any, run: Path, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    command = ["embed", test_set, "--model", run, "--out", out, "--precision", "fp32"]
    (test_set / "TI" / "000009_cam1_0_00.jpg").write_bytes(b"?")
    code, output, errors = said(*command, "--json")
    found = json.loads(output)
    assert (code, found["added"], found["failed"], found["vanished"]) == (0, 23, 1, 0)
    assert found["failures"] == str(failures_path(out))
    assert f"1 could not be embedded; {failures_path(out)} says which and why" in errors
    shutil.copy(test_set / "TI" / "000009_cam1_0_02.jpg", test_set / "TI" / "000009_cam1_0_00.jpg")
    (test_set / "TI" / "000012_cam1_0_00.jpg").unlink()
    assert said(*command)[:2] == (0, f"{out}, version 3: 1 samples added, 1 embedded anew, 22 were there already\n")
    code, output, errors = said(*command[:-2])  # the gallery's precision
    assert (code, output) == (0, f"{out}: all 24 samples are there already\n")
    for flags, line in (
        (["--shards", "3/3"], "--shards 3/3: give number and count, as in 0/1000 to 999/1000"),
        (["--shards", "0/2", "--commit"], "--commit comes after all --shards"),
        (["--commit"], "holds no shard that is done"),
        (["--split", "test"], "has no splits; name its layout"),
        (["--out", "."], ". is no name of a gallery, beside which shards could wait; give one, such as g.lance"),
        (["--out", "/"], "/ is no name of a gallery"),
        (["--out", "..", "--shards", "0/2"], ".. is no name of a gallery"),
        (["--out", ".", "--commit"], ". is no name of a gallery"),
    ):
        code, output, errors = said(*command, *flags)
        assert (code, output) == (2, "")
        assert line in errors


def test_the_command_in_parts(said: Any, run: Path, tmp_path: Path) -> None:
    source, out = run.parent / "data", tmp_path / "g.lance"
    command = ["embed", source, "--data.layout", "rgbnt201", "--split", "gallery", "--model", run, "--out", out]
    command += ["--batch-size", "7"]
    code, output, _ = said(*command, "--shards", "0/2")
    assert code == 0
    assert output.startswith("shard 0 of 2: 14 samples embedded, 0 were there already, 0 could not be; when")
    code, _, errors = said(*command, "--commit")
    assert code == 2
    assert "1 of 2 shards are missing (1); run dmpt embed with --shards 1/2, then --commit" in errors
    assert json.loads(said(*command, "--shards", "1/2", "--json")[1])["rows"] == 10
    assert said(*command, "--commit")[0] == 0
    assert set(Gallery(out).read(["pid", "camera"]).column("pid").to_pylist()) == {"9", "10", "11", "12"}


def test_another_source_replaces_nobody(
    said: Any, run: Path, test_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--model", run, "--precision", "fp32"]
    assert said("embed", "test", *flags, "--out", "g.lance")[0] == 0
    before = rows_of(Path("g.lance"))
    name = "RGB/000009_cam1_0_00.jpg"
    shutil.copytree(test_set, "other")
    shutil.copy(test_set / "RGB" / "000012_cam2_0_05.jpg", Path("other") / name)
    for more in ([], ["--shards", "0/2"]):
        code, output, errors = said("embed", "other", *flags, "--out", "g.lance", *more)
        assert (code, output) == (2, "")
        assert f"24 samples of other have the keys of others, from {test_set}, such as {name}, and would" in errors
    assert not shards_folder(Path("g.lance")).exists()
    (tmp_path / "away").mkdir()
    monkeypatch.chdir("away")
    shutil.copytree(test_set, "moved")  # the same pictures
    for source in ("../test", "moved", "../test/../test/"):
        assert "all 24 samples are there already" in said("embed", source, *flags, "--out", "../g.lance")[1]
    assert rows_of(tmp_path / "g.lance") == before
    (test_set / "day2" / "TI").mkdir(parents=True)
    shutil.copy(test_set / "TI" / Path(name).name, test_set / "day2" / "TI" / "x.jpg")
    assert "1 samples added" in said("embed", "../test/day2", *flags, "--out", "../g.lance")[1]
    assert Gallery("../g.lance").count("key = 'day2/TI/x.jpg'") == 1


def test_a_rebuild_from_two_folders(said: Any, run: Path, test_set: Path, tmp_path: Path) -> None:
    more, out, flags = tmp_path / "more", tmp_path / "g.lance", ["--model", run, "--precision", "fp32"]
    (more / "TI").mkdir(parents=True)
    shutil.copy(test_set / "TI" / "000009_cam1_0_00.jpg", more / "TI" / "x.jpg")
    assert said("embed", test_set, *flags, "--out", out)[0] == 0
    assert "1 samples added" in said("gallery", "add", out, more, *flags, "--pid", "Åsa")[1]
    assert "all 1 samples are there already" in said("gallery", "add", out, more, *flags)[1]
    before = rows_of(out)
    code, output, errors = said("gallery", "rebuild", out, *flags)
    assert (code, output) == (2, "")
    assert f"1 samples of {out} are not in {test_set}, such as TI/x.jpg; give --source for each folder" in errors
    (more / "RGB").mkdir()
    (more / "RGB" / "000009_cam1_0_00.jpg").write_bytes(b"not read: the first folder has this key")
    code, output, _ = said("gallery", "rebuild", out, *flags, "--source", test_set, "--source", more)
    assert (code, output) == (0, "version 4: 25 changed\n")
    assert rows_of(out).equals(before)
    assert Gallery(out).source == str(test_set)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.lance", "more", "test"]


def test_nothing_could_be_embedded(said: Any, run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"?")
    code, _, errors = said("embed", tmp_path / "in", "--modality", "rgb", "--model", run, "--out", tmp_path / "g.lance")
    assert code == 2
    assert "none of 1 could be embedded" in errors


@pytest.mark.long
def test_killed_at_any_moment(run: Path, test_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.lance"
    command = [sys.executable, "-m", "dmpt", "embed", test_set, "--model", run, "--out", out, "--batch-size", "1"]
    for number in (1, 2):  # shards of 16 batches: two
        process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        end = time.monotonic() + 60
        while len(list(shards_folder(out).glob("*.json"))) < number and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finished = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    assert "24 samples" in finished.stdout
    keys = Gallery(out).read(["key"]).column("key").to_pylist()
    assert keys == sorted(set(keys))
    assert len(keys) == 24
    assert sorted(path.name for path in tmp_path.iterdir()) == ["g.lance", "test"]
