"""A file, or a folder of shots of one person or vehicle, as what ``Embedder.embed`` takes."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.data.layouts.folders import SUFFIXES, clutter, contents, subfolders
from dmpt.settings.modalities import MODALITIES, called

_Pictures = dict[str, list[Path | None]]


class Shots(TypedDict, total=False):
    """Pictures by modality, a place of each list for a shot; None where the shot lacks that modality."""

    rgb: list[Path | None]
    nir: list[Path | None]
    tir: list[Path | None]


def find_shots(place: str | Path, modality: str | None = None) -> Shots:
    """The shots that a file or a folder holds; no picture is opened.

    A file is one shot, of the modality that its folder is called by. A folder holds a folder for each modality, with
    pictures of one shot under one name; or pictures that are called by their modalities (``rgb.jpg``, ``nir.png``),
    which are one shot; or pictures of one modality, a shot each. Modalities go by their names and by what others call
    them (``settings.modalities``), in any case of letters.

    Args:
        place: the file or the folder.
        modality: of the file, or of the pictures that lie in the folder; of its folders, the only one that counts.
            None = as above.

    Raises:
        UserError: it is not there, empty, or does not say which modality its pictures are of.
    """
    return cast(Shots, _find(expanded(place), modality))


def _find(place: Path, modality: str | None) -> _Pictures:
    """``find_shots`` by the names of modalities."""
    if not place.exists():
        raise UserError(f"{place} does not exist; give a picture, or a folder of shots of one")
    if not place.is_dir():
        return {modality or _by_name(place, place.absolute().parent.name): [place]}
    pictures = _pictures(place)
    if modality and not pictures and (own := _folders(place).get(modality)):
        return _find(own, modality)
    folders = {} if modality else _folders(place)
    if folders and pictures:
        raise UserError(
            f"{place} holds pictures beside folders of modalities; move {pictures[0].name} into one of them"
        )
    if not folders and not pictures:
        raise UserError(
            f"{place} holds no pictures, nor folders {', '.join(MODALITIES)} that do ({contents(place)}); give a "
            "folder of shots of one person or vehicle"
        )
    if folders:
        return _side_by_side({name: _by_shot(folder, _pictures(folder)) for name, folder in folders.items()})
    named = {path: called(path.stem) for path in pictures}
    if modality or None in named.values():
        return {modality or _by_name(place, place.absolute().name): [*_by_shot(place, pictures).values()]}
    return _side_by_side({name: {"": path} for name, path in _once(place, pictures, [*named.values()]).items()})


def _by_name(place: Path, name: str) -> str:
    """The modality that a folder's name says."""
    found = called(name)
    if found is None:
        raise UserError(
            f"{place}: nothing says which modality it is of; give --modality {', '.join(MODALITIES[:-1])} or "
            f"{MODALITIES[-1]}, or put it into a folder of that name"
        )
    return found


def _folders(place: Path) -> dict[str, Path]:
    """Those of the modalities; what else lies there would silently be missing."""
    inside = subfolders(place)
    modalities = [called(path.name) for path in inside]
    if not any(modalities):
        return {}
    for path, modality in zip(inside, modalities, strict=True):
        if modality is None:
            raise UserError(
                f"{place} holds a folder {path.name}, which is none of {', '.join(MODALITIES)}; rename it, or move it "
                "elsewhere"
            )
    found = _once(place, inside, modalities)
    for path in found.values():
        if not _pictures(path):
            raise UserError(f"{path} holds no pictures ({contents(path)}); fill it, or take it away")
    return found


def _once(place: Path, paths: Sequence[Path], modalities: Sequence[str | None]) -> dict[str, Path]:
    """Files or folders by their modality, in its order; none may be there twice."""
    found: dict[str, Path] = {}
    for path, modality in zip(paths, modalities, strict=True):
        assert modality is not None
        if modality in found:
            raise UserError(f"{place} holds {found[modality].name} and {path.name}, both {modality}; leave one of them")
        found[modality] = path
    return {name: found[name] for name in MODALITIES if name in found}


def _pictures(folder: Path) -> list[Path]:
    """By name."""
    here = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not clutter(path.name))
    return sorted(path for path in here if not path.is_dir())


def _by_shot(folder: Path, pictures: Sequence[Path]) -> dict[str, Path | None]:
    """By the name of the shot, which is the file's without suffix."""
    shots: dict[str, Path | None] = {}
    for path in pictures:
        name = unicodedata.normalize("NFC", path.stem)  # macOS writes an umlaut as two characters, others as one
        if name in shots:
            raise UserError(f"{folder} holds {name} twice ({path.name} is one of them); leave one of them")
        shots[name] = path
    return shots


def _side_by_side(by_modality: dict[str, dict[str, Path | None]]) -> _Pictures:
    """The same shot at the same place of each list."""
    names = sorted({name for shots in by_modality.values() for name in shots})
    return {modality: [shots.get(name) for name in names] for modality, shots in by_modality.items()}
