"""How sure: ``calibration.json`` in an adapter folder says what its scores mean, at one precision of computation.

It belongs to one ``adapter.safetensors``, by its sha256. Scores are those of the mixed form (``retrieval.scores``), and
each set of common modalities has rates of its own. An FMR is of one comparison: among N strangers the expected number
of false matches is N times as large, and there is one or more with the probability 1 - (1 - FMR)^N, or so (FPIR).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from dmpt import __version__
from dmpt.adapter.folder import TENSORS, reading
from dmpt.base.errors import UserError
from dmpt.base.files import sha256, write_text
from dmpt.retrieval.calibration import Threshold
from dmpt.retrieval.embeddings import Embeddings, Features
from dmpt.retrieval.rates import Rates
from dmpt.retrieval.snorm import snorm, statistics
from dmpt.settings.modalities import MODALITIES, names_of, number_of
from dmpt.settings.numbers import Positive
from dmpt.settings.recipe import Precision
from dmpt.settings.values import checked
from dmpt.towers.tensors import read_safetensors, refuse_nan, write_tensors

FILE, COHORT = "calibration.json", "cohort.safetensors"
_FORMAT = "dmpt-calibration/1"
_MOST_BYTES, _MOST_OF_COHORT = 8 << 20, 64 << 20
_PARTS = ("features", "present", "shared", "standardisation")
_AGAIN = "write it anew with dmpt calibrate"
Common = int | Iterable[str]
"""A set of common modalities: their names, or a number of which bit m stands for modality m; none = the shared parts"""


@dataclass(frozen=True)
class Calibration:
    """What the scores of an adapter mean.

    Attributes:
        adapter: sha256 of ``adapter.safetensors``.
        precision: of the computation, a key of ``embed.extract.PRECISIONS``.
        data: layout of the data that the pairs are of.
        fingerprint: of those samples.
        split: which identities they are: ``val`` (held out of training), ``test``, ``train``, or ``all`` of other data.
        views: what tells two views apart: pairs are of two cameras, or of two scenes.
        identities: people or vehicles.
        items: samples.
        tables: rates for each set of common modalities; a set that has none is not calibrated.
        normalised: the same of scores that are normalised by a cohort (``retrieval.snorm``), where there is one.
        cohort: its samples.
    """

    adapter: str
    precision: Precision
    data: str
    fingerprint: str
    split: Literal["val", "test", "train", "all"]
    views: Literal["camera", "scene"]
    identities: Positive
    items: Positive
    tables: tuple[Rates, ...]
    normalised: tuple[Rates, ...] = ()
    cohort: Embeddings | None = field(default=None, compare=False)

    def rates(self, common: Common) -> Rates | None:
        """The table of a set of common modalities; None where it has none."""
        return _table(self.tables, _names(common))

    def fmr(self, score: float, common: Common) -> float | None:
        """The share of strangers that score as high, at most, in (0, 1]; None where the set is not calibrated.

        Args:
            score: of the mixed form.
            common: modalities that the two items have in common.
        """
        table = self.rates(common)
        return None if table is None else table.fmr(score)

    def threshold(self, common: Common, fmr: float = 0.01) -> float:
        """The score above which two items are the same, at an FMR in (0, 1): of one comparison.

        Raises:
            UserError: the set is not calibrated, or so few identities cannot carry the rate.
        """
        return self._threshold(common, fmr, f"FMR {100 * fmr:.3g} %")

    def false_matches(self, score: float, common: Common, n: int) -> float | None:
        """How many of ``n`` strangers are expected to score as high, at most; None where the set is not calibrated."""
        fmr = self.fmr(score, common)
        return None if fmr is None else n * fmr

    def fpir_threshold(self, common: Common, n: int, fpir: float) -> float:
        """The score that one or more of ``n`` strangers exceed with at most the probability ``fpir``, in (0, 1).

        Raises:
            UserError: the set is not calibrated, or so few identities cannot carry the rate.
        """
        fmr = -math.expm1(math.log1p(-fpir) / max(1, n))
        return self._threshold(
            common, fmr, f"FPIR {100 * fpir:.3g} % among {n} strangers, which is FMR {100 * fmr:.3g} %"
        )

    def fmr_between(self, first: Embeddings, second: Embeddings, scores: Features) -> npt.NDArray[np.float64]:
        """``fmr`` of each two of N and M items, ``(N, M)``; NaN where not calibrated.

        With a cohort it is that of their normalised scores, which tell mates from strangers better.

        Args:
            first: N items.
            second: M items.
            scores: of every two (``scores.between``).
        """
        values: npt.NDArray[Any] = scores
        sets = first.codes[:, None] & second.codes
        tables: tuple[Rates, ...] = self.tables
        found = np.full(values.shape, np.nan)
        if self.cohort is not None:
            tables = self.normalised
            values = snorm(values, sets, statistics(first, self.cohort), statistics(second, self.cohort))
        for table in tables:
            here = sets == number_of(table.common)
            found[here] = [table.fmr(score) for score in values[here].tolist()]
        return found

    def carries(self, common: Common, fmr: float) -> bool:
        """Whether the identities carry an FMR for a set of common modalities, as ``fmr_between`` says it."""
        table = _table(self.tables if self.cohort is None else self.normalised, _names(common))
        return table is not None and fmr >= table.least

    def _threshold(self, common: Common, fmr: float, asked: str) -> float:
        names = _names(common)
        table, what = self.rates(names), " and ".join(names) or "shared parts"
        if table is None and not names:
            raise UserError(
                "scores of items with nothing in common are not calibrated; that takes a model with a shared part, and "
                "samples with several modalities"
            )
        if table is None:
            raise UserError(f"scores over {what} are not calibrated; calibrate on samples that have them")
        score = table.threshold(fmr)
        if score is None:
            raise UserError(
                f"{table.identities} calibration identities cannot carry {asked}; the least over {what} is FMR "
                f"{100 * table.least:.3g} %; ask for more, or calibrate on more identities"
            )
        return score

    def to_dict(self) -> dict[str, Any]:
        """What the file says, in types that JSON knows; of a cohort's samples how many they are."""
        found = asdict(replace(self, cohort=None))
        return {"format": _FORMAT, "dmpt": __version__, **found, "cohort": self.cohort and len(self.cohort)}

    def save(self, folder: Path) -> Path:
        """Write ``calibration.json`` into an adapter folder, and ``cohort.safetensors`` where there is a cohort.

        Returns:
            The file.

        Raises:
            UserError: it cannot be written.
        """
        content = self.to_dict()
        if self.cohort is not None:
            _write_cohort(folder / COHORT, self.cohort)
            content["cohort"] = sha256(folder / COHORT)
        text = json.dumps(content, indent=2, allow_nan=False)
        # Lists of numbers on one line, so that people find the rest.
        flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
        write_text(folder / FILE, flat + "\n")
        if self.cohort is None:
            (folder / COHORT).unlink(missing_ok=True)
        return folder / FILE


def load(folder: Path, precision: str | None = None) -> Calibration | None:
    """The calibration in an adapter folder; None where there is none.

    Args:
        folder: holds ``adapter.safetensors``.
        precision: of the computation whose scores it is for; None = that of the calibration.

    Raises:
        UserError: it is damaged, of another format, or belongs to another adapter or precision.
    """
    path = folder / FILE
    if not path.exists():
        return None
    content = _read(path)
    found = content.pop("format", None)
    if found != _FORMAT:
        raise UserError(
            f"{path} has format {found!r}; this version of dmpt ({__version__}) reads {_FORMAT!r}; {_AGAIN}"
        )
    try:
        own = {one.name: content[one.name] for one in fields(Calibration)}
        for name in ("tables", "normalised"):
            own[name] = _tables(own[name], name)
        own["cohort"] = _read_cohort(folder / COHORT, own["cohort"])
        calibration = checked(Calibration, own, "calibration")
    except KeyError as error:
        raise UserError(f"{path} lacks the key {error}; {_AGAIN}") from error
    except (UserError, TypeError) as error:
        raise UserError(f"{path}: {error}; {_AGAIN}") from error
    if calibration.adapter != sha256(folder / TENSORS):
        raise UserError(f"{path} belongs to another {TENSORS}; remove it, or {_AGAIN}")
    if precision not in (None, calibration.precision):
        raise UserError(
            f"{path} is for precision {calibration.precision}, not {precision}; compute in that, or {_AGAIN}"
        )
    return calibration


def remove(folder: Path) -> None:
    """Remove the calibration in an adapter folder, whose tensors are about to be others.

    Raises:
        OSError: it cannot be removed.
    """
    for name in (FILE, COHORT):
        (folder / name).unlink(missing_ok=True)


def _table(tables: Sequence[Rates], names: tuple[str, ...]) -> Rates | None:
    return next((table for table in tables if table.common == names), None)


def _names(common: Common) -> tuple[str, ...]:
    """A set of modalities by their names, in their order."""
    if isinstance(common, Iterable):
        given = set(common)
        return tuple(name for name in MODALITIES if name in given)
    return names_of(int(common))


def _write_cohort(path: Path, cohort: Embeddings) -> None:
    """Its vectors, as safetensors."""
    parts = {name: getattr(cohort, name) for name in _PARTS}
    write_tensors(path, {name: torch.from_numpy(part) for name, part in parts.items() if part is not None}, {})


def _read_cohort(path: Path, digest: Any) -> Embeddings | None:
    """The cohort that a calibration names by its sha256.

    Raises:
        UserError: the file is another one, or holds something else.
    """
    if digest is None:
        return None
    if not path.is_file() or path.stat().st_size > _MOST_OF_COHORT or sha256(path) != digest:
        raise UserError(f"{path.name} beside it is missing, or another one")
    with reading(path):
        tensors, _ = read_safetensors(path)
        refuse_nan(tensors, path)
        found = Embeddings(**{name: tensor.numpy() for name, tensor in tensors.items()})
        if found.features.ndim != 3 or found.present.shape != found.features.shape[:2]:
            raise ValueError("it holds no samples")
        return found


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size, whose numbers are finite."""
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"{size} bytes")
        content = json.loads(path.read_text("utf-8"), parse_constant=_refuse, parse_float=_finite)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys and values; {_AGAIN}")
    return content


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _tables(content: Any, where: str) -> tuple[Rates, ...]:
    """Rates as JSON holds them, one for each set of modalities."""
    if not isinstance(content, list):
        raise UserError(f"{where} is no list")
    tables = []
    for number, each in enumerate(content):
        here = f"{where}[{number}]"
        if not isinstance(each, Mapping) or not isinstance(each.get("thresholds"), list):
            raise UserError(f"{here} has no thresholds")
        limits = tuple(checked(Threshold, limit, f"{here}.thresholds") for limit in each["thresholds"])
        table = checked(Rates, {**each, "thresholds": limits}, here)
        try:
            table.check()
        except UserError as error:
            raise UserError(f"{here}: {error}") from error
        tables.append(table)
    sets = [table.common for table in tables]
    if len(set(sets)) < len(sets) or any(own != _names(own) for own in sets):
        raise UserError(f"{where} name a set of modalities twice, or one that there is not")
    return tuple(tables)
