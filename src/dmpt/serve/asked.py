"""Who is asked for: what the body of a request says, as pictures, as keys of the gallery, or as vectors."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dmpt.retrieval.embeddings import Embeddings
from dmpt.serve.limits import SHOTS
from dmpt.serve.refused import Refused
from dmpt.serve.vectors import ABOUT, Shape
from dmpt.settings.modalities import MODALITIES

MULTIPART, JSON, RAW = "multipart/form-data", "application/json", "application/octet-stream"
OTHER = "other_"
"""What the fields of the second of two begin with."""
KEY, LABEL = 4096, 1000
"""Characters of a key and of a label; as in ``gallery.rows``, which is not needed where there is no gallery."""
_NAME = re.compile(r';\s*name="?([^";]*)"?', re.IGNORECASE)
_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_CONTENT = re.compile(rb"^content-disposition:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_WAYS = "give pictures (rgb, nir, tir), or key, or samples"


@dataclass(frozen=True, eq=False)
class Side:
    """One person or vehicle; one of the three is there.

    Attributes:
        pictures: files by modality, as many of each as there are shots; None where a shot lacks it.
        keys: of rows of the gallery.
        vectors: of shots.
        name: what the fields of it begin with, for messages.
    """

    pictures: Mapping[str, Sequence[bytes | None]] = field(default_factory=dict)
    keys: Sequence[str] = ()
    vectors: Embeddings | None = None
    name: str = ""

    @property
    def count(self) -> int:
        """Shots."""
        if self.vectors is not None:
            return len(self.vectors)
        return len(self.keys) or max(map(len, self.pictures.values()), default=0)


def media_type(content_type: str) -> str:
    """What a body is declared to be, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def read(body: bytes, content_type: str, shape: Shape, two: bool = False) -> list[Side]:
    """One side, or both.

    Args:
        body: of the request.
        content_type: that it declares.
        shape: of the model's vectors.
        two: whether there is another side, whose fields begin with ``OTHER``.

    Raises:
        Refused: it is of another type, cannot be read, or does not say who.
    """
    kind = media_type(content_type)
    prefixes = ("", OTHER) if two else ("",)
    if kind == MULTIPART:
        sides = _of_parts(parts(body, content_type, 4 * SHOTS * len(prefixes)), prefixes)
    elif kind == JSON:
        sides = _of_object(object_of(body), shape, prefixes)
    elif kind == RAW:
        found = shape.from_bytes(body)
        if len(found) % len(prefixes):
            raise Refused(422, f"{len(found)} rows are no two sides; give as many of the one as of the other")
        each = len(found) // len(prefixes)
        sides = [Side(vectors=found[n * each : (n + 1) * each], name=name) for n, name in enumerate(prefixes)]
    else:
        raise Refused(415, f"Content-Type is {kind[:80] or 'not given'}; give {MULTIPART}, {JSON} or {RAW}")
    return [_checked(side) for side in sides]


def parts(body: bytes, content_type: str, most: int) -> list[tuple[str, bytes]]:
    """Name and content of each part of a multipart body, in their order.

    Raises:
        Refused: it is no multipart body, or has more parts than ``most``.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise Refused(400, "the Content-Type has no boundary; let your HTTP client write it")
    boundary = b"\r\n--" + (found[1] or found[2]).encode("latin-1")
    # The body is in memory: splitting it takes one pass, whatever is in it.
    first, *pieces = (b"\r\n" + body).split(boundary, most + 2)
    if first.strip() or not pieces or (len(pieces) <= most + 1 and not pieces[-1].startswith(b"--")):
        raise Refused(400, "the body is no multipart body, or is cut short; send it whole")
    if len(pieces) > most + 1:
        raise Refused(413, f"the body has more than {most} parts; send less at a time")
    named = []
    for piece in pieces[:-1]:
        head, separator, content = piece.partition(b"\r\n\r\n")
        disposition = _CONTENT.search(head)
        name = _NAME.search(disposition[1].decode("utf-8", "replace")) if disposition else None
        if not separator or name is None:
            raise Refused(400, "a part of the body has no name; send it as multipart/form-data")
        named.append((name[1], content))
    return named


def object_of(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: it is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON; see /openapi.json") from None
    if not isinstance(found, dict):
        raise Refused(422, "the body is JSON, but no object; see /openapi.json")
    return found


def text(given: Any, name: str, longest: int = KEY) -> str:
    """Text that a gallery can hold.

    Raises:
        Refused: it is none, empty or too long.
    """
    if not isinstance(given, str) or not given or len(given) > longest:
        raise Refused(422, f"{name} must be text of 1 to {longest} characters")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise Refused(422, f"{name} is not Unicode") from None
    return given


def _of_parts(found: Sequence[tuple[str, bytes]], prefixes: Sequence[str]) -> list[Side]:
    names = [prefix + name for prefix in prefixes for name in (*MODALITIES, "key")]
    by_name: dict[str, list[bytes]] = {}
    for name, content in found:
        if name not in names:
            raise Refused(422, f"there is no field {name[:80]!r}; there are {', '.join(names)}")
        by_name.setdefault(name, []).append(content)
    sides = []
    for prefix in prefixes:
        given = {name: by_name.get(prefix + name, []) for name in MODALITIES}
        pictures = {name: [each or None for each in own] for name, own in given.items() if any(own)}
        keys = [each.decode("utf-8", "replace") for each in by_name.get(f"{prefix}key", [])]
        sides.append(Side(pictures, [text(key, f"{prefix}key") for key in keys], name=prefix))
    return sides


def _of_object(found: dict[str, Any], shape: Shape, prefixes: Sequence[str]) -> list[Side]:
    names = [prefix + name for prefix in prefixes for name in ("key", "keys", "samples", *ABOUT)]
    for name in found:
        if name not in names:
            raise Refused(422, f"there is no {name[:80]!r}; there are {', '.join(names)}")
    sides = []
    for prefix in prefixes:
        keys, samples = found.get(f"{prefix}keys", []), found.get(f"{prefix}samples", [])
        for name, own in (("keys", keys), ("samples", samples)):
            if not isinstance(own, list):
                raise Refused(422, f"{prefix}{name} is no list")
        shape.refuse(found.get(f"{prefix}adapter"), found.get(f"{prefix}precision"), prefix)
        one = [found[f"{prefix}key"]] if f"{prefix}key" in found else []
        said = [text(key, f"{prefix}key") for key in [*one, *keys]]
        sides.append(Side({}, said, shape.from_samples(samples, f"{prefix}samples") if samples else None, prefix))
    return sides


def _checked(side: Side) -> Side:
    """Said in one way, and not too much of it."""
    whose = f" of the other ({side.name}...)" if side.name else ""
    if sum((bool(side.pictures), bool(side.keys), side.vectors is not None)) != 1:
        raise Refused(422, f"the body says nothing{whose}, or says it in two ways; {_WAYS}")
    if side.count > SHOTS:
        raise Refused(413, f"{side.count} shots{whose}; at most {SHOTS} are compared")
    counts = {name: len(own) for name, own in side.pictures.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{side.name}{name} {count}" for name, count in counts.items())
        raise Refused(422, f"pictures given: {said}; give as many of each, an empty part where a shot lacks one")
    for row in range(side.count if side.pictures else 0):
        if not any(own[row] for own in side.pictures.values()):
            raise Refused(422, f"shot {row}{whose} has no picture; give it one at least")
    return side


def used(side: Side, use: Sequence[str]) -> Side:
    """Without the pictures of modalities that do not count.

    Raises:
        Refused: nothing is left of a shot.
    """
    if not use or not side.pictures:
        return side
    kept = {name: own for name, own in side.pictures.items() if name in use}
    for row in range(side.count):
        if not any(own[row] for own in kept.values()):
            raise Refused(422, f"shot {row} has no picture of {', '.join(use)}; use another modality")
    return replace(side, pictures=kept)
