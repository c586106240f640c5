"""What a data set is once its files have been listed: records, and the splits they form."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dmpt.retrieval.protocols import Labels


@dataclass(frozen=True)
class Record:
    """One aligned sample of images, or as much of it as there is.

    Attributes:
        paths: the image file of each modality, keyed by the names in ``MODALITIES``; an absent modality has no key.
        pid: identity, as the data set numbers it.
        camera: camera, as the data set numbers it.
        scene: scene, for the data sets whose protocol needs it.
        columns: where one file holds several modalities side by side: the pixel columns of each, from the left one up
            to but without the right one. Empty where every modality has a file of its own.
    """

    paths: Mapping[str, Path]
    pid: int
    camera: int
    scene: int | None = None
    columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """The first modality's image."""
        return next(iter(self.paths.values()))

    @property
    def name(self) -> str:
        """Its file name."""
        return self.file.name


Records = tuple[Record, ...]


class Splits(NamedTuple):
    """What a reader gives; query and gallery are the same object where every test record is both.

    Records of own data that nobody has split are in ``unsplit``.
    """

    train: Records = ()
    query: Records = ()
    gallery: Records = ()
    unsplit: Records = ()


class PassedOver(NamedTuple):
    """Images that no record uses and no problem names."""

    message: str  # one line: the folder, how many, some of them, and what to do
    images: int  # how many; 0 where it is a folder that cannot be listed
    examples: tuple[Path, ...]


@dataclass(frozen=True)
class Files:
    """What lies in a data set's folder. Every file counts once, a hidden folder as one file."""

    folder: Path = Path()  # what was counted; of a manifest, the folders in it that its rows lead to
    taken: int = 0  # files that records use, wherever they lie
    left_out: int = 0  # images that cannot be used, each with a problem that says why
    ignored: int = 0  # what is no data by a rule: hidden, no image, or junk of the layout (identity -1)
    passed_over: tuple[PassedOver, ...] = ()  # what was not understood, by folder

    @property
    def not_understood(self) -> int:
        """Number of images that were passed over."""
        return sum(part.images for part in self.passed_over)

    @property
    def counts(self) -> dict[str, int]:
        """All four numbers, by name."""
        return {name: getattr(self, name) for name in ("taken", "left_out", "ignored", "not_understood")}


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set and how it is meant to be judged. Equal records make equal data sets."""

    name: str  # of its layout
    object: Literal["person", "vehicle"]  # what is re-identified; a word of the prompts
    protocol: str  # which gallery items a query ignores; a name of dmpt.retrieval.protocols
    train: Records  # to learn from
    query: Records  # to search with
    gallery: Records  # to search in
    files: Files = field(default=Files(), compare=False)  # in its folder; empty where nobody has counted

    @property
    def splits(self) -> dict[str, Records]:
        """The three, by name."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}


def pid_to_label(records: Iterable[Record]) -> dict[int, int]:
    """Number the identities 0, 1, ... in ascending order of pid, so that no file system decides the classes."""
    return {pid: label for label, pid in enumerate(sorted({record.pid for record in records}))}


def fingerprint(records: Iterable[Record]) -> str:
    """What tells data apart: ``2:SIZED:NAMED``, two SHA-256; the same wherever the data set's folder is.

    ``NAMED`` is over file names, columns, pids, cameras and scenes, in order; a path counts by its last two parts, for
    example ``RGB/000287_cam1_0_05.jpg``. ``SIZED`` is over the sizes of the files too, in bytes. Pixels are not read.
    What was stored before there were sizes is ``NAMED`` alone, and is compared with that (``same_data``).
    """
    named, sized = hashlib.sha256(), hashlib.sha256()
    sizes: dict[Path, int] = {}  # a file may hold several modalities, and a sample be query and gallery
    for record in records:
        files, lengths = [], []
        for modality, path in sorted(record.paths.items()):
            columns = "[{}:{}]".format(*record.columns[modality]) if modality in record.columns else ""
            files.append(f"{modality}={path.parent.name}/{path.name}{columns}")
            if path not in sizes:
                sizes[path] = _size(path)
            lengths.append(sizes[path])
        said = repr((files, record.pid, record.camera, record.scene))
        named.update(said.encode())
        sized.update(f"{said}{lengths}".encode())
    return f"2:{sized.hexdigest()}:{named.hexdigest()}"


def same_data(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same data, as far as both know: one of names alone knows no sizes."""
    return one == other if one.startswith("2:") and other.startswith("2:") else names_in(one) == names_in(other)


def names_in(fingerprint: str) -> str:
    """The part that knows no sizes: all of it, where it is an old one."""
    return fingerprint.rpartition(":")[2]


def short(fingerprint: str) -> str:
    """Eight digits of it, for people."""
    return fingerprint.removeprefix("2:")[:8]


def _size(path: Path) -> int:
    """In bytes; -1 for a file that has gone, as decoding will say."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def as_one(query: Sequence[Record], gallery: Sequence[Record]) -> Sequence[Record]:
    """All that is searched with and in, once where the two are one list."""
    return gallery if query is gallery else (*query, *gallery)


def labels_of(records: Sequence[Record]) -> Labels:
    """What the protocols look at."""
    scenes = None if any(r.scene is None for r in records) else np.array([r.scene for r in records])
    return Labels(np.array([r.pid for r in records]), np.array([r.camera for r in records]), scenes)
