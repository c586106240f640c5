"""``dmpt embed``."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.lock import Lock, Taken
from dmpt.base.terminal import bar, print_json, warn
from dmpt.settings.config import Layout
from dmpt.settings.numbers import Positive
from dmpt.verbs.loaded import Loaded

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder
    from dmpt.gallery.done import Done
    from dmpt.gallery.reading import Batch
    from dmpt.gallery.shards import Shard
    from dmpt.gallery.sources import Source
    from dmpt.gallery.store import Gallery


@dataclass(frozen=True)
class _Data:
    """What kind of data set the source is.

    Attributes:
        layout: Of a data set's files; default: a manifest, or folders of modalities.
    """

    layout: Layout | None = None


@dataclass(frozen=True)
class Listed:
    """How a source is read.

    Attributes:
        data: the data set
        split: Of a data set or a manifest; default: all samples.
        modality: That all images of a folder have.
    """

    data: _Data = _Data()
    split: Literal["train", "query", "gallery", "test"] | None = None
    modality: Literal["rgb", "nir", "tir"] | None = None

    def read(self, source: Path) -> "Source":
        """The samples of a source; what nobody reads there is said.

        Raises:
            UserError: it is none.
        """
        from dmpt.gallery.sources import read_source

        try:
            found = read_source(source, layout=self.data.layout, split=self.split, modality=self.modality)
        except UserError as error:  # readers speak of the settings of training
            raise UserError(re.sub(r"\b(set|check) data\.root\b", r"\1 SOURCE", str(error))) from error
        for line in found.passed_over:
            warn(line)
        return found


def run(
    source: Path,
    /,
    model: Path,
    out: Path,
    listed: Listed,
    loaded: Loaded,
    shards: str | None = None,
    commit: bool = False,
    batch_size: Positive = 64,
    workers: Positive | None = None,
    json: bool = False,
) -> None:
    """Embed a folder, a manifest or a data set: a gallery of vectors, searched by dmpt search.

    Stopped or killed, the same command goes on. Given again it embeds what is new or changed.

    Args:
        source: A folder of modalities' folders, a manifest (CSV, Parquet), or with --modality a folder of images.
        model: Run folder, adapter folder, package:tiny, or a file of dmpt export.
        out: The gallery, for example g.lance.
        listed: what is in the source
        loaded: the model
        shards: Embed one part of so many, as in 17/1000 (the first is 0); --commit puts them together.
        commit: Put the parts into the gallery, all of them or none.
        batch_size: Samples per pass.
        workers: Threads that read and decode; default: one per core.
        json: Print the summary as JSON.
    """
    out, which = expanded(out), _which(shards)
    if commit and which:
        raise UserError("--commit comes after all --shards, in a command of its own")
    if commit:
        from dmpt.gallery.done import commit as put_together

        say(out, asdict(put_together(out)), json)
        return
    found = listed.read(source)
    if which:
        from dmpt.gallery.adding import as_keys_of
        from dmpt.gallery.shards import plan

        found = as_keys_of(_there(out), found)
        embedder = _as_the_gallery(out, loaded).load(model)
        parts = plan(found, out, which[1], batch_size)
        (done,) = embed_parts(embedder, parts[which[0] : which[0] + 1], workers)
        _say_part(out, done, json)
        return
    say(out, embed_all(out, found, model, loaded, batch_size, workers), json)


def embed_all(
    out: Path,
    source: "Source",
    model: Path,
    loaded: Loaded,
    batch_size: int,
    workers: int | None,
    pid: str | None = None,
    camera: str | None = None,
) -> dict[str, Any]:
    """Embed a source in parts and commit them; what ``say`` says.

    Raises:
        UserError: another embeds into this gallery, it is of another model or has other samples by these keys
            (``as_keys_of``, which takes pid and camera), or it cannot be written to.
    """
    from dmpt.gallery.adding import as_keys_of, called
    from dmpt.gallery.done import commit
    from dmpt.gallery.schema import Model
    from dmpt.gallery.shards import plan, vanished
    from dmpt.gallery.store import Gallery

    embedder = _as_the_gallery(out, loaded).load(model)
    own = Model.of(embedder)
    with _alone(out):
        source = as_keys_of(_there(out), source, pid, camera)
        parts = plan(source, out, None, batch_size)
        embed_parts(embedder, parts, workers)
        made = asdict(commit(out, only={part.name(own) for part in parts}))
        if pid is not None:
            made["version"] = called(Gallery(out), source, pid).version
    return {**made, "vanished": vanished(out, source)}


def embed_parts(embedder: "Embedder", parts: "Sequence[Shard]", workers: int | None) -> "list[Done]":
    """Each part, with a bar for all."""
    from dmpt.gallery.shards import embed_shard

    found, failed = [], 0
    with bar() as display:
        task = display.add_task("embedding", total=sum(len(part.samples) for part in parts), note="")

        def watch(batch: "Batch") -> None:
            nonlocal failed
            failed += len(batch.failures)
            done = batch.kept + len(batch.rows) + len(batch.failures)
            display.update(task, advance=done, note=f"{failed} failed" if failed else "")

        for part in parts:
            watched = display.tasks[0].completed
            found.append(embed_shard(embedder, part, workers=workers, watch=watch))
            if display.tasks[0].completed == watched:  # was done before: the time that is left is of the others
                display.update(task, total=(display.tasks[0].total or 0) - len(part.samples))
    return found


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Inside, nobody else embeds into this gallery, but for parts."""
    from dmpt.gallery.done import shards_folder

    folder = shards_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / ".lock"
    try:
        lock = Lock(held)
    except Taken:
        raise UserError(f"another dmpt embed writes to {out}; wait for it, or give another --out") from None
    try:
        yield
    finally:
        lock.release()
        if [*folder.glob("*")] == [held]:  # nothing was done
            held.unlink()
            folder.rmdir()


def _there(out: Path) -> "Gallery | None":
    from dmpt.gallery.store import Gallery

    return Gallery(out) if (out / "_versions").is_dir() else None


def _as_the_gallery(out: Path, loaded: Loaded) -> Loaded:
    """In the precision of a gallery that is there."""
    gallery = None if loaded.precision else _there(out)
    if gallery is None:
        return loaded
    return replace(loaded, precision=gallery.model.precision)  # type: ignore[arg-type]  # a key of PRECISIONS


def _say_part(out: Path, done: "Done", json: bool) -> None:
    found = {"shard": done.index, "of": done.count, "rows": done.rows, "kept": done.kept, "failed": len(done.failures)}
    if json:
        print_json({"out": str(out), **found})
    else:
        print(
            f"shard {done.index} of {done.count}: {done.rows} samples embedded, {done.kept} were there already, "
            f"{len(done.failures)} could not be; when all shards are done: --commit"
        )


def say(out: Path, found: dict[str, Any], json: bool) -> None:
    """What was done.

    Raises:
        UserError: nothing could be.
    """
    from dmpt.gallery.failures import failures_path

    failed, there = failures_path(out), found["added"] + found["changed"] + found["kept"]
    if found["failed"] and not there:
        raise UserError(f"none of {found['failed']} could be embedded; {failed} says which and why")
    if json:
        print_json({"out": str(out), "failures": str(failed) if found["failed"] else None, **found})
    elif found["added"] or found["changed"]:
        print(
            f"{out}, version {found['version']}: {found['added']} samples added, {found['changed']} embedded anew, "
            f"{found['kept']} were there already"
        )
    else:
        print(f"{out}: all {found['kept']} samples are there already")
    if found.get("vanished"):
        warn(f"{found['vanished']} samples of {out} are not in the source and stay; dmpt gallery remove takes them out")
    if found["failed"]:
        warn(f"{found['failed']} could not be embedded; {failed} says which and why")


def _which(shards: str | None) -> tuple[int, int] | None:
    """Number and count of ``17/1000``."""
    if shards is None:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shards, re.ASCII)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(f"--shards {shards}: give number and count, as in 0/1000 to 999/1000")
    return int(match[1]), int(match[2])
