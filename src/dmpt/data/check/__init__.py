"""What is wrong with this data, before an epoch is spent on it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.check.appearance import check_appearance, check_copies
from dmpt.data.check.findings import Finding, Report, by_kind
from dmpt.data.check.labels import check_counts, check_files, check_labels, count
from dmpt.data.check.looks import Looks, files_of, look_at
from dmpt.data.check.pictures import Picture
from dmpt.data.check.value_range import measured_on, settled
from dmpt.data.layouts import list_dataset
from dmpt.data.records import Record
from dmpt.settings.config import DataConfig, Range


def check(layout: str, root: str | Path, settings: DataConfig | None = None, workers: int | None = None) -> Report:
    """Look for everything that can be wrong with a data set. Every file is decoded once, and no picture is kept.

    Args:
        layout: a key of ``dmpt.data.layouts.DATASETS``.
        root: the data set's folder, or its parent; of a manifest, also the file.
        settings: their ``protocol``, ``value_range``, ``test_share`` and ``split_seed`` are used; None = the defaults.
        workers: decoding threads; None takes one for each core. The findings do not depend on it.

    Raises:
        UserError: an unknown layout, or no data set in this folder.
    """
    settings = settings or DataConfig()
    dataset, problems = list_dataset(layout, root, settings)
    looks = look_at(dataset, chain(*dataset.splits.values()), workers)
    value_range = settled(settings.value_range, dataset.train, looks)
    findings = [
        *(Finding("files", problem) for problem in problems),
        *check_files(dataset),
        *(Finding("unreadable", problem, (path,)) for path, problem in looks.unreadable()),
        *check_labels(dataset),
        *_check_pictures(dataset.splits, looks, value_range, dataset.protocol),
        *check_counts(dataset),
    ]
    return Report(
        layout=layout,
        root=str(root),
        protocol=dataset.protocol,
        value_range=value_range,
        counts={split: count(records) for split, records in dataset.splits.items()},
        files=dataset.files,
        findings=tuple(chain(*by_kind(findings).values())),
    )


def errors_of_training(
    splits: Mapping[str, Sequence[Record]], looks: Looks, value_range: Range, protocol: str
) -> list[Finding]:
    """What ``check`` would call an error about the pictures that are trained on.

    The splits are ``train``, ``query`` and ``gallery``, with the modalities in use, at all of which was looked.
    """
    trained_on = {path for record in splits["train"] for path in record.paths.values()}
    return [
        finding
        for finding in _check_pictures(splits, looks, value_range, protocol)
        if finding.level == "error" and not trained_on.isdisjoint(finding.paths)
    ]


def _check_pictures(
    splits: Mapping[str, Sequence[Record]], looks: Looks, value_range: Range, protocol: str
) -> Iterator[Finding]:
    placed = [(split, record, looks.pictures(record)) for split, records in splits.items() for record in records]
    once: dict[object, tuple[Record, Mapping[str, Picture]]] = {}  # a test record is often both query and gallery
    for _, record, pictures in placed:
        once.setdefault((tuple(record.paths), files_of(record)), (record, pictures))
    yield from check_copies(placed, protocol)
    yield from check_appearance([*once.values()], value_range, measured_on(splits["train"], looks))


def keep_readable(records: Sequence[Record], looks: Looks, skip: bool) -> tuple[Sequence[Record], list[str]]:
    """The records all of whose images can be read (``records`` itself when all are), and what is wrong with the others.

    Raises:
        UserError: a file does not decode, and ``skip`` does not say to leave such samples out; or none is left.
    """
    broken = [looks.broken(record) for record in records]
    problems = [*chain(*broken)]
    if problems and not skip:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}, or leave such samples out with --skip-broken")
    if not problems:
        return records, []
    if all(broken):
        raise UserError(f"none of {len(records)} samples can be read: {problems[0]}")
    kept = [record for record, wrong in zip(records, broken, strict=True) if not wrong]
    return kept, [", ".join(wrong) for wrong in broken if wrong]
