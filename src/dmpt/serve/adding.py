"""Rows that a client adds: who they are, and their vectors or pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmpt.serve.answers import Adding
from dmpt.serve.asked import JSON, LABEL, Side, media_type, object_of, read, text
from dmpt.serve.limits import ROWS
from dmpt.serve.refused import Refused
from dmpt.serve.vectors import ABOUT, Shape

_LABELS = ("pid", "camera", "time")


@dataclass(frozen=True)
class Rows:
    """N rows.

    Attributes:
        side: their vectors, or the pictures of a single one.
        keys: their names.
        labels: pid, camera and time, N of each.
    """

    side: Side
    keys: Sequence[str]
    labels: Mapping[str, Sequence[str | None]]


def rows_of(body: bytes, content_type: str, given: Adding, shape: Shape) -> Rows:
    """What is to be added.

    Args:
        body: of the request.
        content_type: that it declares.
        given: what the address says of a single row.
        shape: of the model's vectors.

    Raises:
        Refused: it cannot be read, or a row has no key.
    """
    if media_type(content_type) == JSON:
        if given.model_fields_set & {"key", *_LABELS}:
            raise Refused(422, "of JSON the samples say their own key, pid, camera and time")
        return _of_samples(object_of(body), shape)
    if given.key is None:
        raise Refused(422, "key is not given; it names the row")
    side = read(body, content_type, shape)[0]
    if side.keys or side.count != 1:
        raise Refused(422, "this adds one shot, by its pictures or its vector; several go as JSON")
    return Rows(side, [given.key], {name: [getattr(given, name)] for name in _LABELS})


def _of_samples(found: dict[str, Any], shape: Shape) -> Rows:
    samples = found.get("samples")
    if not isinstance(samples, list) or not samples or found.keys() - {"samples", *ABOUT}:
        raise Refused(422, "this takes samples, a list of vectors with their keys, and what /embed says beside them")
    if len(samples) > ROWS:
        raise Refused(413, f"{len(samples)} samples; at most {ROWS} are added at a time")
    shape.refuse(found.get("adapter"), found.get("precision"))
    vectors = shape.from_samples(samples, "samples")
    keys = [text(sample.get("key"), f"samples[{number}].key") for number, sample in enumerate(samples)]
    labels = {
        name: [
            None if sample.get(name) is None else text(sample[name], f"samples[{number}].{name}", LABEL)
            for number, sample in enumerate(samples)
        ]
        for name in _LABELS
    }
    return Rows(Side(vectors=vectors), keys, labels)
