"""``calibration.json``: written and read back, what it answers, and whose it refuses to be."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmpt.adapter.calibration import FILE, Calibration, load
from dmpt.adapter.files import TENSORS
from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.retrieval.calibration import Pairs
from dmpt.retrieval.rates import rates_of


def rates(common: tuple[str, ...], seed: int, count: int = 40) -> Any:
    generator = np.random.default_rng(seed)
    first = np.repeat(np.arange(count), count)
    second = np.tile(np.arange(count), count)
    scores = np.float64(np.float32(np.round(generator.normal(first == second, 0.3), 6)))
    return rates_of(common, Pairs(scores, first, second), draws=5)


def calibration(folder: Path) -> Calibration:
    (folder / TENSORS).write_bytes(b"an adapter")
    tables = rates(("rgb", "nir", "tir"), 0), rates(("tir",), 1), rates((), 2)
    return Calibration(sha256(folder / TENSORS), "bf16", "rgbnt201", "2:a:b", "val", "camera", 40, 1600, tables)


def test_it_is_read_back_as_it_was(tmp_path: Path) -> None:
    assert load(tmp_path) is None
    written = calibration(tmp_path)
    path = written.save(tmp_path)
    assert path == tmp_path / FILE
    assert load(tmp_path) == load(tmp_path, "bf16") == written
    assert path.read_bytes() == written.save(tmp_path).read_bytes()
    assert path.stat().st_size < 30_000


def test_what_it_answers(tmp_path: Path) -> None:
    own = calibration(tmp_path)
    complete, thermal, shared = own.tables
    assert own.rates(7) is own.rates(["tir", "rgb", "nir"]) is complete
    assert own.rates(4) is own.rates(("tir",)) is thermal
    assert own.rates(0) is own.rates(()) is shared
    assert own.rates(("rgb",)) is None
    assert own.fmr(0.9, 7) == complete.fmr(0.9)
    assert own.fmr(0.9, 1) is None
    assert own.threshold(("tir",), 0.1) == thermal.threshold(0.1)
    assert own.false_matches(0.9, 7, 1000) == 1000 * complete.fmr(0.9)
    assert own.false_matches(0.9, 1, 1000) is None
    limit = own.fpir_threshold(7, 20, 0.2)
    assert (1 - (1 - complete.fmr(limit + 1e-6)) ** 20) <= 0.2 + 1e-12
    assert limit > own.threshold(7, 0.1)
    assert own.fpir_threshold(7, 1, 0.1) == own.threshold(7, 0.1)


def test_what_it_cannot_answer(tmp_path: Path) -> None:
    own = calibration(tmp_path)
    with pytest.raises(UserError, match="scores over rgb and nir are not calibrated; calibrate on samples that have"):
        own.threshold(("rgb", "nir"), 0.1)
    with pytest.raises(UserError, match="with nothing in common are not calibrated; that takes a model with a shared"):
        replace(own, tables=tuple(table for table in own.tables if table.common)).threshold((), 0.1)
    with pytest.raises(
        UserError, match=r"^40 calibration identities cannot carry FMR 0.01 %; the least over tir is FMR 0\.128 %; ask"
    ):
        own.threshold(("tir",), 0.0001)
    with pytest.raises(UserError, match=r"cannot carry FPIR 1 % among 1000 strangers, which is FMR 0\.00101 %"):
        own.fpir_threshold((), 1000, 0.01)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[str], str]:
    def rewrite(text: str) -> str:
        content = json.loads(text)
        change(content)
        return json.dumps(content)

    return rewrite


@pytest.mark.parametrize(
    ("rewrite", "said"),
    [
        (changed(lambda c: c.update(format="dmpt-calibration/9")), "has format 'dmpt-calibration/9'; this version"),
        (changed(lambda c: c.pop("precision")), "lacks the key 'precision'"),
        (changed(lambda c: c.update(precision="int3")), 'precision is "int3"; it must be fp32, bf16, fp16 or int8'),
        (changed(lambda c: c.update(identities="many")), 'identities is "many"; it must be'),
        (changed(lambda c: c.update(tables={})), "tables is no list"),
        (changed(lambda c: c.update(tables=[1])), r"tables\[0\] has no thresholds"),
        (changed(lambda c: c["tables"].append(c["tables"][0])), "name a set of modalities twice"),
        (changed(lambda c: c["tables"][0].update(common=["tir", "rgb"])), "or one that there is not"),
        (changed(lambda c: c["tables"][0].update(common=["xray"])), "or one that there is not"),
        (changed(lambda c: c["tables"][1].update(eer=2)), r"tables\[1\].eer is 2; it must be a number from 0 to 1"),
        (changed(lambda c: c["tables"][1].update(more=2)), r"has no tables\[1\].more"),
        (changed(lambda c: c["tables"][1].pop("eer")), r"tables\[1\]: lacks eer"),
        (changed(lambda c: c["tables"][1]["curve"].update(scores=[1, 1])), r"tables\[1\]: the curve has no points, or"),
        (changed(lambda c: c["tables"][0]["thresholds"][0].update(tar="x")), r"thresholds.tar is \"x\"; it must be"),
        (lambda text: text[:-20], "cannot be read"),
        (lambda text: "[1]", "holds no keys and values"),
        (lambda text: text.replace('"eer": ', '"eer": NaN, "x": ', 1), "it holds NaN"),
        (lambda text: text.replace('"eer": ', '"eer": 1e999, "x": ', 1), "it holds 1e999"),
        (lambda text: "[" * 100_000, "cannot be read"),
        (lambda text: " " * (9 << 20), r"cannot be read \(9437184 bytes\)"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, rewrite: Callable[[str], str], said: str) -> None:
    path = calibration(tmp_path).save(tmp_path)
    path.write_text(rewrite(path.read_text()))
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("write it anew with dmpt calibrate")


def test_it_belongs_to_one_adapter_and_one_precision(tmp_path: Path) -> None:
    calibration(tmp_path).save(tmp_path)
    with pytest.raises(UserError, match="is for precision bf16, not fp32; compute in that, or write it anew"):
        load(tmp_path, "fp32")
    (tmp_path / TENSORS).write_bytes(b"another adapter")
    with pytest.raises(UserError, match=r"belongs to another adapter.safetensors; remove it, or write it anew"):
        load(tmp_path)
