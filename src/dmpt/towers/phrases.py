"""Text prompts, their words and text features, computed once (sections 3.2 and 3.3).

The text encoder is frozen and the prompts are fixed, so one small file holds all that training needs of it. Only the
``identity`` reading of Eq. 5 keeps the tower itself.
"""

import hashlib
import json
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dmpt.base.errors import UserError
from dmpt.base.files import cache_folder, sha256
from dmpt.settings.config import TextConfig
from dmpt.towers.image import TowerInfo
from dmpt.towers.packaged import local
from dmpt.towers.tensors import read_tensors, write_tensors
from dmpt.towers.text import architecture_of, is_quick, load_text_tower, tokenizer_of, weights_of

OBJECTS = ("person", "vehicle")
ATTRIBUTES = {"rgb": "visual", "nir": "near-infrared", "tir": "thermal-infrared"}
PHRASES = {"rgb": "a visual photo", "nir": "a near-infrared photo", "tir": "a thermal-infrared photo"}
# Section 3.2 says "visible" where 3.3 says "visual".
SPECTRA = ("visible", "near-infrared", "thermal-infrared")
PROMPTS = tuple(f"a {spectrum} photo of a {thing}." for spectrum in SPECTRA for thing in OBJECTS)
"""The fixed prompts of section 3.2: row ``modality * 2 + object`` of the text features."""

_FORMAT, _VERSION = "dmpt-text", "1"


class TextTargets(NamedTuple):
    """What the fixed prompts of section 3.2 give the text loss."""

    features: Tensor  # of the six prompts, modality-major, person before vehicle, (6, d)
    positive: Tensor  # each modality's own row for the data set's object, (3,)
    scale: float  # 1 / tau, the tower's own logit scale


@dataclass(frozen=True, eq=False)
class TextFile:
    """All that a text tower says about the prompts."""

    words: dict[str, Tensor]  # frozen word embeddings of ``PHRASES`` by modality, each (tokens, d_t): 3, 5 and 5 tokens
    attributes: dict[str, Tensor]  # the same of ``ATTRIBUTES``: 1, 3 and 3 tokens
    features: Tensor  # of ``PROMPTS``, (6, d), as the tower projects them; L2-normalise at use
    logit_scale: float  # what cosines are multiplied by, 1 / tau of Eq. 5
    tower: str  # open_clip's name
    sha256: str  # of the tower's weights file
    quick_gelu: bool  # the tower's activation

    def targets(self, thing: str) -> TextTargets:
        """What the prompts give the text loss where the data show ``person`` or ``vehicle``."""
        positive = torch.tensor([m * len(OBJECTS) + OBJECTS.index(thing) for m in range(len(PHRASES))])
        return TextTargets(self.features, positive, self.logit_scale)

    def save(self, path: Path) -> None:
        """Write ``text.safetensors``.

        Raises:
            UserError: it cannot be written.
        """
        tensors = {"features": self.features}
        tensors |= {f"words.{modality}": words for modality, words in self.words.items()}
        tensors |= {f"attributes.{modality}": words for modality, words in self.attributes.items()}
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "prompts": json.dumps(PROMPTS),
            "logit_scale": repr(self.logit_scale),
            "tower": self.tower,
            "sha256": self.sha256,
            "quick_gelu": json.dumps(self.quick_gelu),
        }
        write_tensors(path, tensors, about)

    @classmethod
    def load(cls, path: Path) -> "TextFile":
        """Read a file that ``save`` wrote.

        Raises:
            UserError: missing, damaged, of another kind or version, or of other prompts.
        """
        tensors, about = read_tensors(path)
        if about.get("format") != _FORMAT:
            raise UserError(f"{path}: is no text file of dmpt; leave text.file out to have one built")
        if about.get("version") != _VERSION or about.get("prompts") != json.dumps(PROMPTS):
            raise UserError(f"{path}: is of another version or has other prompts; leave text.file out to build it anew")
        try:
            file = cls(
                words={modality: tensors.pop(f"words.{modality}") for modality in PHRASES},
                attributes={modality: tensors.pop(f"attributes.{modality}") for modality in ATTRIBUTES},
                features=tensors.pop("features"),
                logit_scale=float(about["logit_scale"]),
                tower=about["tower"],
                sha256=about["sha256"],
                quick_gelu=bool(json.loads(about["quick_gelu"])),
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"{path}: is damaged ({error}); leave text.file out to have it built anew") from error
        parts = [*file.words.values(), *file.attributes.values()]
        fits = file.features.shape[:-1] == (len(PROMPTS),) and len({part.shape[1:] for part in parts}) == 1
        finite = all(part.dtype == torch.float32 and bool(part.isfinite().all()) for part in (*parts, file.features))
        if tensors or not fits or not finite:
            raise UserError(f"{path}: is damaged (tensors do not fit together); leave text.file out to build it anew")
        return file


def check_matches(
    file: TextFile, info: TowerInfo, projection: Literal["tower", "trained"], projection_dim: int
) -> None:
    """Refuse text features that do not live where image features are projected to, ``projection_dim`` wide.

    Raises:
        UserError: widths differ, or image and text tower cannot be of one CLIP where the projection is the tower's own.
    """
    width = file.features.shape[1]
    if width != projection_dim:
        raise UserError(
            f"text.tower {file.tower}: its features are {width} wide, projected image features {projection_dim}; "
            f"choose the text tower of {info.name}, or backbone.projection trained and projection_dim {width}"
        )
    if projection == "tower" and file.quick_gelu != info.quick_gelu:
        kinds = ("GELU", "QuickGELU")
        raise UserError(
            f"text.tower {file.tower}: has {kinds[file.quick_gelu]}, backbone.name {info.name} "
            f"{kinds[info.quick_gelu]}, so they are not of one CLIP; choose the image tower's own text tower"
        )


def text_file(config: TextConfig) -> TextFile:
    """Words and text features (Eq. 4): from ``config.file``, else the cache, else built from the tower and cached.

    Raises:
        UserError: a file or weights are missing, or do not fit.
    """
    if config.file is not None:
        return TextFile.load(local(config.file))
    architecture = architecture_of(config.tower)
    path = weights_of(config, architecture)
    name, digest = Path(config.tower).name.removesuffix(".json"), sha256(path)
    key = hashlib.sha256(f"{digest} {json.dumps(architecture, sort_keys=True)}".encode()).hexdigest()[:16]
    cached = cache_folder() / f"text-{name}-{key}.safetensors"
    if cached.is_file():
        with suppress(UserError):  # a damaged or older copy is built anew
            return TextFile.load(cached)
    tower = load_text_tower(config)
    tokenizer = tokenizer_of(tower)

    def words(texts: dict[str, str]) -> dict[str, Tensor]:
        return {key: tower.token_embedding(torch.tensor(tokenizer.encode(text))) for key, text in texts.items()}

    with torch.no_grad():
        file = TextFile(
            words=words(PHRASES),
            attributes=words(ATTRIBUTES),
            features=tower.encode_text(tokenizer(list(PROMPTS))),
            logit_scale=tower.logit_scale.exp().item(),
            tower=name,
            sha256=digest,
            quick_gelu=is_quick(architecture),
        )
    try:
        file.save(cached)
    except UserError as error:
        warnings.warn(f"{error}; going on, the text features are computed again next time", stacklevel=2)
    return file
