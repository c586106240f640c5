"""``dmpt gallery add`` and ``rebuild``: those that embed pictures."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.terminal import print_json
from dmpt.settings.numbers import Positive
from dmpt.verbs.embed import Listed, embed_all, embed_parts, say
from dmpt.verbs.loaded import Loaded

if TYPE_CHECKING:
    from dmpt.gallery.changes import Change


def add(
    gallery: Path,
    source: Path,
    /,
    model: Path,
    listed: Listed,
    loaded: Loaded,
    pid: str | None = None,
    camera: str | None = None,
    batch_size: Positive = 64,
    workers: Positive | None = None,
    json: bool = False,
) -> None:
    """Embed pictures into it, as dmpt embed does: what is new is added, what changed is embedded anew.

    Args:
        gallery: The gallery; it is made where it is not there.
        source: A folder of modalities' folders, a manifest (CSV, Parquet), or with --modality a folder of images.
        model: Run folder, adapter folder, package:tiny, or a file of dmpt export: what the gallery is of.
        listed: what is in the source
        loaded: the model
        pid: Who is on all of them; default: as the source says.
        camera: Which camera took those that are embedded; default: as the source says.
        batch_size: Samples per pass.
        workers: Threads that read and decode; default: one per core.
        json: Print JSON.
    """
    out = expanded(gallery)
    done = embed_all(out, listed.read(source), model, loaded, batch_size, workers, pid, camera)
    del done["vanished"]  # the others are of other sources
    say(out, done, json)


def rebuild(
    gallery: Path,
    /,
    model: Path,
    listed: Listed,
    loaded: Loaded,
    source: Sequence[Path] = (),
    batch_size: Positive = 64,
    workers: Positive | None = None,
    json: bool = False,
) -> None:
    """Embed its samples for another model; labels stay, and so does the old version until all are done.

    Stopped or killed, the same command goes on.

    Args:
        gallery: The gallery.
        model: Run folder, adapter folder, package:tiny, or a file of dmpt export: what it shall be of.
        listed: what is in the source
        loaded: the model
        source: Folders where the pictures are, in turn; with none, the one that the gallery was made from.
        batch_size: Samples per pass.
        workers: Threads that read and decode; default: one per core.
        json: Print JSON.
    """
    from dmpt.gallery.rebuild import rebuild
    from dmpt.gallery.store import open_gallery

    table = open_gallery(gallery)
    if not source and table.source is None:
        raise UserError(f"{gallery} does not say where its pictures are; give --source")
    found = [listed.read(place) for place in source or [Path(table.source or "")]]
    embedder = loaded.load(model)
    tell(rebuild(table, embedder, found, lambda parts: embed_parts(embedder, parts, workers), batch_size), json)


def tell(change: "Change", json: bool) -> None:
    """Print what became of a write."""
    if json:
        print_json(asdict(change))
        return
    counts = {"added": change.added, "changed": change.changed, "removed": change.removed}
    print(
        f"version {change.version}: " + (", ".join(f"{n} {what}" for what, n in counts.items() if n) or "nothing to do")
    )
