"""``dmpt calibrate``: what the scores of an adapter mean, from identities that its training has not seen."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from dmpt.adapter.calibration import Calibration
from dmpt.adapter.calibration import load as load_calibration
from dmpt.adapter.files import TENSORS, adapter_folder
from dmpt.adapter.folder import load_card, network_of
from dmpt.adapter.packaged import is_shipped
from dmpt.base.errors import UserError
from dmpt.base.files import expanded, sha256
from dmpt.base.terminal import warn
from dmpt.data.check import keep_readable
from dmpt.data.check.looks import look_at
from dmpt.data.layouts import load_dataset
from dmpt.data.missing import restrict
from dmpt.data.records import Dataset, Record, as_one, fingerprint
from dmpt.data.split import hold_out, view_of
from dmpt.embed.extract import extract
from dmpt.evaluation.beside import trained_beside, trained_on
from dmpt.evaluation.conditions import USUAL, Conditions
from dmpt.evaluation.opened import Opened, open_adapter
from dmpt.evaluation.sights import BetweenCameras, Sights, between_cameras
from dmpt.method.network import DMPT
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.snorm import COHORT
from dmpt.runtime.torch import PRECISIONS
from dmpt.settings.config import Config, DataConfig

Split = Literal["val", "test", "train"]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """An adapter and what its scores mean.

    Attributes:
        folder: of the adapter.
        calibration: of it.
        cameras: rates between every two cameras at the threshold for ``at``; None = not asked for.
        at: the FMR of all pairs together at that threshold.
        before: the calibration that ``save`` replaces; None = there is none, or none that is of this adapter.
    """

    folder: Path
    calibration: Calibration
    cameras: list[BetweenCameras] | None = None
    at: float | None = None
    before: Calibration | None = None

    def save(self) -> Path:
        """Write ``calibration.json`` into the adapter's folder; returns the file.

        Raises:
            UserError: it cannot be written.
        """
        return self.calibration.save(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """What ``calibration.json`` holds, and the rates between cameras; rates are in [0, 1]."""
        found = self.calibration.to_dict()
        if self.cameras is not None:
            found["by_camera"] = {"fmr": self.at, "pairs": [asdict(pair) for pair in self.cameras]}
        return found


def calibrate(
    run: str | Path,
    conditions: Conditions = USUAL,
    *,
    split: Split | None = None,
    snorm: bool = False,
    by_camera: bool = False,
) -> Calibrated:
    """Calibrate an adapter; ``save`` writes the result into its folder.

    Args:
        run: run folder or adapter folder.
        conditions: the data, where they are others than those of training, and the precision; without that it is the
            one of the calibration that is there.
        split: which identities of them; None = those that training held out, of other data all.
        snorm: also normalised scores.
        by_camera: also error rates between every two cameras.

    Raises:
        UserError: something is missing or does not fit, or the identities are too few.
    """
    if is_shipped(run):
        raise UserError(
            f"{run} comes with its calibration; to write another one, copy its folder {adapter_folder(expanded(run))} "
            "and calibrate the copy"
        )
    before = _before(adapter_folder(expanded(run), conditions.which))
    if before is not None and conditions.precision is None and before.precision != "int8":
        conditions = replace(conditions, precision=before.precision)
    opened, skip = open_adapter(expanded(run), conditions), conditions.skip_broken
    records, name = _chosen(opened, split, skip)
    strangers = _cohort(opened, skip) if snorm else None  # refused before anything is embedded
    measured = partial(
        calibration_of, opened.folder, opened.network, opened.data, opened.precision, conditions.batch_size
    )
    calibration, sights = measured(opened.dataset, records, name, strangers)
    if not by_camera:
        return Calibrated(opened.folder, calibration, before=before)
    table, limit = next((table, table.usual) for table in calibration.tables if table.usual)
    cameras = between_cameras(sights, table.common, limit.threshold)
    return Calibrated(opened.folder, calibration, cameras, limit.fmr, before)


def calibration_of(
    folder: Path,
    network: DMPT,
    data: DataConfig,
    precision: str,
    batch_size: int,
    dataset: Dataset,
    records: Sequence[Record],
    split: str,
    strangers: Sequence[Record] | None = None,
) -> tuple[Calibration, Sights]:
    """The calibration of an adapter, and how the samples were seen for it.

    Args:
        folder: of the adapter.
        network: of it, on its device, its tower in ``precision``; left in evaluation mode.
        data: settings of the images, as for ``extract``.
        precision: of the computation, a key of ``PRECISIONS``.
        batch_size: samples per pass.
        dataset: that the samples are of.
        records: samples of the calibration identities.
        split: which identities these are (``Calibration.split``).
        strangers: a cohort to normalise scores with; None = they are not normalised.

    Raises:
        UserError: the identities are too few, or an image does not decode.
    """

    def embed(samples: Sequence[Record]) -> Embeddings:
        return extract(network, samples, data, precision=PRECISIONS[precision], batch_size=batch_size)

    sights = Sights.of(records, data.modalities, view_of(dataset.protocol), embed)
    tables = sights.tables()
    if not any(table.thresholds for table in tables):
        raise UserError(
            f"these {sights.count} identities, of {len(records)} samples, carry no threshold: calibration takes pairs "
            f"of one identity and of strangers, each pair seen by two {sights.by}s; give more"
        )
    cohort = None if strangers is None else embed(strangers)
    found = Calibration(
        adapter=sha256(folder / TENSORS),
        precision=precision,  # type: ignore[arg-type]
        data=dataset.name,
        fingerprint=fingerprint(records),
        split=split,  # type: ignore[arg-type]
        views=sights.by,
        identities=sights.count,
        items=len(records),
        tables=tables,
        normalised=() if cohort is None else sights.tables(cohort),
        cohort=cohort,
    )
    return found, sights


def calibrate_run(run: Path, dataset: Dataset, records: Sequence[Record]) -> str:
    """Calibrate the adapter that training has selected on the identities that it held out, and write the result.

    Args:
        run: its folder.
        dataset: of the run.
        records: of these identities.

    Returns:
        A line that says what was calibrated, or why there is nothing to calibrate on.

    Raises:
        UserError: the file cannot be written.
    """
    folder = adapter_folder(run)
    card = load_card(folder)
    precision = card.config.train.precision
    network, _ = network_of(folder, card, dtype=PRECISIONS[precision])
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found, _ = calibration_of(folder, network, card.config.data, precision, 64, dataset, records, "val")
    except UserError as error:
        return f"not calibrated: {error}"
    path = found.save(folder)
    return f"calibrated on {found.identities} identities held out: {path}"


def _before(folder: Path) -> Calibration | None:
    """The calibration that is there; a damaged one, or that of another adapter, is what calibrating mends."""
    try:
        return load_calibration(folder)
    except UserError:
        return None


def _chosen(opened: Opened, split: Split | None, skip_broken: bool) -> tuple[Sequence[Record], str]:
    """The samples of the identities asked for, and what ``Calibration.split`` says of them."""
    data, config = opened.dataset, opened.card.config
    tested = as_one(data.query, data.gallery)
    if opened.apart and not trained_beside(opened.card, data):
        if split == "val":
            raise UserError("--split val is what training held out of its own data; of others give test, train or none")
        chosen = {None: (*data.train, *tested), "train": data.train, "test": tested}[split]
        return _readable(data, config, chosen, skip_broken), split or "all"
    if split == "test":
        warn("calibrated on the identities of the test split, whose mAP is printed beside; others would say more")
        return _readable(data, config, tested, skip_broken), "test"
    held_out = config.train.select == "val"
    if split != "train" and not held_out:
        raise UserError(
            f"{opened.folder}: training held no identities out (train.select {config.train.select}); give --data.root "
            "of others, or --split test, whose mAP is printed beside"
        )
    seen, held = _halves(data, config, skip_broken)
    if split == "train":
        warn("calibrated on identities that training has seen: thresholds may be too low for others")
        return seen, "train"
    return held, "val"


def _halves(dataset: Dataset, config: Config, skip_broken: bool) -> tuple[Sequence[Record], Sequence[Record]]:
    """What training saw, and what it held out."""
    records = _readable(dataset, config, trained_on(dataset, config.data), skip_broken)
    if config.train.select != "val":
        return records, []
    return hold_out(records, config.train.val_share, config.data.split_seed, dataset.protocol)


def _readable(dataset: Dataset, config: Config, records: Sequence[Record], skip_broken: bool) -> Sequence[Record]:
    """Those with the modalities in use, whose images can be read."""
    used = restrict(records, config.data.modalities)
    if not used:
        raise UserError(f"data of layout {dataset.name} have no such samples; give another --split")
    return keep_readable(used, look_at(dataset, used), skip_broken)[0]


def _cohort(opened: Opened, skip_broken: bool) -> Sequence[Record]:
    """Samples of training identities that have every modality, spread evenly over them."""
    config = load_card(opened.folder).config
    if config.data.root is None:
        raise UserError(
            f"--snorm takes samples that {opened.folder} was trained on, and does not know where they are; calibrate "
            "the run that it is of"
        )
    dataset = load_dataset(config.data.layout, config.data.root, config.data, [] if skip_broken else None)
    records, _ = _halves(dataset, config, skip_broken)
    whole = [record for record in records if len(record.paths) == len(config.data.modalities)]
    if len(whole) < 2:
        raise UserError(
            f"--snorm takes training samples with all of {', '.join(config.data.modalities)}; none has them"
        )
    return whole[:: math.ceil(len(whole) / COHORT)]
