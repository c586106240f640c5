"""What is wrong with this data, before an epoch is spent on it."""

import os
from collections.abc import Sequence
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.check.appearance import check_appearance, check_copies
from dmpt.data.check.findings import KINDS, Finding, Report
from dmpt.data.check.labels import check_counts, check_files, check_labels, count
from dmpt.data.check.pictures import look_at
from dmpt.data.images import find_broken
from dmpt.data.layouts import list_dataset
from dmpt.data.records import Record, Splits
from dmpt.settings.config import DataConfig


def check(layout: str, root: str | Path, settings: DataConfig | None = None, workers: int | None = None) -> Report:
    """Look for everything that can be wrong with a data set. Every file is decoded once, and no picture is kept.

    Args:
        layout: a key of ``dmpt.data.layouts.DATASETS``.
        root: the data set's folder, or its parent; of a manifest, also the file.
        settings: their ``protocol``, ``value_range``, ``test_share`` and ``split_seed`` are used; None = the defaults.
        workers: decoding processes; None takes one for each core. Small sets take one anyway; the findings do not
            depend on it.

    Returns:
        The findings.

    Raises:
        UserError: an unknown layout, or no data set in this folder.
    """
    settings = settings or DataConfig()
    dataset, problems = list_dataset(layout, root, settings)
    splits = Splits(dataset.train, dataset.query, dataset.gallery)
    place: dict[object, int] = {}
    unique: list[Record] = []  # a test record is often both query and gallery
    for record in (record for records in splits for record in records):
        if place.setdefault(_files(record), len(unique)) == len(unique):
            unique.append(record)
    looks = look_at(unique, settings.value_range, workers or os.cpu_count() or 1)
    placed = [
        (split, record, looks[place[_files(record)]].pictures)
        for split, records in zip(Splits._fields, splits, strict=True)
        for record in records
    ]
    findings = [
        *(Finding("files", problem) for problem in problems),
        *check_files(layout, dataset),
        *(Finding("unreadable", message, (path,)) for look in looks for path, message in look.unreadable),
        *check_labels(dataset),
        *check_copies(placed, dataset.protocol),
        *check_appearance([(record, look.pictures) for record, look in zip(unique, looks, strict=True)]),
        *check_counts(layout, splits),
    ]
    order = list(KINDS)
    return Report(
        layout=layout,
        root=str(root),
        protocol=dataset.protocol,
        counts={"train": count(dataset.train), "query": count(dataset.query), "gallery": count(dataset.gallery)},
        files=dataset.files,
        findings=tuple(sorted(findings, key=lambda finding: order.index(finding.kind))),  # stable: then by record
    )


def _files(record: Record) -> object:
    """What is decoded for a record."""
    return tuple(sorted(record.paths.items())), tuple(sorted(record.columns.items()))


def keep_readable(
    records: Sequence[Record], value_range: tuple[float, float], skip: bool
) -> tuple[Sequence[Record], list[str]]:
    """Decode every image once.

    Args:
        records: samples.
        value_range: of 16-bit images (``images.read_image``).
        skip: leave out samples with an unreadable image instead of refusing them.

    Returns:
        The readable samples (``records`` itself when all are), and for each of the others what was wrong.

    Raises:
        UserError: a file does not decode and ``skip`` is off.
    """
    broken = find_broken(records, value_range)
    if broken and not skip:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"{broken[0][1]}{more}, or leave such samples out with --skip-broken")
    if not broken:
        return records, []
    bad: dict[int, str] = {}
    for index, message in broken:
        bad[index] = f"{bad[index]}, {message}" if index in bad else message
    if len(bad) == len(records):
        raise UserError(f"none of {len(records)} samples can be read: {broken[0][1]}")
    return [record for index, record in enumerate(records) if index not in bad], list(bad.values())
