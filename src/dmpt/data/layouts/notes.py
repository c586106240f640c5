"""What a reader notes on its way through a folder."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Notes:
    """What is wrong, and what was looked at, so that the rest can be counted.

    Attributes:
        folder: the data set's own folder, all of which is counted: the root that was given, or where the reader found
            the data set below it.
        problems: one line for each file or row that cannot be used.
        seen: every image that the reader has looked at, whether a record uses it or a problem says why not.
        entered: those of the subfolders of ``folder`` that are counted; None = all.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)
    entered: frozenset[str] | None = None
