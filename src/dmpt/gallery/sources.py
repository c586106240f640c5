"""What a SOURCE holds: samples, each with its key, its files, and what is known of it."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa

from dmpt.base.errors import UserError, one_line
from dmpt.base.files import expanded
from dmpt.data.images import contents_of
from dmpt.data.layouts import list_dataset
from dmpt.data.layouts.folders import Notes, contents, paired, subfolders
from dmpt.data.layouts.table import NAMES, table_of
from dmpt.data.layouts.walk import count
from dmpt.data.records import PassedOver, Record
from dmpt.gallery.manifests import read_own
from dmpt.settings.modalities import MODALITIES, called

Split = Literal["train", "query", "gallery", "test"]


class Failure(NamedTuple):
    """What could not be embedded, and why."""

    key: str | None  # of the sample; None where a file or a row makes none
    reason: str  # one line


def digest(pictures: Mapping[str, bytes], columns: Mapping[str, tuple[int, int]] | None = None) -> str:
    """The sha256 of what a sample's pictures are made of, for the column ``content``.

    Args:
        pictures: what is in the file of each modality, in the order of ``MODALITIES``.
        columns: as of ``Sample``.
    """
    found = hashlib.sha256()
    for modality, data in pictures.items():
        found.update(f"{modality} {(columns or {}).get(modality, '')} {len(data)}\n".encode())
        found.update(data)
    return found.hexdigest()


@dataclass(frozen=True)
class Sample:
    """The aligned images of one moment."""

    key: str  # the first of its files, relative to the source: it names the sample wherever the source lies
    paths: Mapping[str, Path]  # by modality, in the order of ``MODALITIES``
    pid: str | None = None  # who it shows, where that is known
    camera: str | None = None
    columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # as in ``Record``

    def seen_by(self, modalities: Collection[str]) -> "Sample":
        """What a model of these modalities reads of it."""
        return replace(self, paths={name: path for name, path in self.paths.items() if name in modalities})

    def contents(self, root: Path) -> dict[Path, bytes]:
        """What is in its files.

        Args:
            root: the source's folder, resolved.

        Raises:
            UserError: a file cannot be read, or is a link that leads out of the folder.
        """
        for path in self.paths.values():
            if not path.resolve().is_relative_to(root):
                raise UserError(f"{path} leads out of {root}; copy the file there")
        return {path: contents_of(path) for path in dict.fromkeys(self.paths.values())}

    def digest(self, read: Mapping[Path, bytes]) -> str:
        """What ``digest`` says of its files."""
        return digest({name: read[path] for name, path in self.paths.items()}, self.columns)

    @property
    def record(self) -> Record:
        """As decoding takes it."""
        return Record(self.paths, 0, 0, columns=self.columns)


@dataclass(frozen=True, eq=False)
class Source:
    """What was found.

    Attributes:
        given: the folder that keys are relative to, as the user named it.
        samples: in the order of their keys.
        own: columns of the user's own, a value for each sample.
        failures: of what is no sample: a misnamed file, a row whose file is missing.
        passed_over: a line for each place with images that nobody reads.
    """

    given: str
    samples: tuple[Sample, ...]
    own: Mapping[str, pa.Array]
    failures: tuple[Failure, ...] = ()
    passed_over: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The folder, resolved; no file is read that lies elsewhere."""
        return expanded(self.given).resolve()

    @property
    def place(self) -> str:
        """The folder as a gallery keeps it: to be found from anywhere, unless its name is no text."""
        return str(self.root) if _text(str(self.root)) == str(self.root) else self.given


def read_source(
    given: str | Path, *, layout: str | None = None, split: Split | None = None, modality: str | None = None
) -> Source:
    """List the samples of a source; no image is opened.

    - A folder that holds one for each modality (``rgb``, ``nir``, ``tir``, or as others call them), whose images are
      paired by their names. A folder in these or around them is an identity's, and its name the label.
    - With ``modality``: a folder of images, or with a folder for each identity.
    - A manifest, or the folder of one, as ``data.layouts.table.read_manifest`` reads it; but pid and camera are any
      text or not there, and columns of one's own travel along (``gallery.manifests``).
    - With ``layout``: a data set, or one split of it.

    Args:
        given: the folder or the manifest.
        layout: a key of ``data.layouts.DATASETS``.
        split: of a layout, or of a manifest that has a column ``split``; None = all.
        modality: that all images have.

    Raises:
        UserError: there is nothing of this kind, or nothing in it.
    """
    root = expanded(given)
    if not root.exists():
        raise UserError(f"there is no {root}; give a folder of images, or a manifest")
    is_table = layout == "manifest" or root.is_file() or any((root / name).is_file() for name in NAMES)
    if modality and (is_table or layout):
        raise UserError(f"--modality is for folders of images alone; what {root} holds says which images are which")
    if layout not in (None, "manifest"):
        found = _of_data_set(str(layout), root, given, split)
    elif is_table:
        found = _of_table(root, given, split)
    elif split:
        raise UserError(f"{root} has no splits; name its layout with --data.layout, or leave --split out")
    else:
        found = _of_folders(root, given, modality)
    if not found.samples and not found.failures:
        raise UserError(f"{root} holds no samples{f' of split {split}' if split else ''}; see docs/embed.md")
    return found


def _of_data_set(layout: str, root: Path, given: str | Path, split: Split | None) -> Source:
    dataset, problems = list_dataset(layout, root)
    if split is None:
        records = (*dataset.train, *dataset.query, *dataset.gallery)
    else:
        records = (*dataset.query, *dataset.gallery) if split == "test" else dataset.splits[split]
    records = tuple({record.file: record for record in records}.values())
    samples = [
        Sample(_key(record.file, root), _in_order(record.paths), str(record.pid), str(record.camera), record.columns)
        for record in records
    ]
    scenes = [record.scene for record in records]
    own = {} if all(scene is None for scene in scenes) else {"scene": pa.array(scenes, pa.int64())}
    return _source(given, samples, own, problems, dataset.files.passed_over)


def _of_table(root: Path, given: str | Path, split: Split | None) -> Source:
    path = table_of(root)
    notes = Notes(path.parent)
    listed = read_own(path, notes, split)
    samples, kept, seen = list[Sample](), list[int](), dict[str, int]()
    for at, (row, labels) in enumerate(zip(listed.rows, listed.labels, strict=True)):
        where = f"{path}, row {row.number}"
        outside = [file for file in row.paths.values() if not file.is_relative_to(notes.folder)]
        if outside:
            notes.problems.append(f"{where}: {outside[0]} lies outside of {notes.folder}; move the file there")
            continue
        key = _key(next(iter(row.paths.values())), notes.folder)
        if seen.setdefault(key, row.number) != row.number:
            notes.problems.append(f"{where}: {key} is in row {seen[key]} already; remove one row, or choose a --split")
            continue
        samples.append(Sample(key, row.paths, *labels))
        kept.append(at)
    own = {name: column.take(pa.array(kept, pa.int64())) for name, column in listed.own.items()}
    return _source(Path(given).parent if root.is_file() else given, samples, own, notes.problems)


def _of_folders(root: Path, given: str | Path, modality: str | None) -> Source:
    notes, samples = Notes(root), list[Sample]()
    places = list(_places(root, modality))
    if not places:
        raise UserError(
            f"{root} holds neither a manifest nor folders {', '.join(MODALITIES)} ({contents(root)}); images of one "
            "modality need --modality, a data set --data.layout"
        )
    for pid, home, folders in places:
        for _, paths in paired(home, folders, notes):
            files = _in_order(paths)
            samples.append(Sample(_key(next(iter(files.values())), root), files, _text(pid)))
    taken = {path for sample in samples for path in sample.paths.values()}
    found = count(notes, taken, set(), "lie elsewhere than docs/embed.md says; move them")
    return _source(given, samples, {}, notes.problems, found.passed_over)


def _places(root: Path, modality: str | None) -> Iterator[tuple[str | None, Path, dict[str, str]]]:
    """Where images lie: whose they are, a folder, and in it the folder of each modality."""
    if modality:
        yield None, root, {modality: "."}
        yield from ((folder.name, folder, {modality: "."}) for folder in subfolders(root))
        return
    own = _modalities(root)
    if own:
        yield None, root, own
    for pid in sorted({folder.name for place in own.values() for folder in subfolders(root / place)}):
        yield pid, root, {name: f"{place}/{pid}" for name, place in own.items()}
    for folder in subfolders(root):
        if folder.name not in own.values() and (inside := _modalities(folder)):
            yield folder.name, folder, inside


def _modalities(folder: Path) -> dict[str, str]:
    """The folders of modalities in a folder, as they are spelled."""
    found: dict[str, str] = {}
    for name in (path.name for path in subfolders(folder)):
        modality = called(name)
        if modality in found:
            raise UserError(f"{folder} holds {found[modality]} and {name}, both {modality}; leave one of them")
        if modality:
            found[modality] = name
    return found


def _source(
    given: str | Path,
    samples: Sequence[Sample],
    own: Mapping[str, pa.Array],
    problems: Sequence[str],
    passed_over: Sequence[PassedOver] = (),
) -> Source:
    """In the order of the keys."""
    order = sorted(range(len(samples)), key=lambda row: samples[row].key)
    rows = pa.array(order, pa.int64())
    return Source(
        str(given),
        tuple(samples[row] for row in order),
        {name: column.take(rows) for name, column in own.items()},
        tuple(Failure(None, one_line(line)) for line in problems),
        tuple(part.message for part in passed_over),
    )


def _key(file: Path, root: Path) -> str:
    """A file as it is called in a source."""
    return _text(file.relative_to(root).as_posix()) or ""


def _text(name: str | None) -> str | None:
    """A name of a file, whose bytes need be no text, as text."""
    return None if name is None else name.encode("utf-8", "backslashreplace").decode()


def _in_order(paths: Mapping[str, Path]) -> dict[str, Path]:
    """As ``MODALITIES`` are."""
    return {name: paths[name] for name in MODALITIES if name in paths}
