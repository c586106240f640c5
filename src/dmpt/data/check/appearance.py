"""What the pictures themselves tell about a data set: copies, and modalities that are not what they should be."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from dmpt.data.check.findings import Finding
from dmpt.data.check.pictures import BLANK_LEVELS, CLIPPED_SHARE, FLAT_LEVELS, Picture
from dmpt.data.check.value_range import measure_range, shown
from dmpt.data.records import Record
from dmpt.settings.config import Range

_Seen = tuple[Record, Mapping[str, Picture]]
# What more than this share of a modality has in common is how the data are, not a mistake in single files.
_RULE = 0.5


def check_copies(placed: Sequence[tuple[str, Record, Mapping[str, Picture]]], protocol: str) -> Iterator[Finding]:
    """Equal pictures in train and test, under two labels, or as query and gallery where the protocol ignores none.

    Pictures are compared by the hash of their decoded pixels, each modality with itself; blank ones are all alike and
    say nothing. Equal neighbours with equal labels in one split are no mistake: a camera may see nothing move.

    Args:
        placed: every record of train, query and gallery, in this order, with its split and pictures.
        protocol: which gallery items a query ignores.
    """
    first: dict[tuple[str, str], int] = {}
    pairs: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for index, (_, _, pictures) in enumerate(placed):
        for modality, picture in pictures.items():
            if not picture.blank:
                earlier = first.setdefault((modality, picture.digest), index)
                if earlier != index:
                    pairs[earlier, index].append(modality)
    told = set()  # a test record that is both query and gallery is met twice
    for (earlier, index), modalities in pairs.items():
        (split, record, _), (other_split, other, _) = placed[earlier], placed[index]
        file, other_file = record.paths[modalities[0]], other.paths[modalities[0]]
        labels, others = (f"identity {r.pid}, camera {r.camera}, scene {r.scene}" for r in (record, other))
        where, same = f"{other_file} ({', '.join(modalities)})", f"has the same pixels as {file}"
        if split == "train" != other_split:
            kind, message = "duplicate", f"{where} of {other_split} {same} of train; remove one of them"
        elif labels != others:
            kind = "conflict"
            message = f"{where}, {others}, {same}, {labels}; see which is right and remove the other"
        elif protocol == "none" and split != other_split:
            kind = "leak"
            message = (
                f"{where} of the gallery {same} of the query, and protocol none ignores nothing; remove one of them, "
                "or choose protocol same_camera"
            )
        else:
            continue
        if (kind, file, other_file) not in told:
            told.add((kind, file, other_file))
            yield Finding(kind, message, (other_file, file))


def check_appearance(seen: Sequence[_Seen], value_range: Range, measured: Range | None) -> Iterator[Finding]:
    """Modalities that look exchanged, copied, misaligned, empty or clipped.

    Near-infrared and thermal cannot be told apart by colour: those two exchanged go unnoticed unless they are equal.

    Args:
        seen: every record once, with its pictures.
        value_range: of pictures of more than 8 bits.
        measured: the range that ``auto`` would take.
    """
    yield from _colour(seen)
    yield from _shapes(seen)
    yield from _deep(seen, value_range, measured)
    for record, pictures in seen:
        for one, other in combinations(pictures, 2):
            if pictures[one].digest == pictures[other].digest and not pictures[one].blank:
                what = f"its {other} has the same pixels as its {one}; restore the right image"
                yield _of("identical", record, one, other, what=what)
        for modality, picture in pictures.items():
            if picture.blank and not picture.deep:
                yield _blank(record, modality)


def _of(kind: str, record: Record, *modalities: str, what: str) -> Finding:
    """What is wrong with one picture of a record, the last named, maybe beside others."""
    paths = [record.paths[modality] for modality in modalities]
    return Finding(kind, f"{paths[-1]}: {what}", tuple(dict.fromkeys(paths)))


def _blank(record: Record, modality: str) -> Finding:
    return _of("blank", record, modality, what=f"its {modality} shows nothing but one value; restore or leave out")


def _colour(seen: Sequence[_Seen]) -> Iterator[Finding]:
    coloured: dict[str, list[Record]] = {"nir": [], "tir": []}
    for record, pictures in seen:
        rgb = pictures.get("rgb")
        infrared = [modality for modality in coloured if modality in pictures and pictures[modality].coloured]
        for modality in infrared:
            if rgb and rgb.grey:
                what = f"its {modality} is in colour and its rgb is grey; exchange the two"
                yield _of("exchanged", record, "rgb", modality, what=what)
            else:
                coloured[modality].append(record)
        if rgb and rgb.grey and rgb.bright and not infrared:
            what = "its rgb is bright and has no colour; see whether it is an infrared picture"
            yield _of("grey_rgb", record, "rgb", what=what)
    for modality, records in coloured.items():
        total = sum(modality in pictures for _, pictures in seen)
        if len(records) > _RULE * total:
            first = records[0].paths[modality]
            yield Finding(
                "pseudo_colour",
                f"{len(records)} of {total} {modality} pictures are in colour, the first is {first}; "
                "if this is no false colour of the camera, see what they are",
                (first,),
            )
            continue
        what = f"its {modality} is a colour picture; see whether it is the rgb image, and restore the right one"
        for record in records:
            yield _of("colour", record, modality, what=what)


def _shapes(seen: Sequence[_Seen]) -> Iterator[Finding]:
    shapes: list[tuple[Record, str]] = []
    resolutions: list[tuple[Record, str]] = []
    for record, pictures in seen:
        sizes = {(picture.width, picture.height) for picture in pictures.values()}
        if len(sizes) > 1:
            said = ", ".join(f"{modality} {picture.width} x {picture.height}" for modality, picture in pictures.items())
            same = all(_same_shape(one, other) for one, other in combinations(sizes, 2))
            (resolutions if same else shapes).append((record, said))
    total = sum(len(pictures) > 1 for _, pictures in seen)
    if len(shapes) > _RULE * total:
        resolutions = shapes + resolutions
    else:
        for record, said in shapes:
            yield Finding("sizes", f"{record.file}: {said}; crop the modalities alike", _files(record))
    if resolutions:
        record, said = resolutions[0]
        yield Finding(
            "resolution",
            f"{len(resolutions)} of {total} samples have modalities of different size, the first is {record.file}: "
            f"{said}; all are resized alike, see that they show the same",
            _files(record),
        )


def _files(record: Record) -> tuple[Path, ...]:
    """One file where modalities share it."""
    return tuple(dict.fromkeys(record.paths.values()))


def _same_shape(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other one scaled, and its sides rounded to whole pixels."""
    (width, height), (other_width, other_height) = one, other
    return 2 * abs(width * other_height - height * other_width) <= max(*one, *other)


def _deep(seen: Sequence[_Seen], value_range: Range, measured: Range | None) -> Iterator[Finding]:
    """What the value range costs; a picture that has no contrast next to the others of its modality loses none."""
    found = [(record, m, picture.deep) for record, pictures in seen for m, picture in pictures.items() if picture.deep]
    own = {modality: measure_range(deep for _, m, deep in found if m == modality) for _, modality, _ in found}
    together = measured or measure_range(deep for _, _, deep in found)
    for record, modality, deep in found:
        spans = f"its {modality} spans {deep.low:.6g} to {deep.high:.6g}"
        best = own[modality]
        if best is None or together is None or deep.contrast(best) <= BLANK_LEVELS:
            yield _blank(record, modality)
        elif deep.rich and deep.levels(value_range) < FLAT_LEVELS <= deep.levels(best):
            advice = f"set data.value_range to auto, which is {shown(together)} here"
            if deep.levels(together) < FLAT_LEVELS:
                advice = f"no one data.value_range serves all modalities: bring {modality} to 8 bits by {shown(best)}"
            what = f"{spans} and is left fewer than 8 of 256 levels; {advice}"
            yield _of("flat", record, modality, what=what)
        elif (lost := deep.outside(value_range)) > CLIPPED_SHARE:
            span = min(deep.low for _, _, deep in found), max(deep.high for _, _, deep in found)
            what = (
                f"{spans}, and about {lost:.0%} of its pixels are clipped; set data.value_range, all such images "
                f"together span {shown(span)}"
            )
            yield _of("clipped", record, modality, what=what)
