"""How sure: ``calibration.json`` in an adapter folder says what its scores mean, at one precision of computation.

It belongs to one ``adapter.safetensors``, by its sha256. Scores are those of the mixed form (``retrieval.scores``), and
each set of common modalities has rates of its own. An FMR is of one comparison: among N strangers the expected number
of false matches is N times as large, and there is one or more with the probability 1 - (1 - FMR)^N, or so (FPIR).
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors import numpy as tensors

from dmpt import __version__
from dmpt.adapter.files import TENSORS, reading
from dmpt.base.errors import UserError
from dmpt.base.files import sha256, write_atomically, write_text
from dmpt.retrieval.embeddings import Embeddings, Features
from dmpt.retrieval.rates import Rates, read_rates
from dmpt.retrieval.snorm import snorm, statistics
from dmpt.settings.modalities import MODALITIES, names_of, number_of
from dmpt.settings.numbers import Positive
from dmpt.settings.recipe import Precision
from dmpt.settings.values import checked

FILE, COHORT = "calibration.json", "cohort.safetensors"
_FORMAT = "dmpt-calibration/1"
_MOST_BYTES, _MOST_OF_COHORT = 8 << 20, 64 << 20
_PARTS = ("features", "present", "shared", "standardisation")
_AGAIN = "write it anew with dmpt calibrate"
Common = int | Iterable[str]
"""A set of common modalities: their names, or a number of which bit m stands for modality m; none = the shared parts"""


class Uncarried(UserError):
    """A rate that a calibration has no threshold for."""


@dataclass(frozen=True)
class Calibration:
    """What the scores of an adapter mean.

    Attributes:
        adapter: sha256 of ``adapter.safetensors``.
        precision: of the computation, fp32, bf16, fp16 or int8.
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
    precision: Precision | Literal["int8"]
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
            Uncarried: the set is not calibrated, or so few identities cannot carry the rate.
        """
        return self._threshold(common, fmr, f"FMR {100 * fmr:.3g} %")

    def false_matches(self, score: float, common: Common, n: int) -> float | None:
        """How many of ``n`` strangers are expected to score as high, at most; None where the set is not calibrated."""
        fmr = self.fmr(score, common)
        return None if fmr is None else n * fmr

    def fpir_threshold(self, common: Common, n: int, fpir: float) -> float:
        """The score that one or more of ``n`` strangers exceed with at most the probability ``fpir``, in (0, 1).

        Raises:
            Uncarried: the set is not calibrated, or so few identities cannot carry the rate.
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
            raise Uncarried(
                "scores of items with nothing in common are not calibrated; that takes a model with a shared part, and "
                "samples with several modalities"
            )
        if table is None:
            raise Uncarried(f"scores over {what} are not calibrated; calibrate on samples that have them")
        score = table.threshold(fmr)
        if score is None:
            raise Uncarried(
                f"{table.identities} calibration identities cannot carry {asked}; the least over {what} is FMR "
                f"{100 * table.least:.3g} %; ask for more, or calibrate on more identities"
            )
        return score

    def to_dict(self) -> dict[str, Any]:
        """What the file says, in types that JSON knows; of a cohort's samples how many they are."""
        found = asdict(replace(self, cohort=None))
        return {"format": _FORMAT, "dmpt": __version__, **found, "cohort": self.cohort and len(self.cohort)}

    def to_files(self) -> tuple[str, bytes | None]:
        """What ``calibration.json`` and ``cohort.safetensors`` hold; the second None without a cohort."""
        cohort = None if self.cohort is None else _packed(self.cohort)
        content = self.to_dict() | ({} if cohort is None else {"cohort": hashlib.sha256(cohort).hexdigest()})
        text = json.dumps(content, indent=2, allow_nan=False)
        # Lists of numbers on one line, so that people find the rest.
        return re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n", cohort

    def save(self, folder: Path) -> Path:
        """Write ``calibration.json`` into an adapter folder, and ``cohort.safetensors`` where there is a cohort.

        Returns:
            The file.

        Raises:
            UserError: it cannot be written.
        """
        text, cohort = self.to_files()
        if cohort is not None:
            write_atomically(folder / COHORT, lambda temporary: temporary.write_bytes(cohort))
        write_text(folder / FILE, text)
        if cohort is None:
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
    calibration = parse(_text(path), str(path), _bytes(folder / COHORT))
    if calibration.adapter != sha256(folder / TENSORS):
        raise UserError(f"{path} belongs to another {TENSORS}; remove it, or {_AGAIN}")
    if precision not in (None, calibration.precision):
        raise UserError(
            f"{path} is for precision {calibration.precision}, not {precision}; compute in that, or {_AGAIN}"
        )
    return calibration


def parse(text: str, where: str, cohort: bytes | None) -> Calibration:
    """What ``to_files`` gave.

    Args:
        text: the first of it.
        where: what the user calls it.
        cohort: the second.

    Raises:
        UserError: it is damaged or of another format.
    """
    try:
        content = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no keys and values; {_AGAIN}")
    found = content.pop("format", None)
    if found != _FORMAT:
        raise UserError(
            f"{where} has format {found!r}; this version of dmpt ({__version__}) reads {_FORMAT!r}; {_AGAIN}"
        )
    try:
        own = {one.name: content[one.name] for one in fields(Calibration)}
        for name in ("tables", "normalised"):
            own[name] = read_rates(own[name], name)
        digest = own["cohort"]
        own["cohort"] = None if digest is None else _unpacked(cohort, digest)
        return checked(Calibration, own, "calibration")
    except KeyError as error:
        raise UserError(f"{where} lacks the key {error}; {_AGAIN}") from error
    except (UserError, TypeError) as error:
        raise UserError(f"{where}: {error}; {_AGAIN}") from error


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


def _packed(cohort: Embeddings) -> bytes:
    """Its vectors, as safetensors."""
    parts = {name: getattr(cohort, name) for name in _PARTS}
    return tensors.save({name: np.ascontiguousarray(part) for name, part in parts.items() if part is not None})


def _unpacked(data: bytes | None, digest: Any) -> Embeddings:
    """The cohort that a calibration names by its sha256.

    Raises:
        UserError: it is another one, or holds something else.
    """
    if data is None or hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{COHORT} beside it is missing, or another one")
    with reading(Path(COHORT)):
        found = Embeddings(**tensors.load(data))
        if found.features.ndim != 3 or found.present.shape != found.features.shape[:2]:
            raise ValueError("it holds no samples")
        if not all(np.isfinite(part).all() for part in (found.features, found.common_space)):
            raise ValueError("it holds NaN or infinity")
        return found


def _bytes(path: Path) -> bytes | None:
    """What a file of bounded size holds; None where there is no such file."""
    return path.read_bytes() if path.is_file() and path.stat().st_size <= _MOST_OF_COHORT else None


def _text(path: Path) -> str:
    """Likewise.

    Raises:
        UserError: it cannot be read.
    """
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise ValueError(f"{size} bytes")
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {_AGAIN}") from error


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
