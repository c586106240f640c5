"""Pictures for a gallery that is there: what their keys are beside those that it has."""

from dataclasses import replace

from dmpt.base.errors import UserError, one_line
from dmpt.base.files import expanded
from dmpt.gallery.changes import Change, label
from dmpt.gallery.sources import Sample, Source
from dmpt.gallery.store import Gallery


def as_keys_of(gallery: Gallery | None, source: Source, pid: str | None = None, camera: str | None = None) -> Source:
    """A source whose keys are relative to the folder that those of a gallery are relative to.

    Args:
        gallery: to add to; None = it is yet to be made.
        source: that folder, one in it, or another one.
        pid: who is on all samples; None = as the source says.
        camera: which took them; None = as the source says.

    Raises:
        UserError: it is another folder, and one of its keys is a sample of the gallery with other pictures.
    """
    given = None if gallery is None else gallery.source
    home, prefix = source.root if given is None else expanded(given).resolve(), ""
    if source.root != home and source.root.is_relative_to(home):
        prefix = source.root.relative_to(home).as_posix() + "/"
    elif source.root != home and gallery is not None:
        rows = gallery.read(["key", "content"]).to_pylist()
        there = {row["key"]: row["content"] for row in rows}
        same = [sample for sample in source.samples if sample.key in there]
        other = next((one for one in same if not _is(one, source, gallery, there[one.key])), None)
        if other is not None:
            raise UserError(
                f"{len(same)} samples of {source.given} have the keys of others, from {given}, such as "
                f"{one_line(other.key)[:200]}, and would replace them; move the folder into {given}, or, if that was "
                "moved itself, tell dmpt gallery rebuild its --source"
            )
    samples = tuple(
        replace(one, key=prefix + one.key, pid=one.pid if pid is None else pid, camera=camera or one.camera)
        for one in source.samples
    )
    return replace(source, samples=samples)


def _is(sample: Sample, source: Source, gallery: Gallery, content: str | None) -> bool:
    """Whether these are the pictures that a gallery has: of a folder that was moved, or added before."""
    seen = sample.seen_by(gallery.model.preprocessing["modalities"])
    try:
        return not seen.paths or seen.digest(seen.contents(source.root)) == content
    except UserError:  # what cannot be read replaces nothing
        return True


def called(gallery: Gallery, source: Source, pid: str) -> Change:
    """Say who is on the samples of a source that were there already, and did not change: a version of its own.

    Raises:
        UserError: the store refuses the write.
    """
    rows, mine = gallery.refresh().read(["key", "pid"]).to_pylist(), {sample.key for sample in source.samples}
    return label(gallery, {row["key"]: pid for row in rows if row["pid"] != pid and row["key"] in mine})
