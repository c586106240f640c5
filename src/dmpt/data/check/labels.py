"""What files, identities, cameras and scenes alone tell about a data set."""

from collections.abc import Iterator, Sequence
from itertools import chain

from dmpt.base.errors import UserError
from dmpt.data.check.findings import Finding
from dmpt.data.layouts import DATASETS, shared_pids
from dmpt.data.missing import incomplete
from dmpt.data.records import Dataset, Record, labels_of
from dmpt.data.split import view_of
from dmpt.retrieval.metrics import has_match
from dmpt.settings.modalities import MODALITIES


def count(records: Sequence[Record]) -> dict[str, int]:
    """Samples, identities, cameras, scenes where there are any, and images of each modality."""
    scenes = len({record.scene for record in records} - {None})
    return {
        "samples": len(records),
        "ids": len({record.pid for record in records}),
        "cameras": len({record.camera for record in records}),
        **({"scenes": scenes} if scenes else {}),
        **{modality: sum(modality in record.paths for record in records) for modality in MODALITIES},
    }


def check_files(dataset: Dataset) -> Iterator[Finding]:
    """Images in the data set's folder that nobody reads."""
    kind = "not_understood" if DATASETS[dataset.name].whole else "unlisted"
    for part in dataset.files.passed_over:
        yield Finding(kind, part.message, part.examples)


def check_counts(dataset: Dataset) -> Iterator[Finding]:
    """Compare with what was published: warnings, since own data may come in the layout of a benchmark."""
    found = dataset.splits | {"total": (*dataset.train, *dataset.gallery)}
    for split, known in DATASETS[dataset.name].known.items():
        here = count(found[split])
        wanted = {what: number for what, number in vars(known).items() if number is not None}
        wrong = [f"{here.get(what, 0)} {what} (published: {n})" for what, n in wanted.items() if here.get(what, 0) != n]
        if wrong:
            advice = "fetch it again, unless these are other data in this layout"
            yield Finding("counts", f"{split} has {', '.join(wrong)}; {advice}")


def check_labels(dataset: Dataset) -> Iterator[Finding]:
    """Splits that are empty or share identities, queries without a match, incomplete samples, ids of one camera."""
    for split, records in dataset.splits.items():
        if not records:
            yield Finding("empty", f"{split} has no usable image; add some, unless it is never needed")
    train, test = _by_pid(dataset.train), _by_pid((*dataset.query, *dataset.gallery))
    for pid in sorted(shared_pids(dataset)):
        one, other = train[pid][0].file, test[pid][0].file
        yield Finding(
            "both_splits",
            f"identity {pid} is in train ({one}) and in test ({other}); move all its images to one of them",
            (one, other),
        )
    if dataset.query:
        yield from _no_match(dataset)
    yield from _incomplete(dataset)
    view = view_of(dataset.protocol)
    for pid, seen in sorted(train.items()):
        views = {getattr(record, view) for record in seen}
        if len(views) == 1 and None not in views:  # scenes may be lacking: no_match says so
            yield Finding(
                "one_camera",
                f"identity {pid} is seen by {view} {views.pop()} only ({len(seen)} samples, {seen[0].file}): it "
                f"cannot teach what changes between {view}s; add images of another, or accept it",
                (seen[0].file,),
            )


def _incomplete(dataset: Dataset) -> Iterator[Finding]:
    """Once per data set: some may be meant to be so, and names that do not pair look the same."""
    records = list({record.file: record for record in chain(*dataset.splits.values())}.values())
    if lacking := incomplete(records):
        used = {modality for record in records for modality in record.paths}
        absent = " and ".join(m for m in MODALITIES if m in used and m not in lacking[0].paths)
        yield Finding(
            "incomplete",
            f"{len(lacking)} of {len(records)} samples lack a modality, the first is {lacking[0].file} (no {absent}); "
            "restore the images, or accept it: in folders the images of a sample share their name but for the suffix",
            (lacking[0].file,),
        )


def _by_pid(records: Sequence[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(record.pid, []).append(record)
    return found


def _no_match(dataset: Dataset) -> Iterator[Finding]:
    try:
        matched = has_match(labels_of(dataset.query), labels_of(dataset.gallery), dataset.protocol)
    except UserError as error:  # a protocol of scenes on data without
        yield Finding("no_match", str(error))
        return
    for record, found in zip(dataset.query, matched, strict=True):
        if not found:
            yield Finding(
                "no_match",
                f"{record.file}: no gallery image of identity {record.pid} counts under protocol {dataset.protocol}; "
                "add one to the gallery, or take this one out of the query (a manifest's column split), or all of this "
                "identity out of the data",
                (record.file,),
            )
