"""A trained adapter, and the data set that it is judged on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dmpt.adapter import folder as adapter
from dmpt.adapter.files import adapter_folder
from dmpt.base.errors import UserError
from dmpt.base.files import expanded
from dmpt.base.terminal import warn
from dmpt.data.check import keep_readable
from dmpt.data.check.looks import Looks, look_at
from dmpt.data.layouts import load_dataset, passed_over
from dmpt.data.missing import restrict
from dmpt.data.records import Dataset, Record, short
from dmpt.evaluation.beside import why_apart
from dmpt.evaluation.conditions import USUAL, Conditions
from dmpt.method.network import DMPT
from dmpt.runtime.torch import PRECISIONS
from dmpt.settings.config import Config, DataConfig
from dmpt.settings.places import absolute
from dmpt.settings.rules import check


@dataclass(frozen=True, eq=False)
class Opened:
    """A trained adapter and the data set that it is judged on, as they are before an image is read."""

    folder: Path
    network: DMPT  # on the device
    card: adapter.Card  # its settings name the data folder and the loader processes of now, not of training
    step: int  # of training, at which it was saved
    precision: str  # of its computation, a key of ``PRECISIONS``
    dataset: Dataset  # its test split may hold broken images (``test_records``)
    incomplete: list[str]  # what was left out in listing it
    apart: str  # why its numbers are not the run's own; empty where they are

    @property
    def data(self) -> DataConfig:
        """Settings of the images."""
        return self.card.config.data


def open_adapter(run: Path, conditions: Conditions = USUAL) -> Opened:
    """Load an adapter and list its data set.

    Raises:
        UserError: something is missing or does not fit.
    """
    folder = adapter_folder(run, conditions.which)
    card, gpu = adapter.load_card(folder), torch.cuda.is_available()
    precision: str = conditions.precision or card.config.train.precision
    if precision == "fp16" and not gpu:
        if conditions.precision:
            raise UserError("precision fp16 needs a GPU; use --precision bf16 or fp32")
        precision = "fp32"
    now, dataset, incomplete = listed(folder, card, conditions)
    apart = why_apart(card, dataset, _are_others(now, card.config.data))
    network, step = adapter.network_of(folder, card, conditions.weights, PRECISIONS[precision])
    network.to("cuda" if gpu else "cpu")
    card = replace(card, config=replace(card.config, data=now))
    return Opened(folder, network, card, step, precision, dataset, incomplete, apart)


def listed(folder: Path, card: adapter.Card, conditions: Conditions) -> tuple[DataConfig, Dataset, list[str]]:
    """The data set that an adapter is judged on: its settings, its samples, and what was left out in listing it.

    Args:
        folder: of the adapter.
        card: its.
        conditions: where the data are, and which of them.

    Raises:
        UserError: nobody knows where they are, or they cannot be listed.
    """
    now = _data_of_now(folder, card, conditions.data)
    assert now.root is not None
    incomplete: list[str] = []
    dataset = load_dataset(now.layout, now.root, now, incomplete if conditions.skip_broken else None)
    for line in passed_over(dataset):
        warn(line)
    return now, dataset, incomplete


def _are_others(now: DataConfig, then: DataConfig) -> bool:
    """Whether the user named other data than training had; the same folder again are no others."""
    now, then = (absolute(Config(data=replace(data, workers=0))).data for data in (now, then))
    return now != then


def _data_of_now(folder: Path, card: adapter.Card, given: Mapping[str, Any]) -> DataConfig:
    """The settings of the data at hand: those of training, but for what the user gives."""
    data = card.config.data
    if given.get("layout", data.layout) != data.layout:
        data = replace(data, object=None, protocol=None)  # these were the other layout's
    data = replace(data, **given)
    check(Config(data=data))
    if data.root is None:
        raise UserError(
            f"{folder} does not know where its data are on this machine: {card.data.get('name', data.layout)} of "
            f"training fingerprint {short(card.data.get('fingerprint', 'unknown'))}; give --data.root"
        )
    if "root" not in given and not expanded(data.root).is_absolute():  # of a run from before they were kept whole
        here = Path(data.root).absolute()
        if not here.exists():
            raise UserError(
                f"{folder} remembers its data as {data.root}, and from this working directory there are none; "
                "give --data.root"
            )
        warn(f"{folder} remembers its data as {data.root}; taken is {here}; --data.root says otherwise")
    return data


def test_records(
    dataset: Dataset,
    data: DataConfig,
    skip_broken: bool,
    looks: Looks | None = None,  # noqa: PT028
) -> tuple[tuple[Sequence[Record], Sequence[Record]], list[str]]:
    """Query and gallery whose images can be read, and the names that were skipped.

    Args:
        dataset: its query and gallery are used.
        data: their ``modalities`` are used.
        skip_broken: leave out samples with unreadable images.
        looks: at these images, if they have been looked at.

    Raises:
        UserError: there is no test split, it has nothing of the modalities in use, or an image is broken and
            ``skip_broken`` is off.
    """
    if not dataset.query or not dataset.gallery:
        raise UserError(f"data of layout {dataset.name} have no test images to search with and in; list them as test")
    query, gallery = restrict(dataset.query, data.modalities), restrict(dataset.gallery, data.modalities)
    for side, listed in (("query", query), ("gallery", gallery)):
        if not listed:
            used = " or ".join(data.modalities)
            raise UserError(f"data of layout {dataset.name}: no {side} sample has {used}, which the model reads")
    looks = looks or look_at(dataset, [*query, *gallery])
    found, skipped = keep_readable(gallery, looks, skip_broken)
    if dataset.query is dataset.gallery:
        return (found, found), skipped
    searched, more = keep_readable(query, looks, skip_broken)
    return (searched, found), [*skipped, *more]


test_records.__test__ = False  # type: ignore[attr-defined]  # not a test case, whatever pytest makes of the name
