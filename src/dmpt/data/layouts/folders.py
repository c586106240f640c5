"""What the readers of folders share: finding the folder, listing images, pairing them by name."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dmpt.base.errors import UserError
from dmpt.data.layouts.notes import Notes

#: Files with these suffixes, in upper or lower case, are images: all that Pillow gives to the formats that we decode.
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".tif", ".tiff", ".webp"})
#: What systems put beside files: an unpacked archive of macOS, thumbnails of a Synology, waste; and `dmpt synth`.
_CLUTTER = frozenset(
    {"__macosx", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini", "contact_sheet.png"}
)


class Grammar(NamedTuple):
    """How the images of a layout are named.

    Attributes:
        pattern: of the whole name without suffix.
        words: the same for a user, with an example.
    """

    pattern: re.Pattern[str]
    words: str


class Found(NamedTuple):
    """One sample, or what there is of it.

    Attributes:
        match: its name, taken apart.
        paths: the file of each modality.
    """

    match: re.Match[str]
    paths: dict[str, Path]


def homes(root: Path, wanted: Sequence[str], names: Sequence[str], depth: int = 2) -> list[Path]:
    """The folders at or below ``root`` that hold all of ``wanted``; the highest level that has one wins.

    Args:
        root: where to look.
        wanted: names or glob patterns of subfolders.
        names: names that the data set's folder goes by; where several folders fit, those so named are preferred.
        depth: levels to look below ``root``.

    Raises:
        UserError: ``root`` is no folder.
    """
    if not root.is_dir():
        what = f"{root} is a file" if root.exists() else f"there is no folder {root}"
        raise UserError(f"{what}; set data.root to the folder that holds {_and(wanted)}")
    level, found = [root], list[Path]()
    for _ in range(depth + 1):
        found = [folder for folder in level if all(_folders(folder, pattern) for pattern in wanted)]
        if found:
            break
        level = [below for folder in level for below in subfolders(folder)]
    known = {name.lower() for name in names}
    named = [folder for folder in found if {part.lower() for part in folder.relative_to(root).parts} & known]
    return named or found


def home(root: Path, train: str, tests: Sequence[str], names: Sequence[str]) -> tuple[Path, list[str]]:
    """The one folder at or below ``root`` that holds the splits, and which of them it holds.

    Args:
        root: where to look.
        train: subfolder of the training images.
        tests: subfolders of the test images.
        names: as for ``homes``.

    Raises:
        UserError: there is none, or more than one.
    """
    wanted = [train, *tests]
    found = homes(root, wanted, names)
    if not found and (alone := home_of_tests(root, tests, names)):
        return alone, list(tests)
    if not found:
        raise UserError(
            f"neither {root} nor a folder below holds {_and(wanted)} ({contents(root)}); "
            "set data.root to the folder that does, or correct data.layout"
        )
    if len(found) > 1:
        raise UserError(f"more than one folder holds {_and(wanted)} ({some(found)}); set data.root to one of them")
    return found[0], wanted


def home_of_tests(root: Path, tests: Sequence[str], names: Sequence[str], depth: int = 2) -> Path | None:
    """The one folder that holds the test images of a benchmark and nothing else: enough to judge a model on.

    Beside any other folder they are not taken for that: the training images may have a name that nobody reads.

    Args:
        root: as for ``homes``.
        tests: subfolders of the test images.
        names: as for ``homes``.
        depth: as for ``homes``.
    """
    alone = [folder for folder in homes(root, tests, names, depth) if len(subfolders(folder)) == len(tests)]
    return alone[0] if len(alone) == 1 else None


def images(folder: Path, grammar: Grammar, notes: Notes, twice: set[str]) -> dict[str, Path]:
    """Images of a folder by stem, sorted; suffixes may differ between modalities, stems are equal in case.

    Args:
        folder: lists as empty where it does not exist.
        grammar: of the names.
        notes: get every image, and a problem for each that is misnamed, which is left out, or there twice.
        twice: gets the stems of those that are there twice, whose samples are to be left out.
    """
    listed: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if clutter(path.name) or path.suffix.lower() not in SUFFIXES:
            continue
        notes.seen.add(path)
        stem = unicodedata.normalize("NFC", path.stem)  # macOS writes an umlaut as two characters, others as one
        if not grammar.pattern.fullmatch(stem):
            notes.problems.append(f"{path} is not named {grammar.words}; rename or remove it")
        elif stem in listed:
            notes.problems.append(f"{listed[stem]} and {path.name} are the same sample's image twice; remove one")
            twice.add(stem)
        else:
            listed[stem] = path
    return listed


def pair(
    folder: Path, names: Mapping[str, str], grammar: Grammar, notes: Notes, *, subsets: bool = False
) -> Iterator[Found]:
    """Samples of a folder whose modalities lie in subfolders, paired by stem, sorted.

    Args:
        folder: holds the subfolders.
        names: the subfolder of each modality.
        grammar: of the names.
        notes: get every image, and a problem for each that is missing, misnamed or there twice; its sample is left
            out.
        subsets: samples may lack modalities.
    """
    twice = set[str]()
    files = {modality: images(folder / name, grammar, notes, twice) for modality, name in names.items()}
    for stem in sorted({stem for found in files.values() for stem in found} - twice):
        missing = [modality for modality in files if stem not in files[modality]]
        if missing and not subsets:
            notes.problems += [
                f"{folder / names[modality] / stem}.* is missing; "
                "restore it, or remove the images of the same name in the other modalities"
                for modality in missing
            ]
            continue
        match = grammar.pattern.fullmatch(stem)
        assert match is not None  # images() let nothing else through
        yield Found(match, {modality: found[stem] for modality, found in files.items() if stem in found})


def existing(folder: Path) -> Path:
    """The folder itself.

    Raises:
        UserError: it does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder.parent} holds no folder {folder.name} ({contents(folder.parent)}); restore it")
    return folder


def filled(found: Sequence[object], folder: Path, notes: Notes) -> None:
    """Refuse a split without images.

    Raises:
        UserError: ``found`` is empty, and no problem says why.
    """
    if not found and not notes.problems:
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


def _folders(folder: Path, pattern: str) -> list[Path]:
    return [path for path in subfolders(folder) if path.match(pattern)]


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
