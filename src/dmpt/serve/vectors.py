"""Vectors as clients have them: JSON, or rows of float32.

A row holds the features of the modalities side by side, zeros where one is absent, and the shared part after them where
the model has one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dmpt.retrieval.embeddings import Embeddings, Features
from dmpt.serve.refused import Refused
from dmpt.settings.modalities import MODALITIES, names_of

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder

ABOUT = ("model", "adapter", "precision", "width", "shared")
"""What ``/embed`` answers beside samples, and so may stand beside them: the second and the third are the model's."""
_OFF = 1e-3
"""How far the square of a length may be from 1."""


@dataclass(frozen=True, eq=False)
class Shape:
    """Of a model's vectors.

    Attributes:
        width: of a modality's feature.
        shared: of the shared part; 0 = there is none.
        standardisation: as of ``Embeddings``.
        modalities: that the model reads.
        adapter: of the model.
        precision: of the model.
    """

    width: int
    shared: int
    standardisation: Features | None
    modalities: Sequence[str]
    adapter: str
    precision: str

    @classmethod
    def of(cls, model: "Embedder") -> "Shape":
        """Of a model."""
        seen = model.blank
        shared = 0 if seen.shared is None else seen.shared.shape[1]
        own = model.modalities, model.adapter, model.precision
        return cls(seen.features.shape[2], shared, seen.standardisation, *own)

    @property
    def flat(self) -> int:
        """Numbers of all modalities' features."""
        return len(MODALITIES) * self.width

    def refuse(self, adapter: Any, precision: Any, name: str = "") -> None:
        """Let vectors of this model pass.

        Args:
            adapter: that they are said to be of; None = nothing is said.
            precision: likewise.
            name: what the fields begin with, for messages.

        Raises:
            Refused: they are of another model; scores between the two mean nothing.
        """
        for what, given, own in (("adapter", adapter, self.adapter), ("precision", precision, self.precision)):
            if given is not None and given != own:
                said = f"{name}{what} is {str(given)[:12] or 'empty'}, and the model's is {own[:12]}"
                raise Refused(422, f"{said}; name theirs with ?model=, or embed the pictures with this one")

    def from_rows(self, rows: Features, name: str) -> Embeddings:
        """Items of rows ``(N, flat + shared)``.

        Args:
            rows: of which each is one.
            name: what messages call them.

        Raises:
            Refused: a row is no vector of such a model.
        """
        parts = [rows[:, : self.flat], *([rows[:, self.flat :]] if self.shared else [])]
        for part in parts:
            squares = np.einsum("nd,nd->n", part, part, dtype=np.float64)
            if not (np.abs(squares - 1) < _OFF).all():  # NaN too
                row = int(np.argmin(np.abs(squares - 1) < _OFF))
                raise Refused(422, f"{name}[{row}] is not of length 1; give vectors as POST /embed answers them")
        features = np.ascontiguousarray(parts[0]).reshape(len(rows), len(MODALITIES), self.width)
        shared = np.ascontiguousarray(parts[1]) if self.shared else None
        present = np.any(features != 0, axis=2)
        for own, there in zip(MODALITIES, present.T, strict=True):
            if own not in self.modalities and there.any():
                where, reads = f"{name}[{int(np.argmax(there))}]", ", ".join(self.modalities)
                raise Refused(422, f"{where} has numbers of {own}, but the model reads {reads}; leave zeros there")
        return Embeddings(features, present, shared, self.standardisation)

    def from_bytes(self, body: bytes) -> Embeddings:
        """Items of float32, little-endian, row by row.

        Raises:
            Refused: these are no such rows.
        """
        width = 4 * (self.flat + self.shared)
        if not body or len(body) % width:
            raise Refused(
                422, f"{len(body)} bytes are no rows of {width // 4} float32 ({width} bytes each), which the model has"
            )
        with np.errstate(all="ignore"):
            return self.from_rows(np.frombuffer(body, "<f4").astype(np.float32).reshape(-1, width // 4), "row")

    def from_samples(self, samples: Sequence[Any], name: str) -> Embeddings:
        """Items as JSON has them.

        Args:
            samples: each ``{"vector": [...], "shared": [...]}``.
            name: what messages call them.

        Raises:
            Refused: one is no vector of such a model.
        """
        rows = np.empty((len(samples), self.flat + self.shared), np.float32)
        for number, sample in enumerate(samples):
            where = f"{name}[{number}]"
            if not isinstance(sample, Mapping):
                raise Refused(422, f"{where} is no object; give samples as POST /embed answers them")
            rows[number, : self.flat] = _numbers(sample.get("vector"), self.flat, f"{where}.vector")
            if self.shared:
                rows[number, self.flat :] = _numbers(sample.get("shared"), self.shared, f"{where}.shared")
        found = self.from_rows(rows, name)
        for number, (sample, own) in enumerate(zip(samples, _names(found), strict=True)):
            if sample.get("modalities", own) != own:
                raise Refused(422, f"{name}[{number}].modalities is not what its vector has, which is {', '.join(own)}")
        return found


def to_bytes(found: Embeddings) -> bytes:
    """Rows of float32, little-endian."""
    rows = found.flat if found.shared is None else np.concatenate([found.flat, found.shared], axis=1)
    return rows.astype("<f4").tobytes()


def to_samples(found: Embeddings) -> list[dict[str, Any]]:
    """As JSON has them."""
    shared = [None] * len(found) if found.shared is None else found.shared.tolist()
    return [
        {"modalities": own, "vector": vector, "shared": part}
        for own, vector, part in zip(_names(found), found.flat.tolist(), shared, strict=True)
    ]


def _names(found: Embeddings) -> list[list[str]]:
    """The modalities that each has."""
    return [list(names_of(code)) for code in found.codes.tolist()]


def _numbers(given: Any, count: int, where: str) -> Any:
    if not isinstance(given, list) or len(given) != count:
        what = f"a list of {len(given)}" if isinstance(given, list) else "no list"
        raise Refused(422, f"{where} is {what}; the model's have {count} numbers")
    if not all(type(value) in (int, float) and abs(value) < 1e6 for value in given):  # NaN too
        raise Refused(422, f"{where} holds what is no number of a vector of length 1")
    return given
