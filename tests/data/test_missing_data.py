"""Records and batches that lack modalities: cut to some, dropped at random, and what a batch says of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmpt.data.layouts import load_dataset
from dmpt.data.loader import Batch, SampleDataset, train_batches
from dmpt.data.missing import drop, restrict
from dmpt.data.records import Record
from dmpt.data.transforms import TestTransform
from dmpt.settings.modalities import MODALITIES

DROPPED: dict[str, Any] = {"dropout": 0.5, "seed": 3}


def record(*modalities: str, pid: int = 1) -> Record:
    return Record({m: Path(f"{pid}_{m}.jpg") for m in modalities}, pid, 1)


def test_restricting_cuts_paths_and_leaves_out_what_is_left_with_none() -> None:
    records = [record("rgb", "nir", "tir", pid=1), record("tir", pid=2), record("rgb", "tir", pid=3)]
    assert restrict(records, MODALITIES) is records
    kept = restrict(records, ("rgb", "nir"))
    assert [(r.pid, tuple(r.paths)) for r in kept] == [(1, ("rgb", "nir")), (3, ("rgb",))]


def test_dropout_is_a_pure_function_that_keeps_one() -> None:
    whole, pair = record(*MODALITIES), record("nir", "tir")
    assert drop(whole, 0.0, 0, 0, 0) is whole
    drawn = [drop(whole, 0.3, 0, 1, i) for i in range(2000)]
    assert drawn == [drop(whole, 0.3, 0, 1, i) for i in range(2000)]
    assert drawn != [drop(whole, 0.3, 0, 2, i) for i in range(2000)]
    assert drawn != [drop(whole, 0.3, 1, 1, i) for i in range(2000)]
    assert {len(r.paths) for r in drawn} == {1, 2, 3}
    for modality in MODALITIES:  # dropped with 0.3, but for a third of the 0.3³ in which all would go
        gone = sum(modality not in r.paths for r in drawn) / len(drawn)
        assert gone == pytest.approx(0.3 - 0.3**3 / 3, abs=0.03)
    lone = [next(iter(drop(whole, 1.0, 0, 0, i).paths)) for i in range(900)]
    assert all(lone.count(m) == pytest.approx(300, abs=60) for m in MODALITIES)
    assert all(len(drop(pair, 0.5, 0, 0, i).paths) >= 1 for i in range(100))
    assert set().union(*(drop(pair, 0.5, 0, 0, i).paths for i in range(100))) == {"nir", "tir"}


def batches_of(data: Path, **options: Any) -> list[Batch]:
    records = list(load_dataset("rgbnt201", data).train)
    records[1] = replace(records[1], paths={"nir": records[1].paths["nir"]})
    transform = TestTransform((32, 16), (0.5,) * 3, (0.5,) * 3)
    workers = options.pop("workers", 0)
    dataset = SampleDataset(records, transform, (0, 65535), [0] * len(records), **options)
    return list(train_batches(dataset, [[0, 1, 2], [3, 4, 5]], 1, workers=workers))


def test_batches_say_what_is_present_and_absent_images_are_zeros(data: Path) -> None:
    first, second = batches_of(data)
    assert first.present.tolist() == [[True, False, True], [True, True, True], [True, False, True]]
    assert first.images.shape == (3, 3, 3, 32, 16)
    assert not first.images[~first.present].any()
    assert second.present.all()
    dropped, again = batches_of(data, dropout=0.5, seed=3), batches_of(data, dropout=0.5, seed=3, workers=2)
    for whole, one, two in zip((first, second), dropped, again, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.present, two.present)
        assert one.present.any(dim=0).all()
        assert torch.equal(one.images[one.present], whole.images[one.present])  # what stays, stays as it was
    assert not all(batch.present.all() for batch in dropped)


def test_whole_samples_come_with_the_subset_that_dropout_leaves(data: Path) -> None:
    whole, dropped, both = (batches_of(data, **form) for form in ({}, DROPPED, {**DROPPED, "whole": True}))
    for one, left, batch in zip(whole, dropped, both, strict=True):
        assert torch.equal(batch.images, one.images)
        assert torch.equal(batch.present, one.present)
        assert torch.equal(batch.subset, left.present)
        assert torch.equal(one.subset, one.present)
        assert torch.equal(left.subset, left.present)
    assert not all(torch.equal(batch.subset, batch.present) for batch in both)


def test_batches_drop_what_their_epoch_and_index_say(data: Path) -> None:
    records = list(load_dataset("rgbnt201", data).train)
    records[1] = replace(records[1], paths={"nir": records[1].paths["nir"]})
    present = torch.cat([batch.present for batch in batches_of(data, **DROPPED)], dim=1)
    for index in range(6):
        left = drop(records[index], 0.5, 3, 1, index).paths  # batches_of draws epoch 1
        assert present[:, index].tolist() == [modality in left for modality in MODALITIES]
