"""``dmpt calibrate``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dmpt.base.terminal import print_json, print_table, warn
from dmpt.evaluation.conditions import Conditions

if TYPE_CHECKING:
    from dmpt.adapter.calibration import Calibration
    from dmpt.evaluation.calibrate import Calibrated
    from dmpt.retrieval.rates import Rates


def run(
    run: Path,
    /,
    conditions: Conditions,
    split: Literal["val", "test", "train"] | None = None,
    snorm: bool = False,
    by: Literal["camera"] | None = None,
    json: bool = False,
) -> None:
    """Calibrate a run or adapter: thresholds and their error rates, written beside the adapter.

    Args:
        run: Run folder or adapter folder.
        conditions: what is not as in training
        split: Which identities. Default: those that training held out (val); of other data all.
        snorm: Also of scores that are normalised by a cohort of training samples, which is kept beside the adapter.
        by: Also error rates between every two cameras, at the threshold that all share.
        json: Print JSON.
    """
    from dmpt.evaluation.calibrate import calibrate

    found = calibrate(run, conditions, split=split, snorm=snorm, by_camera=by == "camera")
    try:
        if json:
            print_json(found.to_dict())
        else:
            _show(found)
    finally:  # last: a folder that cannot be written to, or a pipe that nobody reads, loses no number
        path = found.save()
        if found.before is not None:
            warn(f"{path} is replaced: before {_amount(found.before)}, now {_amount(found.calibration)}")
        if not json:
            print(f"{path}: dmpt compare and dmpt search go by it, at precision {found.calibration.precision}")


def _amount(one: "Calibration") -> str:
    return f"{one.identities} identities at precision {one.precision}"


def _show(found: "Calibrated") -> None:
    own = found.calibration
    whose = {"val": "held out of training", "test": "of the test split", "train": "of training", "all": "all there are"}
    print(
        f"{own.data}: {own.identities} identities ({whose[own.split]}), {own.items} samples; pairs are of different "
        f"{own.views}s"
    )
    _table("what scores mean, by the modalities that both samples have", own.tables)
    if own.cohort is not None:
        _table(f"normalised by {len(own.cohort)} samples of training", own.normalised)
    if pooled := [_name(table.common) for table in own.tables if table.pooled]:
        print(f"too few identities for rates of their own, so pairs of all sets together: {', '.join(pooled)}")
    print("FMR: share of strangers that pass, of one comparison. TAR: share of mates that do, 1 - FNMR. Brackets: 95 %")
    if found.cameras is not None and found.at is not None:
        rows = []
        for pair in found.cameras:
            one, other = pair.cameras
            rows.append(
                [f"{one} and {other}", _percent(pair.fmr), f"{pair.strangers}", _percent(pair.fnmr), f"{pair.mates}"]
            )
        title = f"between cameras, at the threshold for FMR {100 * found.at:g} %"
        print_table(title, ["cameras", "FMR %", "strangers", "FNMR %", "mates"], rows)


def _table(title: str, tables: "Sequence[Rates]") -> None:
    """A row for each set and rate; those that cannot be carried say so."""
    from dmpt.retrieval.calibration import RATES

    rows = []
    for table in tables:
        limits = {limit.fmr: limit for limit in table.thresholds}
        what = [_name(table.common), f"{table.identities}", f"{table.mates}", f"{table.strangers}", _percent(table.eer)]
        for rate in RATES:
            if limit := limits.get(rate):
                ends = f"[{100 * limit.fmr_low:.2g}, {100 * limit.fmr_high:.2g}]"
                score = f"{limit.threshold:.6f} [{limit.low:.6f}, {limit.high:.6f}]"
                rows.append([*what, f"{100 * rate:g}", score, ends, _percent(limit.tar)])
                what = [""] * len(what)
        if refused := [f"{100 * rate:g}" for rate in RATES if rate not in limits]:
            rows.append([*what, ", ".join(refused), f"so few carry {100 * table.least:.2g} % or more", "", ""])
    header = ["in common", "identities", "mates", "strangers", "EER %", "FMR %", "threshold", "FMR, 95 %", "TAR %"]
    print_table(title, header, rows)


def _name(common: Sequence[str]) -> str:
    return "+".join(common) or "none (shared)"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
