"""What requests and answers look like, as the OpenAPI tells it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from dmpt.serve.asked import JSON, KEY, LABEL, MULTIPART, OTHER, RAW
from dmpt.serve.limits import HITS, ROWS, SHOTS
from dmpt.serve.vectors import ABOUT

Modality = Literal["rgb", "nir", "tir"]
Label = Annotated[str, StringConstraints(min_length=1, max_length=LABEL)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=KEY)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class _Strict(BaseModel):
    """What is misspelled is told."""

    model_config = ConfigDict(extra="forbid")


class Whose(_Strict):
    """The model that vectors in the body are of, where that is said; those of another are refused."""

    adapter: str | None = Field(None, max_length=100, description="of the vectors in the body, as /embed answered it")
    precision: str | None = Field(None, max_length=100, description="likewise")


class Which(Whose):
    """Of what counts."""

    model: str | None = Field(None, description="default: the gallery's, else the first")
    use: list[Modality] = Field([], description="modalities that count; default: all")


class Comparing(Which):
    """Of /compare."""

    fmr: Rate = Field(0.01, description="share of strangers that may pass for the same")


class Searching(Whose):
    """Of /search."""

    k: int = Field(10, ge=1, le=HITS, description="hits")
    use: list[Modality] = Field([], description="modalities of the query that count; default: all")
    camera: list[Label] = Field([], max_length=100, description="of these cameras")
    not_camera: list[Label] = Field([], max_length=100, description="of none of these cameras")
    after: str | None = Field(None, max_length=100, description="of this moment or later: ISO 8601 or seconds")
    before: str | None = Field(None, max_length=100, description="before this moment")
    group: Literal["pid", "none"] = Field("pid", description="the best row stands for all of one pid, or for itself")
    shots: Literal["mean", "max"] = Field("mean", description="several shots are averaged, or the best counts")
    fpir: Rate | None = Field(None, description="only hits that a stranger reaches in at most this share of searches")
    exclude_self: bool = Field(True, description="leave out the rows that are asked for by key")


class Adding(Whose):
    """Of /gallery/add, for one row."""

    key: Key | None = None
    pid: Label | None = None
    camera: Label | None = None
    time: str | None = Field(None, max_length=100)


class Examples(_Strict):
    """Of /gallery/examples."""

    n: int = Field(12, ge=1, le=100)


class Pictured(_Strict):
    """Of /gallery/picture."""

    key: Key
    modality: Modality
    size: int = Field(256, ge=32, le=1024, description="pixels of the longer side, at most")


class Labels(_Strict):
    """Who is on rows; null = unlabelled."""

    labels: dict[Key, Label | None] = Field(min_length=1, max_length=ROWS)


class Keys(_Strict):
    """Of rows."""

    keys: list[Key] = Field(min_length=1, max_length=ROWS)


class Undoing(_Strict):
    """The version that the write left."""

    version: int = Field(ge=1, lt=2**31)


class Problem(BaseModel):
    """One sentence: what was wrong, and what to do next."""

    error: str


class Alive(BaseModel):
    """That it is."""

    status: Literal["ok", "ready"]


class Sample(BaseModel):
    """Vectors of a shot."""

    modalities: list[Modality]
    vector: list[float] = Field(description="of all modalities side by side, length 1; zeros where absent")
    shared: list[float] | None


class Embedded(BaseModel):
    """Vectors of shots."""

    model: str
    adapter: str
    precision: str
    width: int
    shared: int
    samples: list[Sample]


class Alone(BaseModel):
    """What one modality says."""

    score: float
    fmr: float | None


class Item(BaseModel):
    """A row of the gallery."""

    key: str
    pid: str | None
    camera: str | None
    time: str | None
    has: list[Modality]
    pictures: dict[Modality, str]
    columns: dict[str, Any]


class Items(BaseModel):
    """Rows."""

    items: list[Item]


class Hit(Item):
    """A row that was found."""

    rank: int
    score: float
    modalities: list[Modality]
    fmr: float | None
    expected_false_matches: float | None
    spectra: dict[Modality, Alone]


class Found(BaseModel):
    """What a search found."""

    gallery: str
    version: int
    model: str
    items: int
    modalities: list[Modality]
    shots: int
    calibrated: bool
    hits: list[Hit]


class Compared(BaseModel):
    """Whether two are the same."""

    model: str
    score: float
    modalities: list[Modality]
    same: bool | None
    fmr: float | None
    asked_fmr: float
    calibrated: bool
    spectra: dict[Modality, Alone]


class Looked(BaseModel):
    """Where a model looks; 1 = an even look."""

    size: list[int]
    grid: list[int]
    lookers: list[str]
    maps: dict[Modality, dict[str, list[list[float]]]]


class Undoable(BaseModel):
    """A write that can be taken back."""

    version: int
    what: str


class Written(BaseModel):
    """What became of a write."""

    version: int
    added: int
    changed: int
    removed: int
    undo: Undoable | None


class Service(BaseModel):
    """What there is."""

    version: str
    models: list[dict[str, Any]]
    gallery: dict[str, Any] | None
    limits: dict[str, int]


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "what was wrong with the request"},
    "5XX": {"model": Problem, "description": "what is wrong with the service"},
}


def body(two: bool = False, more: bool = False) -> dict[str, Any]:
    """The request body of who is asked for, in its three forms.

    Args:
        two: with the other side.
        more: with rows to add: samples that say their keys.
    """
    fields: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    file, text = (
        {"type": "string", "contentMediaType": "application/octet-stream"},
        {"type": "string", "maxLength": KEY},
    )
    most = {"maxItems": SHOTS}
    sample = {
        "type": "object",
        "properties": {
            name: {"type": "array", "items": {"type": "number"}} for name in ("vector", "shared")
        } | (dict.fromkeys(("key", "pid", "camera", "time"), text) if more else {}),
        "required": ["vector"],
    }  # fmt: skip
    for prefix in ("", OTHER) if two else ("",):
        fields |= {prefix + name: {"type": "array", "items": file, **most} for name in ("rgb", "nir", "tir")}
        plain[f"{prefix}samples"] = {
            "type": "array",
            "items": sample,
            "maxItems": ROWS if more else SHOTS,
        }
        plain |= {prefix + name: {"type": "integer" if name in ("width", "shared") else "string"} for name in ABOUT}
        if not more:
            fields[f"{prefix}key"] = {"type": "array", "items": text, **most}
            plain[f"{prefix}key"], plain[f"{prefix}keys"] = text, fields[f"{prefix}key"]
    return {
        "requestBody": {
            "required": True,
            "content": {
                MULTIPART: {"schema": {"type": "object", "properties": fields, "additionalProperties": False}},
                JSON: {"schema": {"type": "object", "properties": plain, "additionalProperties": False}},
                RAW: {"schema": {"type": "string", "contentMediaType": RAW}},
            },
        }
    }
