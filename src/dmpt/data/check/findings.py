"""What `dmpt check` finds: kinds of findings, and how they are told."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dmpt.base.errors import one_line
from dmpt.data.check.value_range import shown
from dmpt.data.records import Files
from dmpt.settings.config import SIXTEEN_BITS, Range


class _Kind(NamedTuple):
    """What is wrong in general. An error makes numbers wrong or stops training; a warning is for a person to judge."""

    level: Literal["error", "warning"]
    title: str


#: In the order in which they are told.
KINDS = {
    "files": _Kind("error", "files or rows that are missing, misnamed or wrong"),
    "not_understood": _Kind("error", "folders with images that are passed over"),
    "unreadable": _Kind("error", "images that cannot be read"),
    "empty": _Kind("warning", "splits without images"),
    "both_splits": _Kind("error", "identities in both train and test"),
    "duplicate": _Kind("error", "pictures of train that are in test too"),
    "conflict": _Kind("error", "one picture under two labels"),
    "leak": _Kind("error", "queries that find themselves in the gallery"),
    "no_match": _Kind("error", "queries without a valid match in the gallery"),
    "exchanged": _Kind("error", "modalities that look exchanged"),
    "identical": _Kind("error", "the same picture in two modalities"),
    "colour": _Kind("error", "colour pictures among the infrared"),
    "sizes": _Kind("error", "modalities of different shape: not the same view"),
    "flat": _Kind("error", "16-bit images whose contrast the value range takes away"),
    "clipped": _Kind("warning", "16-bit images that the value range clips"),
    "resolution": _Kind("warning", "modalities of different resolution"),
    "pseudo_colour": _Kind("warning", "infrared in colour throughout"),
    "grey_rgb": _Kind("warning", "bright RGB pictures without colour"),
    "blank": _Kind("warning", "pictures of one single value"),
    "incomplete": _Kind("warning", "samples that lack a modality"),
    "one_camera": _Kind("warning", "training identities seen by one camera only (under same_scene: in one scene)"),
    "unlisted": _Kind("warning", "folders with images that no row names"),
    "counts": _Kind("warning", "counts other than the published ones"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    kind: str  # a key of KINDS
    message: str  # one line: the file, row or identity, what is wrong, and what to do next
    paths: tuple[Path, ...] = ()  # the files it is about; none where it is about labels

    @property
    def level(self) -> str:
        """``error`` or ``warning``."""
        return KINDS[self.kind].level


def by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Those of each kind that is there, in the order of ``KINDS``."""
    listed = list(findings)
    return {kind: found for kind in KINDS if (found := [finding for finding in listed if finding.kind == kind])}


def in_short(findings: Iterable[Finding]) -> list[str]:
    """A line for each kind: how many there are, and the first."""
    return [
        f"{KINDS[kind].title}: {len(found)}, the first: {found[0].message} (dmpt check lists them)"
        for kind, found in by_kind(findings).items()
    ]


@dataclass(frozen=True)
class Report:
    """All that was found."""

    layout: str
    root: str
    protocol: str
    value_range: Range  # of pictures of more than 8 bits
    counts: dict[str, dict[str, int]]  # of each split: samples, ids, cameras, scenes and images per modality
    files: Files
    findings: tuple[Finding, ...]  # ordered by kind, and within a kind by record

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return len(self.findings) - self.errors

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return {
            "layout": self.layout,
            "root": self.root,
            "protocol": self.protocol,
            "value_range": list(self.value_range),
            "counts": self.counts,
            "files": {"folder": str(self.files.folder), **self.files.counts},
            "errors": self.errors,
            "warnings": self.warnings,
            "kinds": {kind: len(found) for kind, found in by_kind(self.findings).items()},
            "findings": [
                {
                    "kind": finding.kind,
                    "level": finding.level,
                    "message": finding.message,
                    "paths": [str(path) for path in finding.paths],
                }
                for finding in self.findings
            ],
        }

    def lines(self, first: int = 5) -> Iterator[str]:
        """The report for a person: counts, then each kind with its ``first`` findings."""
        deep = f", value range {shown(self.value_range)}" if self.value_range != SIXTEEN_BITS else ""
        yield f"{self.layout} in {self.root}, protocol {self.protocol}{deep}"
        for split, counts in self.counts.items():
            yield f"  {split:<8}" + ", ".join(f"{count} {what}" for what, count in counts.items())
        counted = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in self.files.counts.items())
        yield f"  files   {counted}, in {self.files.folder}"
        for kind, found in by_kind(self.findings).items():
            yield f"{KINDS[kind].level}: {KINDS[kind].title} ({len(found)})"
            yield from (f"  {one_line(finding.message)}" for finding in found[:first])
            if len(found) > first:
                yield f"  and {len(found) - first} more; --json lists all"
        yield f"{self.errors} errors, {self.warnings} warnings" if self.findings else "nothing wrong found"
