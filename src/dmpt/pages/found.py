"""What a search found, as a page of ranked pictures in all spectra."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmpt.base.errors import UserError
from dmpt.data.records import Record
from dmpt.gallery.search import Hit
from dmpt.pages.frame import Section, render, write_page
from dmpt.pages.pictures import SPOKEN, listed, lying, spectra_of, stacked, thumbnails
from dmpt.settings.config import DataConfig


@dataclass(frozen=True)
class Shown:
    """One query and what was found for it.

    Attributes:
        name: of the query.
        shots: its pictures.
        hits: best first.
        pictures: of each hit; None where they are not there.
    """

    name: str
    shots: Sequence[Record]
    hits: Sequence[Hit]
    pictures: Sequence[Record | None]


def write_found(out: Path, title: str, facts: Sequence[str], found: Sequence[Shown], data: DataConfig) -> None:
    """Write the page.

    Args:
        out: the file.
        title: its heading.
        facts: sentences on what was searched, and what scores mean.
        found: a part of the page each.
        data: of the model: size, value range and modalities of the pictures.

    Raises:
        UserError: it cannot be written.
    """
    spectra = listed(data.modalities, SPOKEN)
    lead = render("pages/found_lead.html", facts=facts, spectra=spectra)
    sections = [Section(f"query-{number}", one.name, _body(one, data)) for number, one in enumerate(found, start=1)]
    write_page(out, title, lead, sections)


def _body(shown: Shown, data: DataConfig) -> Any:
    cells = [
        {**_cell(record, data, "query", f"Query, shot {number}"), "mark": "query", "lines": [record.name]}
        for number, record in enumerate(shown.shots, start=1)
    ]
    for rank, (hit, record) in enumerate(zip(shown.hits, shown.pictures, strict=True), start=1):
        lines = [f"{'unlabelled' if hit.pid is None else hit.pid}", f"{hit.score:.6f}"]
        if hit.distance is not None:
            lines.append(f"distance {hit.distance:.4f}")
        if hit.expected_false_matches is not None:
            lines.append(f"≤ {hit.expected_false_matches:.3g} false")
        if not hit.modalities:
            lines.append("nothing in common")
        if hit.camera is not None:
            lines.append(f"cam {hit.camera}")
        cell = _cell(record, data, "found", f"Rank {rank}: {lines[0]}")
        cells.append({**cell, "name": hit.key, "mark": str(rank), "lines": lines})
    return render("pages/found.html", cells=cells, wide=lying(data))


def _cell(record: Record | None, data: DataConfig, kind: str, means: str) -> dict[str, Any]:
    """Its pictures above each other; a frame where there is none, or one cannot be read."""
    there = record or Record({}, 0, 0)
    try:
        images = thumbnails(there, data)
    except UserError:
        there, means = Record({}, 0, 0), f"{means}, unreadable"
        images = thumbnails(there, data)
    picture = stacked(images, f"{means}, {spectra_of(there, data)}")
    return {"kind": kind, "name": there.name if there.paths else "", "picture": picture}
