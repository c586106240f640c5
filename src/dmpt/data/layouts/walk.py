"""What lies in a data set's folder: what is taken, what is no data, and what nobody has understood."""

import os
from collections import defaultdict, deque
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from dmpt.data.layouts.folders import SUFFIXES, Notes, clutter
from dmpt.data.records import Files, PassedOver

#: What lies beside pictures and is none: not even opened. Files with other suffixes are judged by their first bytes.
_NO_IMAGES = frozenset(
    {
        *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".pdf", ".log", ".py"),
        *(".mat", ".npy", ".npz", ".pkl", ".parquet", ".h5", ".pt", ".pth", ".safetensors", ".zip", ".tar", ".gz"),
        *(".7z", ".rar", ".mp4", ".avi"),
    }
)
#: How images begin: JPEG, PNG, TIFF (and raw pictures of cameras), GIF, JPEG 2000, JPEG XL, OpenEXR, PGM and PPM.
_BEGINNINGS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    *(b"GIF87a", b"GIF89a"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"\0\0\0\x0cJXL ", b"v/1\x01"),
    *(b"P5\n", b"P5 ", b"P6\n", b"P6 "),
)
_HEIF = frozenset({b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis"})


def count(notes: Notes, taken: AbstractSet[Path], junk: AbstractSet[Path], advice: str) -> Files:
    """Count every file in a data set's folder once.

    Args:
        notes: of the reader.
        taken: the files that records use.
        junk: the files that the layout leaves out by a rule.
        advice: what to do about images that the reader has not looked at.
    """
    ignored, left_out = 0, 0
    unknown: list[Path] = []
    closed: list[PassedOver] = []
    for path in _walk(notes.folder, notes.entered, closed):
        if path in taken:
            continue
        if path in junk or clutter(path.name) or not _is_image(path):
            ignored += 1
        elif path in notes.seen:
            left_out += 1
        else:
            unknown.append(path)
    if unknown:  # but no second name (a link, another spelling) of a file that is taken
        files = {_identity(path) for path in taken}
        unknown = [path for path in unknown if _identity(path) not in files]
    passed_over = (*_by_folder(notes, unknown, advice), *closed)
    return Files(notes.folder, len(taken), left_out, ignored, passed_over)


def _walk(top: Path, entered: frozenset[str] | None, closed: list[PassedOver]) -> Iterator[Path]:
    """Every file below, and every folder of clutter, into which nobody goes.

    Links to folders are followed, after all else and into no folder twice, so that a loop ends.
    """
    waiting, links = deque([top]), deque[Path]()
    met = {_identity(above) for above in top.resolve().parents} - {None}
    while waiting or links:
        folder = (waiting or links).popleft()
        identity = _identity(folder)
        if identity in met:
            continue
        if identity is not None:
            met.add(identity)
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            what = f"cannot be listed ({error.strerror}), so nothing in it is counted; see its rights"
            closed.append(PassedOver(f"{folder} {what}", 0, (folder,)))
            continue
        for entry in entries:
            kind, path = _kind(entry), Path(entry.path)
            if kind == "file" or (kind == "folder" and clutter(entry.name)):
                yield path
            elif kind == "folder" and (entered is None or folder != top or entry.name in entered):
                (links if entry.is_symlink() else waiting).append(path)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError:  # a link that leads to itself
        return ""


def _identity(path: Path) -> tuple[int, int] | None:
    """What is the same for one file or folder by whatever name; None where it is lost or may not be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_image(path: Path) -> bool:
    """By its suffix or, where that says nothing, by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or suffix in _NO_IMAGES:
        return suffix in SUFFIXES
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return (
        start.startswith(_BEGINNINGS)
        or (start[:2] == b"BM" and start[6:10] == bytes(4))
        or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
        or (start[4:8] == b"ftyp" and start[8:12] in _HEIF)
    )


def _by_folder(notes: Notes, paths: list[Path], advice: str) -> Iterator[PassedOver]:
    """Told by the deepest folder that is read in part, and not file by file."""
    holding = {path.parent for path in notes.seen}
    read = {notes.folder, *holding, *(above for folder in holding for above in folder.parents)}
    groups: defaultdict[tuple[Path, bool], list[Path]] = defaultdict(list)
    for path in paths:
        folder = next(above for above in path.parents if above in read)
        by_suffix = path.parent in holding and path.suffix.lower() not in SUFFIXES
        groups[folder, by_suffix].append(path.relative_to(folder))
    for (folder, by_suffix), found in sorted(groups.items()):
        # One of each entry of the folder: where all are in one place, one shows it.
        firsts: dict[str, Path] = {}
        for path in sorted(found):
            firsts.setdefault(path.parts[0], path)
        examples = list(firsts.values())[:3]
        shown = ", ".join(map(str, examples)) + (", ..." if len(found) > len(examples) else "")
        what = "have no suffix that is read; save them as .png or .jpg, or take them away" if by_suffix else advice
        message = f"{folder}: {len(found)} images ({shown}) {what}"
        yield PassedOver(message, len(found), tuple(folder / path for path in examples))
