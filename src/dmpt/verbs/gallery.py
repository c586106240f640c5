"""A table of embedded samples that lasts: add to it, mend it, go back, hand it on.

What ``dmpt gallery --help`` lists is ``VERBS``.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from dmpt.base.errors import UserError
from dmpt.base.terminal import print_json, print_table
from dmpt.settings.numbers import Finite, Positive, ShareBetween
from dmpt.verbs.gallery_embed import add, rebuild, tell


def remove(
    gallery: Path,
    keys: Sequence[str] = (),
    /,
    pid: Sequence[str] = (),
    where: str | None = None,
    purge: bool = False,
    json: bool = False,
) -> None:
    """Take samples out; earlier versions still have them, unless they are purged.

    Args:
        gallery: The gallery.
        keys: Samples, by their keys; with --pid or --where those of them that meet these too.
        pid: All samples with these labels.
        where: All samples that meet a condition in SQL; with --pid those that meet both.
        purge: Leave no version that still has them: every version but the newest is deleted, also with nothing named.
        json: Print JSON.
    """
    from dmpt.gallery.changes import Change, remove
    from dmpt.gallery.purge import purge as clean
    from dmpt.gallery.store import open_gallery

    table = open_gallery(gallery)
    nothing = purge and not keys and not pid and where is None
    change = Change(table.version) if nothing else remove(table, keys, pids=pid, where=where)
    if not purge:
        tell(change, json)
        return
    purged = clean(table)
    if json:
        print_json(asdict(change) | asdict(purged))
    else:
        print(
            f"version {purged.version}: {change.removed} removed; {purged.versions} earlier versions are gone, "
            f"{purged.freed / 1e6:.1f} MB freed"
        )


def label(
    gallery: Path,
    keys: Sequence[str] = (),
    /,
    pid: str | None = None,
    unlabelled: bool = False,
    where: str | None = None,
    json: bool = False,
) -> None:
    """Say by hand who is on samples, as where two were taken for one.

    Args:
        gallery: The gallery.
        keys: Samples, by their keys; with --where those of them that meet it.
        pid: Who it is: any text.
        unlabelled: Take their labels away instead.
        where: All samples that meet a condition in SQL.
        json: Print JSON.
    """
    from dmpt.gallery.changes import keys_of, label
    from dmpt.gallery.store import open_gallery

    if (pid is None) != unlabelled:
        raise UserError("give either --pid, who it is, or --unlabelled")
    table = open_gallery(gallery)
    tell(label(table, dict.fromkeys(keys_of(table, keys, where=where), pid)), json)


def stats(gallery: Path, /, version: Positive | None = None, json: bool = False) -> None:
    """What it holds, how large it is, and whose vectors these are.

    Args:
        gallery: The gallery.
        version: An earlier one; default: the newest.
        json: Print JSON.
    """
    from dmpt.gallery.history import stats
    from dmpt.gallery.store import open_gallery

    found = stats(open_gallery(gallery, version))
    if json:
        print_json(asdict(found))
        return
    named = {
        "samples": f"{found.rows}, {found.unlabelled} without a label",
        "identities": str(found.pids),
        "modalities": ", ".join(f"{name} {count}" for name, count in found.modalities.items()),
        "cameras": ", ".join(f"{name} {count}" for name, count in found.cameras.items()),
        "own columns": ", ".join(f"{name} ({kind})" for name, kind in found.columns.items()),
        "model": f"adapter {found.adapter[:12]}, {found.precision}",
        "source": found.source or "",
        "versions": f"{found.versions}; this is {found.version}",
        "size": f"{found.bytes / 1e6:.2f} MB in {found.fragments} files; {found.disk / 1e6:.2f} MB with all versions",
    }
    print_table(str(gallery), ["", ""], [[name, text] for name, text in named.items() if text])


def history(gallery: Path, /, json: bool = False) -> None:
    """Its versions: when, what was done, and how many samples there were.

    Args:
        gallery: The gallery.
        json: Print JSON.
    """
    from dmpt.gallery.history import history
    from dmpt.gallery.store import Gallery

    lines = history(Gallery(gallery, spoiled=True))
    if json:
        print_json([asdict(line) | {"time": line.time.isoformat()} for line in lines])
        return
    rows = [[str(one.version), f"{one.time:%Y-%m-%d %H:%M:%S} UTC", one.what, str(one.rows)] for one in lines]
    print_table(str(gallery), ["version", "time", "what", "samples"], rows)


def rollback(gallery: Path, version: Positive, /, json: bool = False) -> None:
    """Make an earlier version the newest, as a version of its own.

    Args:
        gallery: The gallery.
        version: Which; dmpt gallery history lists them.
        json: Print JSON.
    """
    from dmpt.gallery.changes import rollback
    from dmpt.gallery.store import Gallery

    change = rollback(Gallery(gallery, spoiled=True), version)
    if json:
        print_json(asdict(change))
    else:
        print(f"version {change.version} holds what version {version} held")


def export(
    gallery: Path,
    out: Path,
    /,
    format: Literal["npz", "parquet", "fiftyone"] | None = None,
    where: str | None = None,
    source: str | None = None,
    version: Positive | None = None,
    json: bool = False,
) -> None:
    """Write it for NumPy, Parquet or FiftyOne.

    Args:
        gallery: The gallery.
        out: A file x.npz or x.parquet, or a folder for FiftyOne.
        format: Default: by the name.
        where: Only samples that meet a condition in SQL.
        source: Where the pictures are, for FiftyOne; default: where they were embedded.
        version: An earlier one; default: the newest.
        json: Print JSON.
    """
    from dmpt.gallery.export import export
    from dmpt.gallery.store import open_gallery

    table = open_gallery(gallery, version)
    count = export(table, out, format, where, source)
    if json:
        print_json({"version": table.version, "out": str(out), "rows": count})
    else:
        print(f"{out}: {count} samples of version {table.version}")


def cluster(
    gallery: Path,
    /,
    threshold: Finite | None = None,
    model: Path | None = None,
    fmr: ShareBetween = 0.001,
    where: str | None = None,
    apply: bool = False,
    json: bool = False,
) -> None:
    """Propose identities for samples without a label; nothing is written without --apply.

    Args:
        gallery: The gallery.
        threshold: The score above which two are the same, whatever modalities they have in common.
        model: Instead: the run, adapter folder or exported file that the vectors are of, whose calibration knows them.
        fmr: The share of strangers that may pass such a threshold.
        where: Only samples that meet a condition in SQL.
        apply: Write the labels that are proposed.
        json: Print JSON.
    """
    from dmpt.gallery.cluster import apply as write
    from dmpt.gallery.cluster import propose, thresholds_of
    from dmpt.gallery.store import open_gallery

    if (threshold is None) == (model is None):
        raise UserError("give either --threshold, or --model, whose calibration knows it")
    table = open_gallery(gallery)
    limits = [threshold] * 8 if model is None else thresholds_of(table.model, model, fmr)
    found = propose(table, limits, where)
    change = write(table, found) if apply else None
    if json:
        print_json({"proposals": [asdict(one) for one in found], "change": change and asdict(change)})
        return
    rows = [
        [one.pid, "known" if one.known else "new", str(len(one.keys)), f"{one.margin:.3f}", one.keys[0]]
        for one in found
    ]
    print_table(
        f"{gallery}: who samples without a label may be", ["pid", "", "samples", "above threshold", "such as"], rows
    )
    if change:
        tell(change, json)
    else:
        print("nothing was written; --apply writes these labels")


def index(gallery: Path, /, recall: ShareBetween = 0.98, json: bool = False) -> None:
    """Sort it into lists for dmpt search --index: beyond a million samples most need not be compared.

    Args:
        gallery: The gallery.
        recall: Share of the ten nearest that is to be found; measured on samples of the gallery, and printed.
        json: Print JSON.
    """
    from dmpt.gallery.index import make_index
    from dmpt.gallery.store import open_gallery

    table = open_gallery(gallery)
    made = make_index(table, recall)
    if json:
        print_json({"version": table.version, "rows": len(table), "lists": made.probes, "recall": made.recall})
    else:
        print(
            f"version {table.version}: {len(table)} samples; with {made.probes} lists of each modality "
            f"{100 * made.recall:.1f} % of the ten nearest are found"
        )


VERBS: dict[str, Callable[..., Any]] = {
    "add": add,
    "remove": remove,
    "label": label,
    "stats": stats,
    "history": history,
    "rollback": rollback,
    "rebuild": rebuild,
    "export": export,
    "cluster": cluster,
    "index": index,
}
"""In the order of ``dmpt gallery --help``."""
