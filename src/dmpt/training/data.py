"""What a training run learns from and is evaluated on along the way."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Literal

from dmpt.base.errors import UserError
from dmpt.data.check import errors_of_training, keep_readable
from dmpt.data.check.findings import in_short
from dmpt.data.check.looks import look_at
from dmpt.data.check.value_range import settled, shown
from dmpt.data.layouts import load_dataset, passed_over
from dmpt.data.loader import Batch, SampleDataset, train_batches
from dmpt.data.missing import incomplete, restrict
from dmpt.data.records import Dataset, Record, fingerprint, labels_of, pid_to_label
from dmpt.data.sampler import PKSampler, shard
from dmpt.data.split import held_out_count, hold_out
from dmpt.data.transforms import TrainTransform
from dmpt.embed.extract import Pair
from dmpt.evaluation.beside import trained_on
from dmpt.evaluation.opened import test_records
from dmpt.retrieval.metrics import count_valid, has_match
from dmpt.settings.config import SIXTEEN_BITS, Config, Range

_ENOUGH = 15
"""Identities: two of them can be paired in 105 ways, and a threshold for an FMR of 1 % takes 100."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training samples, their batches, and what is held out."""

    dataset: Dataset  # all of it, as its layout lists it
    records: Sequence[Record]  # readable, with the modalities asked for, without the identities held out
    labels: dict[int, int]  # class of each identity, from 0
    sampler: PKSampler  # batches of P identities x K samples
    select: Literal["last", "val", "test"]  # ``train.select``, settled
    evaluated: Pair | None  # queries and gallery that choose the epoch (val or test); None = the last
    protocol: str  # the rule by which these are judged
    valid: int  # how many of these queries have something to find
    skipped: list[str]  # a line for each missing or broken file, of any split, for which a sample is left out
    value_range: Range  # of images of more than 8 bits, as it is set or was measured
    notes: list[str]  # the value range if measured; each kind of error that ``dmpt check`` would find in the pictures

    @cached_property
    def fingerprint(self) -> str:
        """Of what is trained on; it asks the file system once for each file."""
        return fingerprint(self.records)

    def lines(self) -> list[str]:
        """What a run says of them before it starts."""
        lines = [
            f"{self.dataset.name}: {len(self.records)} samples of {len(self.labels)} identities; the first epoch has "
            f"{len(self.sampler.epoch(0))} batches of {self.sampler.ids} x {self.sampler.instances}"
        ]
        lines += passed_over(self.dataset)
        if lacking := incomplete(self.records):
            lines.append(f"samples that lack a modality: {len(lacking)}")
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} missing or broken files (any split): {'; '.join(self.skipped)}")
        lines += self.notes
        if self.evaluated is not None:
            rule = "" if self.protocol == self.dataset.protocol else f", protocol {self.protocol}"
            lines.append(
                f"selecting by mAP on {self.select}: {self.valid} of {len(self.evaluated[0])} queries valid{rule}"
            )
        test = labels_of(self.dataset.query), labels_of(self.dataset.gallery)
        if len(test[0]) and not has_match(*test, self.dataset.protocol).any():
            lines.append(
                f"dmpt evaluate will find nothing: under protocol {self.dataset.protocol} no test query has a match "
                "(dmpt check lists them)"
            )
        return lines

    def batches(self, config: Config, epoch: int, start: int, process: int, processes: int) -> Iterator[Batch]:
        """One process's share of an epoch from batch ``start`` on, as many rows of each batch as the others get.

        Decoded, and augmented with ``data.mean`` and ``data.std``, which are known by now; draws depend on ``epoch``.
        """
        data, missing, seed = config.data, config.missing, config.train.seed
        assert data.mean is not None
        assert data.std is not None
        transform = TrainTransform(data, data.mean, data.std, seed)
        labels = [self.labels[record.pid] for record in self.records]
        leave_out = missing.dropout, seed, missing.view == "both"
        dataset = SampleDataset(self.records, transform, self.value_range, labels, *leave_out)
        own = [shard(batch, process, processes) for batch in self.sampler.epoch(epoch)]
        return train_batches(dataset, own, epoch, start=start, workers=data.workers)


def read(config: Config, skip_broken: bool) -> TrainingData:
    """List the data, look at every image once, hold out what ``train.select`` needs.

    Raises:
        UserError: the data are not as they must be; names the file or what to change.
    """
    if config.data.root is None:
        raise UserError("no data: give --data.root, the folder of the data set (docs/data.md shows each layout)")
    incomplete: list[str] = []
    dataset = load_dataset(config.data.layout, config.data.root, config.data, incomplete if skip_broken else None)
    if not dataset.train:
        raise UserError(f"data of layout {dataset.name} have no training images; list them as train")
    used = {split: restrict(listed, config.data.modalities) for split, listed in dataset.splits.items()}
    used["train"] = trained_on(dataset, config.data)
    looks = look_at(dataset, chain(*used.values()))
    records, unreadable = keep_readable(used["train"], looks, skip_broken)
    value_range = settled(config.data.value_range, records, looks)
    notes = in_short(errors_of_training(used | {"train": records}, looks, value_range, dataset.protocol))
    if config.data.value_range == "auto" and value_range != SIXTEEN_BITS:
        notes.insert(0, f"data.value_range, measured on the training images: {shown(value_range)}")
    skipped = [*incomplete, *unreadable]
    if config.heads != "modality" and not any(len(r.paths) == len(config.data.modalities) for r in records):
        raise UserError(
            f"no training sample has all of {', '.join(config.data.modalities)}, so the head on their "
            "concatenation would see none; set data.modalities to those there are, or heads to modality"
        )
    evaluated: Pair | None = None
    valid, protocol, select = 0, dataset.protocol, config.train.select
    if select == "auto":
        count = held_out_count(records, config.train.val_share, protocol)
        select = "val" if count >= _ENOUGH else "last"
        notes.append(
            f"train.select auto: {select}, since train.val_share would hold out {count} identities and {_ENOUGH} are "
            "enough to choose an epoch and thresholds by"
        )
    if select == "val":
        records, held = hold_out(records, config.train.val_share, config.data.split_seed, dataset.protocol)
        evaluated = held, held
        if protocol == "none":  # held out images are searched in themselves, so each query would find itself
            protocol = "same_camera"
    elif select == "test":
        evaluated, more = test_records(dataset, config.data, skip_broken, looks)
        skipped += more
    if evaluated is not None:  # refused now, not after an epoch, when no query has a match
        query, gallery = map(labels_of, evaluated)
        valid = count_valid(query, gallery, protocol)
    labels = pid_to_label(records)
    classes = [labels[record.pid] for record in records]
    sampler = PKSampler(classes, config.train.ids, config.train.instances, config.train.seed)
    judged = select, evaluated, protocol, valid
    return TrainingData(dataset, records, labels, sampler, *judged, skipped, value_range, notes)
