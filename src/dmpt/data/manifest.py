"""What a data set is once its files have been listed: records, and the splits they form."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: Order of the modalities wherever they are stacked.
MODALITIES = ("rgb", "nir", "tir")


@dataclass(frozen=True)
class Record:
    """One aligned triplet of images.

    Attributes:
        paths: the image file of each modality, keyed by the names in ``MODALITIES``.
        pid: identity, as the data set numbers it.
        camera: camera, as the data set numbers it.
        scene: scene, for the data sets whose protocol needs it.
    """

    paths: Mapping[str, Path]
    pid: int
    camera: int
    scene: int | None = None

    @property
    def name(self) -> str:
        """File name of the first modality's image."""
        return next(iter(self.paths.values())).name


@dataclass(frozen=True)
class Dataset:
    """The splits of a data set and how it is meant to be judged.

    Attributes:
        name: its layout.
        object: what is re-identified; a word of the prompts.
        protocol: which gallery items a query ignores; a name of ``dmpt.retrieval.protocols``.
        train: records to learn from.
        query: records to search with.
        gallery: records to search in.
    """

    name: str
    object: Literal["person", "vehicle"]
    protocol: str
    train: tuple[Record, ...]
    query: tuple[Record, ...]
    gallery: tuple[Record, ...]


def pid_to_label(records: Iterable[Record]) -> dict[int, int]:
    """Number the identities 0, 1, ... in ascending order of pid, so that no file system decides the classes."""
    return {pid: label for label, pid in enumerate(sorted({record.pid for record in records}))}


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256 over file names, pids, cameras and scenes, in order; the same wherever the data set's folder lies.

    A path counts by its last two parts, for example ``RGB/000287_cam1_0_05.jpg``. Pixels are not read.
    """
    digest = hashlib.sha256()
    for record in records:
        files = [f"{modality}={path.parent.name}/{path.name}" for modality, path in sorted(record.paths.items())]
        digest.update(repr((files, record.pid, record.camera, record.scene)).encode())
    return digest.hexdigest()
