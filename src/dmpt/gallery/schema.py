"""The columns of a gallery, whose model's vectors they hold, and what its metadata say.

A row is a sample: ``key`` names it. ``rgb``, ``nir`` and ``tir`` are vectors of length 1, null where absent, and
``lengths`` the lengths that they have inside the item, so that ``Embeddings.features`` is their product. ``present``
has bit m for modality m. ``shared``, ``pid``, ``camera``, ``content`` (sha256 of the sample's files) and the user's own
columns may be null. What the vectors are of stands in the schema's metadata: see ``Model``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from dmpt.base.errors import UserError, one_line
from dmpt.retrieval.embeddings import Features
from dmpt.settings.modalities import MODALITIES

if TYPE_CHECKING:
    from dmpt.embed.embedder import Embedder

FORMAT = "1"
OWN = ("key", *MODALITIES, "lengths", "present", "shared", "pid", "camera", "content", "adapter")
"""Columns that every gallery has; ``shared`` is in those alone whose model has a shared part."""

_UNIQUE = {"lance-schema:unenforced-primary-key": "true"}
"""Lets the store see that two writers add the same key at once."""


class Spoiled(UserError):
    """Another program changed this version of a table; an earlier one may be whole."""


@dataclass(frozen=True, eq=False)
class Model:
    """Whose vectors a gallery holds.

    Attributes:
        adapter: sha256 of ``adapter.safetensors``.
        precision: of the computation: fp32, bf16 or fp16.
        preprocessing: size, mean, std, value_range and modalities, as JSON has them.
        width: of a modality feature, D.
        shared: width of the shared part, d; 0 where none was trained.
        standardisation: of ``Embeddings``, ``(8, 2)``, or None.
    """

    adapter: str
    precision: str
    preprocessing: Mapping[str, Any]
    width: int
    shared: int = 0
    standardisation: Features | None = None

    @classmethod
    def of(cls, embedder: "Embedder") -> "Model":
        """What a loaded model writes."""
        data, seen = embedder.data, embedder.blank
        names = ("size", "mean", "std", "value_range", "modalities")
        preprocessing = json.loads(json.dumps({name: getattr(data, name) for name in names}))
        shared = 0 if seen.shared is None else seen.shared.shape[1]
        return cls(
            embedder.adapter, embedder.precision, preprocessing, seen.features.shape[2], shared, seen.standardisation
        )

    @classmethod
    def read(cls, schema: pa.Schema, where: str) -> "Model":
        """The model of a table, whose columns are looked at.

        Args:
            schema: of the table.
            where: what the user calls it.

        Raises:
            Spoiled: it is no gallery, or not any more, as where a column is missing or of another type.
            UserError: it is of another format.
        """
        said = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        found = said.get("dmpt.format")
        if found is None:
            raise Spoiled(f"{where} is a table, but no gallery; give what dmpt embed or dmpt gallery add wrote")
        if found != FORMAT:
            raise UserError(f"{where} has format {found}; this version of dmpt reads {FORMAT}; update dmpt")
        try:
            table = json.loads(said.get("dmpt.standardisation", "null"))
            model = cls(
                said["dmpt.adapter"],
                said["dmpt.precision"],
                dict(json.loads(said["dmpt.preprocessing"])),
                schema.field("rgb").type.list_size,
                schema.field("shared").type.list_size if "shared" in schema.names else 0,
                None if table is None else np.array(table, np.float32).reshape(8, 2),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise Spoiled(
                f"{where} was changed by another program ({one_line(str(error))}); dmpt gallery rollback to an earlier "
                "version"
            ) from error
        for field in schema_of(model):
            at = schema.get_field_index(field.name)
            if at < 0 or schema.field(at).type != field.type:
                kind = "is missing" if at < 0 else f"is {schema.field(at).type}, not {field.type}"
                raise Spoiled(f"{where}: column {field.name} {kind}; dmpt gallery rollback to an earlier version")
        return model

    def metadata(self, source: str | None = None) -> dict[str, str]:
        """What the schema of a table says; ``source`` is the folder that keys are relative to."""
        said = {
            "dmpt.format": FORMAT,
            "dmpt.adapter": self.adapter,
            "dmpt.precision": self.precision,
            "dmpt.preprocessing": json.dumps(self.preprocessing, sort_keys=True),
        }
        if self.standardisation is not None:
            said["dmpt.standardisation"] = json.dumps(self.standardisation.tolist())
        return said | ({} if source is None else {"dmpt.source": source})

    def refuse(self, other: "Model", where: str) -> None:
        """Let vectors of the same model pass.

        Args:
            other: whose vectors are to stand beside those of ``self``.
            where: what the user calls the gallery of ``self``.

        Raises:
            UserError: adapter, precision or preprocessing differ, as vectors then do.
        """
        ours, theirs = self.metadata(), other.metadata()
        for name in ("adapter", "precision", "preprocessing", "standardisation"):
            one, two = (said.get(f"dmpt.{name}", "none") for said in (ours, theirs))
            if one != two:
                if name == "adapter":
                    one, two = one[:12], two[:12]
                raise UserError(
                    f"{where} holds vectors of {name} {one}, these are of {two}; use the same model, or dmpt gallery "
                    "rebuild"
                )
        if (self.width, self.shared) != (other.width, other.shared):
            raise UserError(
                f"{where} holds vectors of width {self.width} (shared {self.shared}), these have {other.width} "
                f"({other.shared}); use the same model"
            )


def schema_of(model: Model, extra: Iterable[pa.Field] = (), source: str | None = None) -> pa.Schema:
    """The columns of a gallery and what its metadata say.

    Args:
        model: whose vectors it holds.
        extra: columns of the user's own.
        source: the folder that keys are relative to.

    Raises:
        UserError: a column of the user's has a name that is ours, or that the store cannot hold.
    """
    vector, text = pa.list_(pa.float32(), model.width), pa.string()
    fields = [pa.field("key", text, nullable=False, metadata=_UNIQUE)]
    fields += [pa.field(name, vector) for name in MODALITIES]
    fields += [pa.field("lengths", pa.list_(pa.float32(), len(MODALITIES)), nullable=False)]
    fields += [pa.field("present", pa.uint8(), nullable=False)]
    if model.shared:
        fields += [pa.field("shared", pa.list_(pa.float32(), model.shared))]
    fields += [pa.field(name, text) for name in ("pid", "camera", "content")]
    fields += [pa.field("adapter", text, nullable=False)]
    for field in extra:
        name = field.name
        if name in OWN or name.startswith("_") or not name.strip() or set(name) & set(".`") or len(name) > 100:
            raise UserError(f"column {one_line(name)[:100]!r} cannot be kept under this name; rename it in the source")
        fields.append(pa.field(name, field.type, nullable=True))
    return pa.schema(fields, metadata=model.metadata(source))
