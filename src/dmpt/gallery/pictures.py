"""Where the pictures of a gallery's items lie, by their keys."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dmpt.data.layouts.folders import SUFFIXES, subfolders
from dmpt.data.layouts.table import NAMES
from dmpt.data.records import Record
from dmpt.gallery.sources import read_source
from dmpt.settings.modalities import called


class Pictures:
    """The files of items.

    Args:
        source: the folder that keys are relative to; None = not known.

    Raises:
        UserError: a manifest that lies there cannot be read.
    """

    def __init__(self, source: Path | None):
        self._root = source.resolve() if source is not None and source.is_dir() else None
        self._listed: dict[str, Record] = {}
        if self._root is not None and any((self._root / name).is_file() for name in NAMES):
            self._listed = {sample.key: sample.record for sample in read_source(self._root).samples}

    def of(self, key: str, has: Sequence[str]) -> Record | None:
        """Those of an item that are there, and lie in the source; None where none does.

        Args:
            key: of the item.
            has: modalities that its vectors have.
        """
        if (listed := self._listed.get(key)) is not None:
            there = {name: path for name, path in listed.paths.items() if self._inside(path) is not None}
            return replace(listed, paths=there) if there else None
        if self._root is None:
            return None
        try:
            found = {name: path for name in has if (path := self._file(key, name, has)) is not None}
        except (OSError, ValueError, RuntimeError):  # keys are any text: too long for a name, say
            return None
        return Record(found, 0, 0) if found else None

    def _file(self, key: str, modality: str, has: Sequence[str]) -> Path | None:
        """The key is the first modality's file; the others are called the same in folders beside its own."""
        assert self._root is not None
        path = PurePosixPath(key)
        own = [place for place, name in enumerate(path.parts[:-1]) if called(name)]
        if modality == has[0]:
            return self._inside(self._root / path)
        for place in own:
            home = self._root.joinpath(*path.parts[:place])
            for folder in subfolders(home) if home.is_dir() else ():
                if called(folder.name) == modality:
                    beside = folder.joinpath(*path.parts[place + 1 :])
                    for file in (beside, *(beside.with_suffix(suffix) for suffix in SUFFIXES)):
                        if (found := self._inside(file)) is not None:
                            return found
        return None

    def _inside(self, file: Path) -> Path | None:
        """A file, unless it leads out of the source: keys are written by others."""
        resolved = file.resolve()
        return resolved if self._root in resolved.parents and resolved.is_file() else None
