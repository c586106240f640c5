"""What the page of a run says of its scores: from ``calibration.json``, and without one."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dmpt.adapter.calibration import FILE, Calibration
from dmpt.adapter.files import TENSORS
from dmpt.base.files import sha256
from dmpt.pages.charts import Axis, Panel
from dmpt.report.calibration import section
from dmpt.retrieval.calibration import Pairs, Verification
from dmpt.retrieval.rates import rates_of


def evaluation(folder: Path) -> Any:
    pairs = Verification(0.2, 0.8, 7.25, {"10": 90.0, "1": 55.5, "0.1": 20.0})
    return SimpleNamespace(opened=SimpleNamespace(folder=folder), verification=pairs)


def calibrated(folder: Path) -> Calibration:
    generator, count = np.random.default_rng(0), 20
    first, second = np.repeat(np.arange(count), count), np.tile(np.arange(count), count)
    pairs = Pairs(generator.normal(first == second, 0.2), first, second)
    (folder / TENSORS).write_bytes(b"an adapter")
    tables = rates_of(("rgb", "tir"), pairs, draws=5), rates_of((), pairs, pooled=True, draws=5)
    found = Calibration(sha256(folder / TENSORS), "bf16", "msvr310", "2:a:b", "val", "scene", 20, 400, tables)
    found.save(folder)
    return found


def test_its_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    table = calibrated(tmp_path).tables[0]
    text = " ".join(str(section(evaluation(tmp_path)).body).split())
    assert "Pairs are of different scenes." in text
    assert "20 identities that training held out (msvr310, 400 samples), at precision bf16" in text
    assert "strangers score 0.200 in the median and mates 0.800; the equal error rate is 7.2 %" in text
    for limit in table.thresholds:
        assert f"above {limit.threshold:.4f}: {100 * limit.tar:.1f} %" in text
    assert len(table.thresholds) == 2
    assert text.count("so few identities do not carry it") == 4  # 0.1 and 0.01 %, in both rows
    assert "nothing (shared parts) (pairs of all sets)" in text
    assert f"DET. RGB + TIR: equal error rate {100 * table.eer:.1f} %" in text
    assert "threshold for FMR 1 %" in text
    assert text.count('class="chart"') == 2
    assert not re.search(r"nan|inf\b", text)


def test_without_one_it_says_how_to_come_by_one(tmp_path: Path) -> None:
    text = str(section(evaluation(tmp_path)).body)
    assert "not calibrated" in text
    assert "<code>dmpt calibrate</code>" in text
    assert "<svg" not in text
    calibrated(tmp_path)
    (tmp_path / TENSORS).write_bytes(b"another")
    text = str(section(evaluation(tmp_path)).body)
    assert f"{FILE} belongs to another {TENSORS}; remove it, or write it anew with dmpt calibrate" in text


def test_an_axis_may_be_even_in_the_logarithm() -> None:
    panel = Panel(Axis("x", 0.1, 100, log=True), Axis("y", 0, 1), left=0, right=300)
    assert [panel.across(value) for value in (0.1, 1, 10, 100)] == pytest.approx([0, 100, 200, 300])
