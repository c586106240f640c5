"""How sure: ``calibration.json`` in an adapter folder says what its scores mean, at one precision of computation.

It belongs to one ``adapter.safetensors``, by its sha256. Scores are those of the mixed form (``retrieval.scores``), and
each set of common modalities has rates of its own. An FMR is of one comparison: among N strangers the expected number
of false matches is N times as large, and there is one or more with the probability 1 - (1 - FMR)^N, or so (FPIR).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from dmpt import __version__
from dmpt.adapter.folder import TENSORS
from dmpt.base.errors import UserError
from dmpt.base.files import sha256, write_text
from dmpt.retrieval.calibration import Threshold
from dmpt.retrieval.rates import Rates
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.numbers import Positive
from dmpt.settings.recipe import Precision
from dmpt.settings.values import checked

FILE = "calibration.json"
_FORMAT = "dmpt-calibration/1"
_MOST_BYTES = 8 << 20
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

    def rates(self, common: Common) -> Rates | None:
        """The table of a set of common modalities; None where it has none."""
        names = _names(common)
        return next((table for table in self.tables if table.common == names), None)

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

    def _threshold(self, common: Common, fmr: float, asked: str) -> float:
        names = _names(common)
        table, what = self.rates(names), " and ".join(names) or "shared parts"
        if table is None:
            raise UserError(f"scores over {what} are not calibrated; calibrate on samples that have them")
        score = table.threshold(fmr)
        if score is None:
            raise UserError(
                f"{table.identities} calibration identities cannot carry {asked}; the least over {what} is FMR "
                f"{100 * table.least:.3g} %; ask for more, or calibrate on more identities"
            )
        return score

    def save(self, folder: Path) -> Path:
        """Write ``calibration.json`` into an adapter folder.

        Returns:
            The file.

        Raises:
            UserError: it cannot be written.
        """
        text = json.dumps({"format": _FORMAT, "dmpt": __version__, **asdict(self)}, indent=2, allow_nan=False)
        # Lists of numbers on one line, so that people find the rest.
        flat = re.sub(r"\[[^\[\]{}]*\]", lambda found: " ".join(found[0].split()), text)
        write_text(folder / FILE, flat + "\n")
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
        own = {field.name: content[field.name] for field in fields(Calibration)}
        own["tables"] = _tables(own["tables"], "tables")
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


def _names(common: Common) -> tuple[str, ...]:
    """A set of modalities by their names, in their order."""
    if isinstance(common, Iterable):
        given = set(common)
        return tuple(name for name in MODALITIES if name in given)
    return tuple(name for m, name in enumerate(MODALITIES) if int(common) >> m & 1)


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
