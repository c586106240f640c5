"""``dmpt calibrate``, what training leaves of it, and what a loaded model says by it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dmpt
from dmpt.adapter.calibration import COHORT, FILE, Calibration, load
from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.data.records import Record, labels_of
from dmpt.data.split import hold_out
from dmpt.evaluation.calibrate import calibrate
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.evaluation.sights import Sights, between_cameras
from dmpt.retrieval.calibration import cross_camera_pairs, thresholds
from dmpt.retrieval.embeddings import Embeddings
from dmpt.retrieval.rates import Rates
from dmpt.retrieval.scores import between
from dmpt.retrieval.snorm import snorm, statistics
from dmpt.settings.modalities import MODALITIES
from dmpt.training.train import train
from dmpt.training.trainer import Trainer
from runs import dying, fit, settings, toy, with_

HELD_OUT: dict[str, Any] = {"epochs": 2, "select": "val", "val_share": 0.5}
FP32 = Conditions(precision="fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("world"), train_ids=14, test_ids=6)


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    train(with_(settings(world, **HELD_OUT), missing={"dropout": 0.3}), folder)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def calibration(run: Path) -> Calibration:
    found = load(run / "best")
    assert found is not None
    return found


def test_training_leaves_what_the_command_writes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = (run / "best" / FILE).read_bytes()
    main(["calibrate", str(run)])
    assert (run / "best" / FILE).read_bytes() == left
    said = capsys.readouterr().out
    found = calibration(run)
    assert (found.identities, found.items, found.split, found.views, found.precision) == (
        7,
        42,
        "val",
        "camera",
        "fp32",
    )
    assert [table.common for table in found.tables] == [
        *(kept for size in (3, 2, 1) for kept in combinations(MODALITIES, size)),
        (),
    ]
    assert "rgbnt201: 7 identities (held out of training), 42 samples; pairs are of different cameras" in said
    assert "so few carry 4.8 % or more" in said
    assert not (run / "last" / FILE).exists()


def test_complete_samples_have_the_thresholds_of_their_pairs(run: Path, world: Path) -> None:
    """Of the identities that training held out, embedded as anybody's pictures are."""
    _, held = hold_out(load_dataset("rgbnt201", world).train, 0.5, 0)
    items = dmpt.load(run).embed(**{name: [record.paths[name] for record in held] for name in MODALITIES})
    pairs = cross_camera_pairs(items, labels_of(held))
    table = calibration(run).tables[0]
    assert (table.mates, table.strangers, table.couples) == (len(pairs.mates), len(pairs.strangers), 21)
    for mine, theirs in zip(table.thresholds, thresholds(pairs), strict=True):
        assert asdict(mine) == pytest.approx(asdict(theirs), abs=2e-6)


def records_of(identities: int, each: int, lacking: dict[int, tuple[str, ...]] | None = None) -> list[Record]:
    paths = {name: Path(name, "x.png") for name in MODALITIES}
    return [
        Record({m: p for m, p in paths.items() if m not in (lacking or {}).get(pid, ())}, pid, number % 3)
        for pid in range(identities)
        for number in range(each)
    ]


def embedded(records: Sequence[Record], shared: bool = True) -> Embeddings:
    """Made-up features of an identity, another for each subset of modalities that is there."""
    rows, there, common = [], [], []
    for number, record in enumerate(records):
        kept = np.array([name in record.paths for name in MODALITIES])
        centre = np.random.default_rng(record.pid).normal(size=(3, 6))
        noise = np.random.default_rng([record.pid, record.camera, number, int(kept @ (1, 2, 4))]).normal(size=(3, 6))
        feature = (centre + noise) * kept[:, None]
        rows.append(feature / np.linalg.norm(feature))
        there.append(kept)
        common.append(feature.sum(axis=0) / np.linalg.norm(feature.sum(axis=0)))
    own = np.array(common, np.float32) if shared else None
    table = np.tile(np.array([1, 0], np.float32), (8, 1)) if shared else None
    return Embeddings(np.array(rows, np.float32), np.array(there), own, table)


@pytest.mark.parametrize("common", [("rgb", "nir", "tir"), ("rgb", "tir"), ("nir",), ()])
def test_every_pair_is_scored_once_in_one_of_the_ways_of_its_set(common: tuple[str, ...]) -> None:
    records = records_of(6, 6)
    sights = Sights.of(records, MODALITIES, "camera", embedded)
    scores, before, after = sights.met(common)
    cameras = labels_of(records).cameras
    expected = {(i, j) for i in range(36) for j in range(i + 1, 36) if cameras[i] != cameras[j]}
    assert len(scores) == len(expected)
    assert {*zip(before.tolist(), after.tolist(), strict=True)} == expected
    subsets = [kept for size in (1, 2, 3) for kept in combinations(MODALITIES, size)]
    used = set()
    for score, i, j in zip(scores, before, after, strict=True):
        ways = []
        for one in subsets:
            for other in subsets:
                if {*one} & {*other} == {*common}:
                    a, b = sights.views[one].items, sights.views[other].items
                    kept = [MODALITIES.index(name) for name in common]
                    x, y = (
                        (a.features[i][kept].ravel(), b.features[j][kept].ravel())
                        if common
                        else (a.common_space[i], b.common_space[j])
                    )
                    ways.append(float(x @ y / np.linalg.norm(x) / np.linalg.norm(y)))
        near = int(np.argmin(np.abs(np.array(ways) - score)))
        assert ways[near] == pytest.approx(score, abs=2e-6)
        used.add(near)
    assert len(used) == {3: 1, 2: 3, 1: 9, 0: 12}[len(common)]


def test_pairs_are_of_two_scenes_where_the_protocol_looks_at_these() -> None:
    records = [replace(record, scene=row % 2) for row, record in enumerate(records_of(6, 4))]
    _, before, after = Sights.of(records, MODALITIES, "scene", embedded).met(("rgb",))
    expected = {(i, j) for i in range(24) for j in range(i + 1, 24) if i % 2 != j % 2}
    assert {*zip(before.tolist(), after.tolist(), strict=True)} == expected


def test_a_set_with_few_identities_takes_the_pairs_of_all() -> None:
    """Of twenty identities fifteen were never seen by the thermal camera."""
    records = records_of(20, 4, dict.fromkeys(range(15), ("tir",)))
    tables = {table.common: table for table in Sights.of(records, MODALITIES, "camera", embedded).tables()}
    assert {common: table.pooled for common, table in tables.items()} == {
        ("rgb", "nir", "tir"): True,
        ("rgb", "nir"): False,
        ("rgb", "tir"): True,
        ("nir", "tir"): True,
        ("rgb",): False,
        ("nir",): False,
        ("tir",): True,
        (): False,
    }
    assert tables["tir",].identities == tables["rgb",].identities == 20
    assert tables["tir",].strangers == tables["rgb", "tir"].strangers > tables["rgb",].strangers
    alone = Sights.of(records, MODALITIES, "camera", lambda samples: embedded(samples, shared=False)).tables()
    assert not any(table.pooled for table in alone)  # nothing has brought the sets to one scale
    assert {table.common: table.identities for table in alone}["tir",] == 5


def test_rates_between_cameras_are_counts() -> None:
    records = records_of(6, 6)
    sights = Sights.of(records, MODALITIES, "camera", embedded)
    scores, before, after = sights.met(MODALITIES)
    cameras, pids = labels_of(records).cameras, labels_of(records).pids
    limit = float(np.quantile(scores, 0.8))
    found = between_cameras(sights, MODALITIES, limit)
    assert [pair.cameras for pair in found] == [(0, 1), (0, 2), (1, 2)]
    for pair in found:
        here = [{cameras[i], cameras[j]} == {*pair.cameras} for i, j in zip(before, after, strict=True)]
        same = pids[before] == pids[after]
        assert pair.strangers == np.sum(here & ~same)
        assert pair.fmr == pytest.approx(np.mean(scores[here & ~same] > limit))
        assert pair.fnmr == pytest.approx(np.mean(scores[here & same] <= limit))


def test_so_few_identities_fail_no_training(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(settings(world, **{**HELD_OUT, "epochs": 1, "val_share": 0.2}), tmp_path / "run")
    said = capsys.readouterr().err
    assert "not calibrated: calibration takes 5 identities or more, and there are 3; give more" in said
    assert not list(tmp_path.rglob(FILE))


@pytest.mark.long
def test_a_run_that_was_stopped_ends_with_the_same_file(trained: Path, world: Path, tmp_path: Path) -> None:
    config = with_(settings(world, **HELD_OUT), missing={"dropout": 0.3})
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(config, tmp_path / "run"), 3).fit()
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "best" / FILE).read_bytes() == (trained / "best" / FILE).read_bytes()


@pytest.mark.long
def test_other_identities_when_they_are_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = toy(tmp_path / "other", train_ids=4, test_ids=5, seed=9)
    assert calibrate(run, replace(FP32, root=str(other))).calibration.split == "all"
    found = calibrate(run, replace(FP32, root=str(other)), split="test").calibration
    assert (found.split, found.identities) == ("test", 5)
    with pytest.raises(UserError, match="--split val is what training held out of its own data; of others give test"):
        calibrate(run, replace(FP32, root=str(other)), split="val")
    capsys.readouterr()
    assert calibrate(run, split="test").calibration.identities == 6
    assert "the identities of the test split, whose mAP is printed beside" in capsys.readouterr().err
    assert calibrate(run, split="train").calibration.identities == 7
    assert "training has seen: thresholds may be too low for others" in capsys.readouterr().err


def test_no_identities_were_held_out(data: Path, tmp_path: Path) -> None:
    fit(settings(data, epochs=0), tmp_path / "run")
    with pytest.raises(
        UserError, match=r"training held no identities out \(train.select last\); give --data.root of ot"
    ):
        calibrate(tmp_path / "run")
    with pytest.raises(UserError, match="calibration takes 5 identities or more, and there are 4"):
        calibrate(tmp_path / "run", split="test")
    with pytest.raises(UserError, match=r"copy its folder .*tiny and calibrate the copy") as refused:
        calibrate("package:tiny")
    folder = str(refused.value).partition("copy its folder ")[2].partition(" and calibrate")[0]
    assert (Path(folder) / FILE).exists()


def test_by_camera_and_as_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["calibrate", str(run), "--by", "camera"])
    assert "between cameras, at the threshold for FMR 10 %" in capsys.readouterr().out
    main(["calibrate", str(run), "--by", "camera", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["by_camera"]["fmr"] == 0.1
    assert [pair["cameras"] for pair in found["by_camera"]["pairs"]] == [[1, 2]]
    assert found["tables"] == json.loads((run / "best" / FILE).read_text())["tables"]


def test_a_calibration_is_replaced_at_its_precision_and_a_line_says_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "best" / FILE
    main(["calibrate", str(run), "--precision", "bf16"])
    line = f"{path} is replaced: before 7 identities at precision fp32, now 7 identities at precision bf16\n"
    assert line in capsys.readouterr().err
    main(["calibrate", str(run), "--split", "test", "--json"])
    assert calibration(run).precision == "bf16"  # training was in fp32
    said = capsys.readouterr()
    assert "before 7 identities at precision bf16, now 6 identities at precision bf16\n" in said.err
    assert json.loads(said.out)["precision"] == "bf16"
    path.write_text("{}")  # damaged: what the command mends
    main(["calibrate", str(run)])
    assert "is replaced" not in capsys.readouterr().err
    assert calibration(run).precision == "fp32"


def test_a_model_says_how_sure_it_is(run: Path) -> None:
    model = dmpt.load(run)
    assert model.calibration == calibration(run)
    assert model.precision == "fp32"
    files = evaluate(run, FP32).gallery[:2]
    one, other = (model.embed(**{name: record.paths[name] for name in ("rgb", "tir")}) for record in files)
    verdict = model.compare(one, other, fmr=0.1)
    assert verdict.fmr == calibration(run).fmr(verdict.score, ("rgb", "tir"))
    assert verdict.same == (verdict.score > calibration(run).threshold(("rgb", "tir"), 0.1))
    assert model.compare(one, other).same is None  # seven people carry no 1 %
    assert model.compare(one, other).fmr == verdict.fmr


def test_another_precision_has_no_calibration_and_another_adapter_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmpt.load(run, precision="bf16").calibration is None
    assert "is calibrated at precision fp32; at bf16 its scores are not calibrated" in capsys.readouterr().err
    assert dmpt.load(run / "last").calibration is None
    own = json.loads((run / "best" / FILE).read_text()) | {"adapter": "0" * 64}
    (run / "best" / FILE).write_text(json.dumps(own))
    with pytest.raises(
        UserError, match=r"belongs to another adapter.safetensors; remove it, or write it anew with dmpt"
    ):
        dmpt.load(run)


def test_normalised_scores(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = calibration(run)
    main(["calibrate", str(run), "--snorm"])
    assert "normalised by 42 samples of training" in capsys.readouterr().out
    found = calibration(run)
    assert found.tables == plain.tables
    assert len(found.normalised) == 8
    assert found.cohort is not None
    assert found.cohort.features.shape == (42, 3, 48)
    model = dmpt.load(run)
    samples = evaluate(run, FP32).gallery[:5]
    several = model.embed(**{name: [record.paths[name] for record in samples] for name in MODALITIES})
    fmr = found.fmr_between(several, several, between(several, several))
    known = statistics(several, found.cohort)
    scores = snorm(model.similarity(several, several), np.full((5, 5), 7), known, known)
    table: Rates = found.normalised[0]
    assert fmr.tolist() == [[table.fmr(score) for score in row] for row in scores.tolist()]
    verdict = model.compare(several[np.array([0])], several[np.array([1])], fmr=0.1)
    assert verdict.fmr == fmr[0, 1]
    assert verdict.same == (fmr[0, 1] <= 0.1)
    (run / "best" / COHORT).write_bytes(b"another")
    with pytest.raises(UserError, match=r"cohort.safetensors beside it is missing, or another one; write it anew"):
        load(run / "best")
    main(["calibrate", str(run)])
    assert not (run / "best" / COHORT).exists()
    assert calibration(run) == plain


def test_an_evaluation_says_what_the_thresholds_come_to(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    assert "calibrated for 10 % of strangers: " in capsys.readouterr().out
    found = evaluate(run).calibrated
    assert found is not None
    limit = calibration(run).threshold(MODALITIES, 0.1)
    assert [(each.asked, each.threshold) for each in found] == [(0.1, limit)]
    assert evaluate(run, replace(FP32, precision="bf16")).calibrated is None
    assert evaluate(run, replace(FP32, which="last")).calibrated is None
    whole = evaluate(run)
    lacking = replace(whole.seen.gallery, present=whole.seen.gallery.present & [True, True, False])
    assert replace(whole, seen=whole.seen._replace(query=lacking, gallery=lacking)).calibrated is None
    main(["calibrate", str(run), "--split", "test"])
    assert evaluate(run).calibrated is None  # of the same samples
