"""What the readers of folders share: listing images, pairing them by name, and what they note on their way."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dmpt.base.errors import UserError
from dmpt.data.records import Record

#: Files with these suffixes, in upper or lower case, are images: all that Pillow gives to the formats that we decode.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".tif", ".tiff", ".webp"})
#: What systems put beside files: an unpacked archive of macOS, thumbnails of a Synology, waste; and `dmpt synth`.
_CLUTTER = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini", "contact_sheet.png"}
)


@dataclass
class Notes:
    """What is wrong, and what was looked at, so that the rest can be counted."""

    folder: Path  # the data set's own, all of which is counted: the root that was given, or one below it
    problems: list[str] = field(default_factory=list)  # one line for each file or row that cannot be used
    seen: set[Path] = field(default_factory=set)  # every image, whether a record uses it or a problem says why not
    entered: frozenset[str] | None = None  # those of the folder's subfolders that are counted; None = all


class Grammar(NamedTuple):
    """How the images of a layout are named."""

    pattern: str  # of the whole name without suffix, with the groups camera and, if the name says them, pid and scene
    words: str  # the same for a user, with an example

    def match(self, stem: str) -> re.Match[str] | None:
        """A name, taken apart."""
        return re.fullmatch(self.pattern, stem, re.ASCII)


_ANY_NAME = Grammar(r"(?s:.*)", "anything")


def records_in(
    folder: Path,
    places: Mapping[str, str],
    grammar: Grammar,
    notes: Notes,
    *,
    identity: str | None = None,
    columns: Mapping[str, tuple[int, int]] | None = None,
    subsets: bool = False,
) -> Iterator[Record]:
    """The samples of a folder: images of the same stem in the places of its modalities, sorted.

    Args:
        folder: holds the places.
        places: the subfolder of each modality; the same one where a file holds several.
        grammar: of the names.
        notes: get every image, and a problem for each that is missing, misnamed or there twice; its sample is left
            out.
        identity: of all of them, where it is the folder's; names may repeat it.
        columns: as in ``Record``.
        subsets: samples may lack modalities.
    """
    for stem, paths in paired(folder, places, notes, grammar, subsets=subsets):
        match = grammar.match(stem)
        assert match is not None  # nothing else is listed
        said = match.groupdict()
        named, scene = said.get("pid"), said.get("scene")
        if named and identity and int(named) != int(identity):
            file = next(iter(paths.values()))
            notes.problems.append(
                f"{file} is named after identity {named}, not its folder {identity}; rename or move it"
            )
            continue
        yield Record(
            paths,
            pid=int(named or identity or ""),
            camera=int(said["camera"]),
            scene=None if scene is None else int(scene),
            columns=columns or {},
        )


def paired(
    folder: Path, places: Mapping[str, str], notes: Notes, grammar: Grammar = _ANY_NAME, *, subsets: bool = True
) -> Iterator[tuple[str, dict[str, Path]]]:
    """The stems of a folder's samples, sorted, and the image of each modality; otherwise as ``records_in``."""
    twice = set[str]()
    listed = {place: _images(folder / place, grammar, notes, twice) for place in dict.fromkeys(places.values())}
    for stem in sorted({stem for files in listed.values() for stem in files} - twice):
        missing = [place for place, files in listed.items() if stem not in files]
        if missing and not subsets:
            notes.problems += [
                f"{folder / place / stem}.* is missing; "
                "restore it, or remove the images of the same name in the other modalities"
                for place in missing
            ]
            continue
        yield stem, {modality: listed[place][stem] for modality, place in places.items() if stem in listed[place]}


def _images(folder: Path, grammar: Grammar, notes: Notes, twice: set[str]) -> dict[str, Path]:
    """A folder's images by stem, sorted; suffixes may differ between modalities. Stems there twice go to ``twice``."""
    listed: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if clutter(path.name) or path.suffix.lower() not in SUFFIXES:
            continue
        notes.seen.add(path)
        stem = unicodedata.normalize("NFC", path.stem)  # macOS writes an umlaut as two characters, others as one
        if not grammar.match(stem):
            notes.problems.append(f"{path} is not named {grammar.words}; rename or remove it")
        elif stem in listed:
            notes.problems.append(f"{listed[stem]} and {path.name} are the same sample's image twice; remove one")
            twice.add(stem)
        else:
            listed[stem] = path
    return listed


def refuse_empty(records: Sequence[Record], folder: Path, notes: Notes) -> None:
    """Refuse a split without images.

    Raises:
        UserError: there are no records, and no problem says why.
    """
    if not records and not notes.problems:
        raise UserError(
            f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}) where this layout reads them (docs/data.md); "
            "unpack the data set again, or correct data.layout"
        )


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without clutter; none where it may not be listed."""
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not clutter(path.name))
    except PermissionError:
        return []


def clutter(name: str) -> bool:
    """Whether a file or folder of this name is no data: hidden, or put there by the system or by ``dmpt synth``."""
    return name.startswith(".") or name.lower() in _CLUTTER


def contents(folder: Path) -> str:
    """What is there instead, for an error message."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return f"it holds {some(names)}" if names else "it is empty"


def some(items: Sequence[object]) -> str:
    """The first five, and how many more."""
    return ", ".join(map(str, items[:5])) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
