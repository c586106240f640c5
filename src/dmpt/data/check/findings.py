"""What `dmpt check` finds: kinds of findings, and how they are told."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dmpt.base.errors import one_line
from dmpt.data.check.value_range import shown
from dmpt.data.records import Files
from dmpt.settings.config import SIXTEEN_BITS, Range


class Kind(NamedTuple):
    """What is wrong in general.

    Attributes:
        level: an error makes the numbers wrong or stops the training; a warning is for a person to judge.
        title: in plain words.
    """

    level: Literal["error", "warning"]
    title: str


#: In the order in which they are told.
KINDS = {
    "files": Kind("error", "files or rows that are missing, misnamed or wrong"),
    "not_understood": Kind("error", "folders with images that are passed over"),
    "unreadable": Kind("error", "images that cannot be read"),
    "empty": Kind("warning", "splits without images"),
    "both_splits": Kind("error", "identities in both train and test"),
    "duplicate": Kind("error", "pictures of train that are in test too"),
    "conflict": Kind("error", "one picture under two labels"),
    "leak": Kind("error", "queries that find themselves in the gallery"),
    "no_match": Kind("error", "queries without a valid match in the gallery"),
    "exchanged": Kind("error", "modalities that look exchanged"),
    "identical": Kind("error", "the same picture in two modalities"),
    "colour": Kind("error", "colour pictures among the infrared"),
    "sizes": Kind("error", "modalities of different shape: not the same view"),
    "flat": Kind("error", "16-bit images whose contrast the value range takes away"),
    "clipped": Kind("warning", "16-bit images that the value range clips"),
    "resolution": Kind("warning", "modalities of different resolution"),
    "pseudo_colour": Kind("warning", "infrared in colour throughout"),
    "grey_rgb": Kind("warning", "bright RGB pictures without colour"),
    "blank": Kind("warning", "pictures of one single value"),
    "incomplete": Kind("warning", "samples that lack a modality"),
    "one_camera": Kind("warning", "training identities seen by one camera only (under same_scene: in one scene)"),
    "unlisted": Kind("warning", "folders with images that no row names"),
    "counts": Kind("warning", "counts other than the published ones"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: a key of ``KINDS``.
        message: one line: the file, row or identity, what is wrong, and what to do next.
        paths: the files it is about; none where it is about labels.
    """

    kind: str
    message: str
    paths: tuple[Path, ...] = ()


def in_short(findings: Iterable[Finding]) -> list[str]:
    """A line for each kind, in their order: how many there are, and the first."""
    found = sorted(findings, key=lambda finding: list(KINDS).index(finding.kind))
    lines = []
    for kind, group in groupby(found, key=lambda finding: finding.kind):
        first, *more = group
        lines.append(f"{KINDS[kind].title}: {1 + len(more)}, the first: {first.message} (dmpt check lists them)")
    return lines


@dataclass(frozen=True)
class Report:
    """All that was found.

    Attributes:
        layout: how the data were read.
        root: from where.
        protocol: which gallery items a query ignores.
        value_range: of pictures of more than 8 bits.
        counts: of each split: ``samples``, ``ids``, ``cameras``, ``scenes`` and images per modality.
        files: what lies in the data set's folder.
        findings: ordered by kind, and within a kind by record.
    """

    layout: str
    root: str
    protocol: str
    value_range: Range
    counts: dict[str, dict[str, int]]
    files: Files
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """Number of errors."""
        return sum(KINDS[finding.kind].level == "error" for finding in self.findings)

    @property
    def warnings(self) -> int:
        """Number of warnings."""
        return len(self.findings) - self.errors

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        found = Counter(finding.kind for finding in self.findings)
        return {
            "layout": self.layout,
            "root": self.root,
            "protocol": self.protocol,
            "value_range": list(self.value_range),
            "counts": self.counts,
            "files": {"folder": str(self.files.folder), **self.files.counts},
            "errors": self.errors,
            "warnings": self.warnings,
            "kinds": {kind: found[kind] for kind in KINDS if found[kind]},
            "findings": [
                {
                    "kind": finding.kind,
                    "level": KINDS[finding.kind].level,
                    "message": finding.message,
                    "paths": [str(path) for path in finding.paths],
                }
                for finding in self.findings
            ],
        }

    def lines(self, first: int = 5) -> Iterator[str]:
        """The report for a person: counts, then each kind with its first few findings.

        Args:
            first: findings shown of each kind.
        """
        deep = f", value range {shown(self.value_range)}" if self.value_range != SIXTEEN_BITS else ""
        yield f"{self.layout} in {self.root}, protocol {self.protocol}{deep}"
        for split, counts in self.counts.items():
            yield f"  {split:<8}" + ", ".join(f"{count} {what}" for what, count in counts.items())
        counted = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in self.files.counts.items())
        yield f"  files   {counted}, in {self.files.folder}"
        for kind, (level, title) in KINDS.items():
            found = [finding for finding in self.findings if finding.kind == kind]
            if not found:
                continue
            yield f"{level}: {title} ({len(found)})"
            yield from (f"  {one_line(finding.message)}" for finding in found[:first])
            if len(found) > first:
                yield f"  and {len(found) - first} more; --json lists all"
        yield f"{self.errors} errors, {self.warnings} warnings" if self.findings else "nothing wrong found"
