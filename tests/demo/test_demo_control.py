"""The control of ``test_demo.py``, in a file of its own, so that both train at the same time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dmpt.data.layouts import load_dataset
from dmpt.data.records import Dataset
from dmpt.demo.demo import _configure
from dmpt.training.trainer import Trainer
from small_world import SMALL, root, score

__all__ = ["root"]


def relabelled(dataset: Dataset) -> Dataset:
    """Training identities shuffled among the training samples."""
    pids = np.random.default_rng(0).permutation([record.pid for record in dataset.train]).tolist()
    train = tuple(replace(record, pid=pid) for record, pid in zip(dataset.train, pids, strict=True))
    return replace(dataset, train=train)


@pytest.mark.long
def test_wrong_labels_teach_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmpt.training.data.load_dataset", lambda *arguments: relabelled(load_dataset(*arguments)))
    Trainer(_configure(root, "DMPT", SMALL.epochs), tmp_path / "run").fit()
    Trainer(_configure(root, "frozen", 0), tmp_path / "frozen").fit()
    wrong, frozen = score(tmp_path / "run"), score(tmp_path / "frozen")
    print(f"wrong labels {wrong:.1f} frozen {frozen:.1f}")
    assert wrong < frozen
