"""One reader for all benchmarks, which differ in the names of folders and files alone."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dmpt.base.errors import UserError
from dmpt.data.layouts.folders import Grammar, Notes, contents, records_in, refuse_empty, some, subfolders
from dmpt.data.records import Record, Records, Splits


@dataclass(frozen=True)
class Benchmark:
    """How the files of a benchmark lie and are named. Called, it reads them.

    Attributes:
        names: that its folder goes by. The folder may have any other, but where several fit these are preferred.
        splits: folders of train, query and gallery. One that is both query and gallery makes every test sample both; a
            ``*`` in that of train stands for anything.
        places: the subfolder of each modality; ``.`` where one file holds them all, side by side in ``columns``.
        naming: of the files.
        by_identity: whether a folder for each identity, named with its number, lies around those of the modalities.
        columns: as in ``Record``.
    """

    names: tuple[str, ...]
    splits: tuple[str, str, str]
    places: Mapping[str, str]
    naming: Grammar
    by_identity: bool = False
    columns: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def __call__(self, root: Path, notes: Notes) -> Splits:
        """Read what is in the folder, or in one below it. Cameras and scenes are numbered as in the names.

        Modalities are paired by *name*: the field's loaders of WMVeID863 pair unsorted listings by position, which
        mixes samples up as soon as one file is missing.
        """
        notes.folder, train = self._find(root)
        parts = {train: self._read(notes.folder / train, notes)} if train else {}
        for test in dict.fromkeys(self.splits[1:]):
            parts[test] = self._read(notes.folder / test, notes)
        return Splits(parts.get(train, ()), *(parts[test] for test in self.splits[1:]))

    def _find(self, root: Path) -> tuple[Path, str]:
        """The benchmark's folder at or below ``root``, and in it that of train; empty where test images lie alone."""
        train, *tests = dict.fromkeys(self.splits)
        wanted, depth = [train, *tests], 2
        if "*" in train:  # looked for by itself, and less deep: much may be called like it
            depth = 1
            homes = self._homes(root, [train], depth)
            found = [path for home in homes for path in subfolders(home) if path.match(train)]
            none, many = f"{root} holds no folder {train}", f"more than one folder {train} ({some(found)})"
        else:
            homes = self._homes(root, wanted, depth)
            found = [home / train for home in homes]
            none = f"neither {root} nor a folder below holds {_and(wanted)}"
            many = f"more than one folder holds {_and(wanted)} ({some(homes)})"
        if len(found) == 1:
            return found[0].parent, found[0].name
        if found:
            raise UserError(f"{many}; keep one, or set data.root to a folder that holds one")
        # Enough to judge a model on; but another folder beside them may be train by a name that nobody reads.
        alone = [home for home in self._homes(root, tests, depth) if len(subfolders(home)) == len(tests)]
        if len(alone) == 1:
            return alone[0], ""
        raise UserError(f"{none} ({contents(root)}); set data.root to the folder that does, or correct data.layout")

    def _homes(self, root: Path, wanted: Sequence[str], depth: int) -> list[Path]:
        """The folders that hold all that is wanted, so many levels below at most; the highest that has one wins."""
        if not root.is_dir():
            what = f"{root} is a file" if root.exists() else f"there is no folder {root}"
            raise UserError(f"{what}; set data.root to the folder that holds {_and(wanted)}")
        level, found = [root], list[Path]()
        while level and not found and depth >= 0:
            held = {folder: subfolders(folder) for folder in level}
            found = [home for home in level if all(any(path.match(name) for path in held[home]) for name in wanted)]
            level, depth = [below for folder in level for below in held[folder]], depth - 1
        known = {name.lower() for name in self.names}
        named = [home for home in found if {part.lower() for part in home.relative_to(root).parts} & known]
        return named or found

    def _read(self, folder: Path, notes: Notes) -> Records:
        """One split."""
        records: list[Record] = []
        if self.by_identity:
            for identity in subfolders(folder):
                if re.fullmatch(r"\d{1,18}", identity.name, re.ASCII):
                    records += records_in(identity, self.places, self.naming, notes, identity=identity.name)
                else:
                    notes.seen.update(identity.rglob("*"))
                    notes.problems.append(
                        f"{identity} is not named with the number of an identity; rename or remove it"
                    )
        else:
            for place in self.places.values():
                _existing(_existing(folder) / place)
            records += records_in(folder, self.places, self.naming, notes, columns=self.columns)
        refuse_empty(records, folder, notes)
        return tuple(records)


def _existing(folder: Path) -> Path:
    """The folder itself, or an error."""
    if not folder.is_dir():
        raise UserError(f"{folder.parent} holds no folder {folder.name} ({contents(folder.parent)}); restore it")
    return folder


def _and(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
