"""``dmpt study``: on toy data and a tiny random tower, run in this process."""

import csv
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from dmpt.base.errors import Diverged, UserError
from dmpt.base.terminal import console
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.data.records import names_in
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.evaluation.missing import square
from dmpt.paper.cells import cells
from dmpt.paper.cells import settings as paper_settings
from dmpt.paper.parameters import count_parameters
from dmpt.retrieval.statistics import holm
from dmpt.settings.config import Config
from dmpt.settings.rules import check
from dmpt.settings.shipped import folder
from dmpt.settings.values import dotted, flatten
from dmpt.study.board import _THREADS, execute, launch, log_of
from dmpt.study.data import Data, find_data
from dmpt.study.definition import TRIAL, Study, find, slug, studies
from dmpt.study.one_run import work
from dmpt.study.plan import Plan, Task, best, estimate, make
from dmpt.study.results import ENDING, Kept, Result, _packed, backbone_name, content_of, keep, read
from dmpt.study.rows import config_of, runnable, settings_of
from dmpt.study.run import _with_data, dry_run, study
from dmpt.study.table import grid_lines, write
from dmpt.synthetic.setup import PLAIN, Setup
from dmpt.training.state import STATE
from dmpt.training.trainer import Trainer
from runs import dmpt, is_running, settings, toy


class Done:
    """A task that was run to its end before anybody asked."""

    def __init__(self, task: Task):
        self.code = 0
        try:
            work(task.config, task.out, task.missing, task.tested)
        except UserError as error:
            task.out.parent.mkdir(parents=True, exist_ok=True)
            log_of(task).write_text(f"error: {error}\n")
            self.code = 2

    def poll(self) -> int:
        return self.code

    def send_signal(self, sig: int, /) -> None:
        raise AssertionError

    def wait(self) -> int:
        return self.code


class Counted:
    """Runs tasks and remembers them."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __call__(self, task: Task) -> Done:
        self.tasks.append(task)
        return Done(task)

    @property
    def names(self) -> list[str]:
        return ["/".join(task.place.parts[1:]) for task in self.tasks]


def write_study(path: Path, **changes: Any) -> Path:
    content = {
        "caption": "with and without interaction",
        "mirrors": "Table 4",
        "reference": "one layer",
        "data": "toy",
        "seeds": 2,
        "rows": [{"name": "none", "change": {"bind.depth": 0}}, {"name": "one layer", "change": {"bind.depth": 1}}],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


class Place:
    """A study on the toy set, with folders of its own."""

    def __init__(self, root: Path, data: Path, **changes: Any):
        self.study: Study = find(str(write_study(root / "depth.yaml", **changes)))
        self.base, self.root = config_of(flatten(asdict(settings(data, epochs=2))) | self.study.base), root
        self.out, self.results = root / "runs", root / "results" / "depth"
        self.launch = Counted()

    @property
    def file(self) -> Path:
        return self.results / f"toy{ENDING}"

    @property
    def found(self) -> list[Result]:
        return list(read(self.file).results)

    def result(self, row: str, seed: int) -> Result:
        (result,) = (result for result in self.found if (result.row, result.seed) == (row, seed))
        return result

    def change(self, edit: Callable[[Result], Result | None]) -> None:
        """Each result as ``edit`` has it; None = it is gone."""
        kept = read(self.file)
        edited = [edit(result) for result in kept.results]
        self.file.write_bytes(_packed(replace(kept, results=tuple(result for result in edited if result))))

    def run(self, base: Config | None = None, **options: Any) -> Path:
        base = base or self.base
        toy_data = Data("toy", flatten(asdict(base)))
        self.launch.tasks.clear()
        options = {"out": self.out, "results": self.results, "launch": self.launch} | options
        return study(self.study, toy_data, base, **options)

    def plan(self, **options: Any) -> Plan:
        options = {"seeds": 2, "only": (), "out": self.out} | options
        return make(self.study, "toy", self.base, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Place:
    place = Place(tmp_path_factory.mktemp("study"), data)
    place.run()
    return place


def lines(results: Path) -> list[dict[str, str]]:
    with (results / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def copy_of(place: Place, root: Path) -> Place:
    shutil.copytree(place.root, root, dirs_exist_ok=True)
    other = Place.__new__(Place)
    other.study, other.base, other.root = find(str(root / "depth.yaml")), place.base, root
    other.out, other.results, other.launch = root / "runs", root / "results" / "depth", Counted()
    return other


def test_a_table_with_every_seed(finished: Place) -> None:
    found = lines(finished.results)
    assert [(line["row"], line["seed"]) for line in found] == [
        *(("none", "0"), ("none", "1")),
        *(("one layer", "0"), ("one layer", "1")),
    ]
    for line in found:
        metrics = json.loads(
            (finished.out / "toy" / slug(line["row"]) / f"seed-{line['seed']}" / "metrics.json").read_text()
        )
        assert float(line["mAP"]) == pytest.approx(metrics["mAP"], abs=1e-3)
        assert float(line["rank1"]) == pytest.approx(metrics["rank1"], abs=1e-3)
        own = [float(other["mAP"]) for other in found if other["row"] == line["row"]]
        assert float(line["mAP_mean"]) == pytest.approx(sum(own) / 2, abs=1e-3)
        assert (float(line["mAP_min"]), float(line["mAP_max"])) == (min(own), max(own))
        assert 0 < float(line["seconds_per_step"]) < float(line["seconds_per_epoch"])
    difference = float(found[0]["mAP_mean"]) - float(found[2]["mAP_mean"])
    assert float(found[0]["difference"]) == pytest.approx(difference, abs=2e-3)
    assert float(found[0]["low"]) <= float(found[0]["high"])
    assert found[0]["p"] == found[0]["p_holm"]  # a family of one
    assert found[2]["p"] == ""  # the reference itself
    assert int(found[0]["trained"]) < int(found[2]["trained"])
    text = (finished.results / "table.md").read_text()
    assert "| one layer |" in text
    assert "| reference |" in text
    assert "| s / step |" in text
    assert "Rows and learning rates of this study on this data: 2" in text
    assert (finished.results / "toy.svg").read_text().count("<circle") == 8


def test_what_is_kept_is_small_and_knows_no_machine(finished: Place, data: Path) -> None:
    names = {"table.md", "table.csv", "provenance.json", "toy.svg", "toy.jsonl.gz", ".lock"}
    assert {path.name for path in finished.results.iterdir()} == names
    everything = gzip.decompress(finished.file.read_bytes()).decode()
    everything += "".join((finished.results / name).read_text() for name in names - {"toy.jsonl.gz"})
    assert str(data) not in everything
    assert str(finished.out) not in everything
    result = finished.result("one layer", 0)
    pids, values = result.queries()
    assert values.mean() == pytest.approx(result.numbers["mAP"], abs=1e-3)
    assert len(set(pids)) == 4


def test_results_are_not_run_again_even_without_their_runs(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = copy_of(finished, tmp_path)
    shutil.rmtree(place.out)
    place.run(seeds=3)
    assert place.launch.names == ["none/seed-2", "one-layer/seed-2"]
    told = re.findall(r"^(\d of \d): toy, ([^,]*)", capsys.readouterr().err, flags=re.MULTILINE)
    assert told == [("5 of 6", "none"), ("6 of 6", "one layer")]
    assert [line["seed"] for line in lines(place.results)] == ["0", "1", "2"] * 2
    place.run()
    assert place.launch.names == []


def test_what_another_study_has_run_is_found(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    assert finished.base.data.root is not None
    rows = [{"name": "base"}, {"name": "S = 2", "change": {"semantic.length": 2}}, {"name": "again", "change": {}}]
    rows[2]["change"] = {"semantic.length": 2, "data.workers": 0, "train.save_every": 7}  # no other numbers
    other = Place(tmp_path / "other", Path(finished.base.data.root), reference="base", rows=rows)
    other.results = place.results.parent / "length"
    other.run(seeds=3)
    assert other.launch.names == ["base/seed-2", "s-2/seed-0", "s-2/seed-1", "s-2/seed-2"]
    own, twin = other.result("base", 0), place.result("one layer", 0)
    assert own.study["taken_from"] == "depth/toy/one-layer/seed-0"
    cells = [line.split(" | ") for line in (other.results / "table.md").read_text().splitlines() if "| " in line]
    at = cells[0].index("s / step")
    assert [bool(line[at]) for line in cells[1:]] == [True, True, True]  # seeds of its own
    assert [bool(line["seconds_per_step"]) for line in lines(other.results)] == [False] * 2 + [True] * 7
    assert own.numbers["mAP"] == twin.numbers["mAP"]
    assert (own.queries()[1] == twin.queries()[1]).all()
    other.run(seeds=3)
    assert other.launch.names == []


def test_results_from_before_fingerprints_knew_sizes_stay(finished: Place, data: Path, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    place.change(lambda result: result.as_of(data_fingerprint=names_in(result.study["data_fingerprint"])))
    place.run(seeds=3)
    assert place.launch.names == ["none/seed-2", "one-layer/seed-2"]
    again = Place(tmp_path / "again", data)
    again.results = place.results.parent / "again"
    again.run(seeds=1)
    assert again.launch.names == []
    recoded = shutil.copytree(data, tmp_path / "recoded")
    for image in recoded.rglob("*.jpg"):
        Image.open(image).save(image, quality=50)
    others = replace(place.base, data=replace(place.base.data, root=str(recoded)))
    place.run(others)  # two sets that the names alone do not tell apart
    assert place.launch.names == []
    place.run(others, seeds=3, out=tmp_path / "elsewhere")
    assert place.launch.names == ["none/seed-2", "one-layer/seed-2"]
    assert len(place.found) == 8  # those of the other data stay
    assert [line["seed"] for line in lines(place.results)] == ["0", "1", "2"] * 2


def test_a_study_of_time_runs_all_itself_and_maps_it(finished: Place, tmp_path: Path) -> None:
    """What another study ran shared the machine otherwise, or not at all."""
    place = copy_of(finished, tmp_path / "c")
    assert finished.base.data.root is not None
    other = Place(tmp_path / "other", Path(finished.base.data.root), timed=True)
    other.results = place.results.parent / "time"
    assert dry_run(other.plan(), other.results)[-1].startswith("4 runs")
    other.run(rows=["none"])
    picture = (other.results / "toy-time.svg").read_text()
    (said,) = re.findall(r"<title>(none: mAP [^<]*)</title>", picture)
    (line, *_) = lines(other.results)
    shown = min(float(line["seconds_per_step"]) for line in lines(other.results))
    before, seconds = said.rsplit(", ", 1)
    assert before == f"none: mAP {float(line['mAP_mean']):.1f}"
    assert float(seconds.removesuffix(" s")) == pytest.approx(shown, abs=6e-4)  # the table is rounded before it is
    assert other.launch.names == ["none/seed-0", "none/seed-1"]
    shown = "![toy, mAP against time: a picture that `dmpt study depth --table` draws](toy-time.svg)"
    assert shown in (other.results / "table.md").read_text()
    other.run()
    assert re.findall(r'class="number"[^>]*>(\d+)<', (other.results / "toy-time.svg").read_text()) == ["1", "2"]
    assert not (finished.results / "toy-time.svg").exists()


@pytest.mark.parametrize("changed", ["data_fingerprint", "backbone_sha256"])
def test_a_run_on_other_data_or_weights_is_another(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    sha256 = finished.found[0].study["backbone_sha256"]  # as of a file; toys have random weights
    monkeypatch.setattr("dmpt.study.run.hashes", lambda configs: {backbone_name(c): sha256 for c in configs})
    place = copy_of(finished, tmp_path / "c")
    place.change(lambda result: result.as_of(**{changed: "another"}))
    place.run(seeds=1, rows=["none"])
    assert place.launch.names == ["none/seed-0"]
    assert len(place.found) == 5
    assert [(line["row"], line["seed"]) for line in lines(place.results)] == [("none", "0")]


@pytest.mark.parametrize(
    ("key", "value"),
    [("backbone.weights", "other.safetensors"), ("text.file", "other.safetensors"), ("data.mean", [0.1, 0.2, 0.3])],
)
def test_a_run_with_other_files_or_normalisation_is_another(
    finished: Place, tmp_path: Path, key: str, value: Any
) -> None:
    place = copy_of(finished, tmp_path / "c")
    tests = place.plan().tests({})
    assert all(task.find(place.found) for task in tests)
    place.change(lambda result: replace(result, config=result.config | {key: value}))
    assert not any(task.find(place.found) for task in tests)


def test_what_training_filled_in_is_what_nobody_set(finished: Place) -> None:
    asked = dotted(finished.base)
    filled = asked | {"data.mean": [0.5, 0.5, 0.5], "data.std": [0.5, 0.5, 0.5]}
    assert content_of(filled) == content_of(asked)
    assert content_of(filled | {"data.std": [1.0, 1.0, 1.0]}) != content_of(asked)


def test_a_renamed_row_keeps_its_results(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    rows = [{"name": "None", "change": {"bind.depth": 0}}, {"name": "one layer", "change": {"bind.depth": 1}}]
    place.study = find(str(write_study(place.root / "depth.yaml", rows=rows)))
    place.run()
    assert place.launch.names == []
    assert {line["row"] for line in lines(place.results)} == {"None", "one layer"}


def test_a_table_shows_what_was_asked_for_last_and_the_rest_stays(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    before = (place.results / "table.csv").read_text()
    other = replace(place.base, data=replace(place.base.data, flip=0.25))
    with pytest.raises(UserError, match=r"runs/toy/none/seed-0: data.flip was 0.5, now it is 0.25; go on with"):
        place.run(other)
    place.run(other, out=tmp_path / "elsewhere", rows=["none"])
    assert place.launch.names == ["none/seed-0", "none/seed-1"]
    assert len(place.found) == 6
    assert [line["row"] for line in lines(place.results)] == ["none", "none"]
    assert len(json.loads((place.results / "provenance.json").read_text())["toy"]) == 2
    place.run()
    assert place.launch.names == []
    assert (place.results / "table.csv").read_text() == before


def test_a_row_that_was_changed_has_no_results(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    rows = [{"name": "none", "change": {"bind.depth": 0, "bind.external": False}}, {"name": "one layer"}]
    write(find(str(write_study(place.root / "depth.yaml", rows=rows))), place.results)
    assert {line["row"] for line in lines(place.results)} == {"one layer"}
    assert "Without results here: none." in (place.results / "table.md").read_text()


def test_a_row_with_a_backbone_of_its_own_is_compared(finished: Place, tmp_path: Path) -> None:
    """Other weights and another normalisation than the other rows': that is what the row asks for."""
    place = copy_of(finished, tmp_path / "c")
    tower, base = "vit_base_patch16_clip_quickgelu_224", "vit_small_patch16_224"
    filled = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}

    def edit(result: Result) -> Result:
        changed = result.config | {"backbone.weights": "some.safetensors"}
        if result.row == "none":
            changed |= {"backbone.name": tower, **{f"data.{key}": value for key, value in filled.items()}}
        return replace(result.as_of(backbone_sha256=result.row), config=changed)

    place.change(edit)
    keep(
        place.file,
        base=read(place.file).base | {"backbone.weights": "some.safetensors"},
        backbones={f"{base} some.safetensors": "one layer", f"{tower} some.safetensors": "none"},
    )
    rows = [{"name": "none", "change": {"bind.depth": 0, "backbone.name": tower}}, {"name": "one layer"}]
    path = write_study(place.root / "depth.yaml", rows=rows)
    write(find(str(path)), place.results)
    assert [line["row"] for line in lines(place.results)] == ["none", "none", "one layer", "one layer"]
    place.change(lambda result: result.as_of(backbone_sha256="another") if result.place[0] == "none" else result)
    write(find(str(path)), place.results)
    assert [line["row"] for line in lines(place.results)] == ["one layer", "one layer"]


def test_p_is_corrected_over_the_rows_of_a_table(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    rows: list[dict[str, Any]] = [{"name": "not run", "change": {"data.flip": 0.1}}, {"name": "one layer"}]
    found = [place.result("none", seed) for seed in (0, 1)]
    for i in range(3):
        rows.append({"name": f"none {i}", "change": {"bind.depth": 0, "semantic.length": 3 + i}})
        for result in found:
            values = result.per_query["average_precision"]
            better = [value + 40 * i * (k % 3) for k, value in enumerate(values)]
            made = replace(result, config=result.config | {"semantic.length": 3 + i})
            keep(place.file, [replace(made, per_query=result.per_query | {"average_precision": better})])
    path = write_study(place.root / "depth.yaml", rows=rows, reference=["not run", "one layer"])
    write(find(str(path)), place.results)
    table = {line["row"]: line for line in lines(place.results) if line["seed"] == "0"}
    assert table["one layer"]["p"] == ""  # the first reference with results
    raw, corrected = ([float(table[f"none {i}"][key]) for i in range(3)] for key in ("p", "p_holm"))
    assert len(set(raw)) > 1
    assert corrected == pytest.approx(holm(raw), abs=2e-4)
    assert max(raw) < max(corrected) or min(raw) < min(corrected)
    said = table["none 0"]
    assert 0 < float(said["strangers_cosine"]) < 1
    header = next(line for line in (place.results / "table.md").read_text().splitlines() if "strangers' cosine" in line)
    assert header.split(" | ")[3:5] == ["strangers' cosine", "TAR at FMR 1 %"]
    cells = [line.split(" | ")[8] for line in (place.results / "table.md").read_text().splitlines() if "| none" in line]
    assert [float(cell.replace("< ", "")) for cell in cells] == pytest.approx(corrected, abs=1e-3)


def test_pairs_of_rows_are_a_table_of_their_own(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    twins = [replace(r, config=r.config | {"train.ema": 0.5}) for r in place.found if r.row == "none"]
    keep(place.file, [twin.as_of(row="again") for twin in twins])
    rows = [{"name": "none", "change": {"bind.depth": 0}}, {"name": "again", "change": {"bind.depth": 0}}]
    rows[1]["change"] = {"bind.depth": 0, "train.ema": 0.5}  # type: ignore[dict-item]
    pairs = [["one layer", "none"], ["none", "again"], ["one layer", "not run"]]
    rows += [{"name": "one layer", "paper": "table4-k0"}, {"name": "not run"}]  # type: ignore[list-item]
    write(find(str(write_study(place.root / "depth.yaml", rows=rows, pairs=pairs))), place.results)
    text = (place.results / "table.md").read_text().splitlines()
    table = [line[2:-2].split(" | ") for line in text if line.startswith("| ")]
    names = [line[0] for line in table]
    assert names == ["", "none", "again", "one layer", "", "none", "again"]
    assert table[5][1:] == ["one layer", *table[1][8:10]]  # both families are of two: the same correction
    assert table[6][1:2] == ["none"]
    assert table[6][2].startswith("+0.0 [")
    assert [line["mAP_in_paper"] for line in lines(place.results)] == ["", "", "", "", "72.1", "72.1"]
    assert table[3][3] == "72.1"


def test_the_paper_s_cells_are_the_rows_beside_which_they_stand() -> None:
    stand = [(name, row) for name in studies() for row in find(name).rows if row.paper]
    assert {name for name, _ in stand} == {"bind_depth", "comparison", "components", "modality_length"}
    for name, row in stand:
        cell = cells()[row.paper or ""]
        plain = flatten(asdict(paper_settings(replace(cell, change={}))))
        assert config_of(plain | row.change) == paper_settings(cell), (name, row.name)


@pytest.mark.parametrize(
    ("row", "on", "expected"),
    [
        ("DMPT", "rgbnt201_vit", 70.9),
        ("DMPT", "rgbnt201", 78.5),
        ("DMPT", "market1501_mm", 82.7),
        ("DMPT", "rgbnt100_vit", 80.6),
        ("DMPT", "msvr310", 36.6),
        ("DMPT", "wmveid863", 70.9),  # the paper does not have it
        ("Baseline 2", "market1501_mm_vit", 66.8),
        ("Baseline 2", "rgbnt201", None),  # printed with the other backbone alone
        ("LoRA, rank 8", "rgbnt201", None),
    ],
)
def test_what_the_paper_prints_is_that_of_the_data_at_hand(
    finished: Place, tmp_path: Path, row: str, on: str, expected: float | None
) -> None:
    place = copy_of(finished, tmp_path / "c")
    own = find("comparison")
    (kept,) = (each for each in own.rows if each.name == row)
    place.file.rename(place.results / f"{on}{ENDING}")
    rows = (replace(kept, change={}, lr=()),)
    write(replace(own, rows=rows, reference=(row,), pairs=()), place.results)
    assert {line["mAP_in_paper"] for line in lines(place.results)} == {str(expected or "")}
    assert ("mAP in the paper" in (place.results / "table.md").read_text()) is (expected is not None)


def test_a_grid_that_was_changed_is_not_the_one_that_is_told(finished: Place, data: Path, tmp_path: Path) -> None:
    rows = [{"name": "none", "change": {"bind.depth": 0}, "lr": [1e-3, 2e-3, 4e-3]}]
    place = Place(tmp_path, data, rows=rows, reference="none")
    plan = place.plan()
    some = finished.result("none", 0)
    config = dotted(plan.trials[0].config)
    tried = [
        replace(some, config=config | {"train.lr": rate}, numbers=some.numbers | {"mAP": mAP})
        for rate, mAP in ((1e-3, 1.0), (2e-3, 2.0), (4e-3, 1.5), (8e-3, 9.0))
    ]
    said = "none: validation mAP by learning rate 0.001: 1.0, 0.002: 2.0, 0.004: 1.5; chosen 0.002 (seed 1000)"
    assert grid_lines(plan, tried) == [said]


@pytest.mark.parametrize("key", ["mAP", "provenance", "seconds_per_epoch"])
def test_a_result_that_lacks_a_number_is_damaged(finished: Place, tmp_path: Path, key: str) -> None:
    place = copy_of(finished, tmp_path / "c")

    def without(result: Result) -> Result:
        numbers = {name: value for name, value in result.numbers.items() if name != key}
        return replace(result, numbers=numbers | {"study": {k: v for k, v in result.study.items() if k != key}})

    place.change(without)
    with pytest.raises(UserError, match=r"toy.jsonl.gz is damaged .*; put a copy in its place, or remove it"):
        place.run()


def test_data_in_a_file_have_changes_of_their_own(data: Path, tmp_path: Path) -> None:
    rows = [{"name": "none", "on": {"own/toy.yaml": {"train.epochs": 1}}}]
    study = find(str(write_study(tmp_path / "s.yaml", rows=rows, reference="none", data=["own/toy.yaml"])))
    plan = make(study, "toy", settings(data, epochs=2), seeds=1, only=(), out=tmp_path)
    assert [config.train.epochs for _, config in plan.rows] == [1]


def test_too_many_seeds(finished: Place) -> None:
    for changes, seeds in (({}, 10**7), ({"train.seed": 2**63 - 2}, 3)):
        base = config_of(flatten(asdict(finished.base)) | changes)
        with pytest.raises(UserError, match="give at most 1000, all below"):
            make(finished.study, "toy", base, seeds=seeds, only=(), out=Path("o"))


def test_a_run_without_missing_modalities_is_not_what_is_asked_for_with_them(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path / "c")
    place.study = replace(place.study, missing=True)
    place.run(seeds=1, rows=["none"])
    assert place.launch.names == ["none/seed-0"]  # of which only the evaluation is left
    assert len(place.found) == 4
    assert "missing" in place.result("none", 0).numbers


def test_a_setting_younger_than_a_result_had_its_default(finished: Place) -> None:
    task, result = finished.plan().tests({})[0], finished.result("none", 0)
    younger = {key: value for key, value in result.config.items() if key != "missing.view"}
    assert task.find([replace(result, config=younger)])
    assert not task.find([replace(result, config=result.config | {"missing.view": "both"})])


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_a_run_has_one_number_of_threads(
    finished: Place, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str
) -> None:
    seen: list[dict[str, str]] = []

    def start(*_: Any, env: dict[str, str], **__: Any) -> None:
        seen.append(env)

    for name in _THREADS:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("dmpt.study.board.os.cpu_count", lambda: 2)
    monkeypatch.setattr("dmpt.study.board.subprocess.Popen", start)
    launch(replace(finished.plan().tests({})[0], jobs=2, gpu="3"))
    assert {seen[0][name] for name in _THREADS} == {expected}
    assert seen[0]["CUDA_VISIBLE_DEVICES"] == "3"


def test_a_bar_in_a_name_is_no_column(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path)
    rows = [{"name": "none |", "change": {"bind.depth": 0}}, {"name": "one layer"}]
    text = write(find(str(write_study(place.root / "depth.yaml", rows=rows))), place.results).read_text()
    assert "| none \\| | " in text


def test_a_table_is_rebuilt_from_results_alone(finished: Place, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path)
    shutil.rmtree(place.out)
    names = ("table.md", "table.csv", "provenance.json", "toy.svg")
    before = {name: (place.results / name).read_bytes() for name in names}
    for name in names:
        (place.results / name).unlink()
    write(place.study, place.results)
    assert before == {name: (place.results / name).read_bytes() for name in names}


def test_a_run_that_was_stopped_goes_on(finished: Place, tmp_path: Path) -> None:
    """By Ctrl-C, which saves: here after two steps."""
    place = copy_of(finished, tmp_path)
    out, expected = place.out / "toy" / "none" / "seed-1", place.result("none", 1).numbers["mAP"]
    place.change(lambda result: None if (result.row, result.seed) == ("none", 1) else result)
    shutil.rmtree(out)
    with pytest.raises(KeyboardInterrupt), stopped_after(2):
        place.run()
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 2
    place.run()
    assert place.launch.names == ["none/seed-1"]
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    taken = [line["step"] for line in log if "loss" in line]
    assert taken == list(range(1, len(taken) + 1))  # no step twice
    assert place.result("none", 1).numbers["mAP"] == pytest.approx(expected)


@contextmanager
def stopped_after(steps: int) -> Iterator[None]:
    """Ctrl-C after so many steps."""
    step = Trainer._step

    def and_stop(self: Trainer, *arguments: Any) -> dict[str, Any]:
        line = step(self, *arguments)
        if line["step"] == steps:
            signal.raise_signal(signal.SIGINT)
        return line

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", and_stop)
        yield


def test_a_run_folder_goes_on_with_what_it_began_with(finished: Place, data: Path, tmp_path: Path) -> None:
    place = copy_of(finished, tmp_path)
    other = replace(place.base, train=replace(place.base.train, lr=0.5))
    said_of = r"runs/toy/none/seed-0: train.lr was 0.001, now it is 0.5; go on with what it began with, give another"
    with pytest.raises(UserError, match=said_of) as said:
        place.run(other)
    assert "\n" not in str(said.value)
    elsewhere = toy(tmp_path / "elsewhere", train_ids=9)
    with pytest.raises(
        UserError, match=r"the first: .*cannot resume .*seed-0: training data was \w{8}, now it is \w{8}"
    ):
        place.run(replace(place.base, data=replace(place.base.data, root=str(elsewhere))))
    # a place of the same data that moved is no change
    moved = shutil.copytree(data, tmp_path / "moved")
    shutil.rmtree(place.results)
    place.run(replace(place.base, data=replace(place.base.data, root=str(moved))), rows=["none"], seeds=1)
    assert place.launch.names == ["none/seed-0"]


def test_a_learning_rate_is_chosen_on_validation_identities(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "tuned", "lr": [1e-4, 1e-3, 1e-2]}, {"name": "one layer", "change": {"data.flip": 0.0}}]
    place = Place(tmp_path, data, rows=rows)
    place.run(seeds=1)
    assert place.launch.names == [
        *(f"tuned/lr-{lr}" for lr in ("0.0001", "0.001", "0.01")),
        "tuned/seed-0",
        "one-layer/seed-0",
    ]
    told = re.findall(r"^(\d of \d): toy, ([^,]*)", capsys.readouterr().err, flags=re.MULTILINE)
    assert told == [*((f"{n} of 5", "tuned") for n in (1, 2, 3, 4)), ("5 of 5", "one layer")]  # trials and tests
    tried, tested = place.launch.tasks[:3], place.launch.tasks[3]
    assert all((t.config.train.select, t.config.train.seed, t.split) == ("val", TRIAL, "validation") for t in tried)
    results = [result for result in place.found if result.study["kind"] == "validation"]
    assert all(0 < result.numbers["queries"] < 24 for result in results)  # held-out identities, not the test split
    train = {record.pid for record in load_dataset("rgbnt201", data).train}
    assert all(set(result.queries()[0].tolist()) < train for result in results)
    assert tested.config.train.lr == max(results, key=lambda r: r.numbers["mAP"]).lr
    assert (tested.config.train.select, tested.config.train.epochs) == ("last", 2)
    text = (place.results / "table.md").read_text()
    assert f"chosen {tested.config.train.lr:g}" in text
    assert all(f"{result.lr:g}: {result.numbers['mAP']:.1f}" in text for result in results)
    assert "Rows and learning rates of this study on this data: 4" in text


def test_rows_measured_on_validation_identities_leave_the_test_split_alone(data: Path, tmp_path: Path) -> None:
    rows = [{"name": "averaged", "change": {"train.ema": 0.5}}, {"name": "frozen", "change": {"train.epochs": 0}}]
    base = {"train.val_share": 0.5, "train.ids": 2}
    place = Place(tmp_path, data, rows=rows, reference="averaged", split="validation", base=base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmpt.evaluation.evaluate.test_records", lambda *_: pytest.fail("the test split was read"))
        place.run(seeds=2)
    found = place.found
    assert [result.study["kind"] for result in found] == ["validation"] * 4
    assert {result.config["train.select"] for result in found} == {"val"}
    assert not list(place.out.rglob("metrics.json"))  # which are of a test split
    train = {record.pid for record in load_dataset("rgbnt201", data).train}
    held = {tuple(result.queries()[0].tolist()) for result in found}
    assert len(held) == 1  # the same identities whatever the seed, so that seeds can be compared
    assert set(held.pop()) < train
    for result in found:
        assert result.queries()[1].mean() == pytest.approx(result.numbers["mAP"], abs=1e-3)
        out = place.out / "toy" / "/".join(result.place)
        logged = [json.loads(line) for line in (out / "metrics.jsonl").open()]
        val = [line["val"]["mAP"] for line in logged if "val" in line]
        assert val == ([] if result.row == "frozen" else [pytest.approx(result.numbers["mAP"])])
    text = (place.results / "table.md").read_text()
    assert "percent on identities held out from training, the test split unseen: the mean" in text
    place.run(seeds=2)
    assert place.launch.names == []


def test_a_learning_rate_that_diverges_has_lost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "tuned", "lr": [1e-4, 1e-3, 1e-2]}]
    place = Place(tmp_path, data, rows=rows, reference="tuned")
    step = Trainer._step

    def explode(trainer: Trainer, *args: Any) -> Any:
        if trainer.config.train.lr > 5e-3:
            raise Diverged("the gradient is not finite at step 1")
        return step(trainer, *args)

    monkeypatch.setattr(Trainer, "_step", explode)
    text = place.run(seeds=1).read_text()
    assert "0.01: diverged; chosen 0.00" in text
    assert "tuned, lr 0.01: diverged: the gradient" in " ".join(capsys.readouterr().err.split())
    assert place.launch.tasks[-1].config.train.lr < 5e-3
    place.run(seeds=1)
    assert place.launch.names == []  # nor is it tried again

    def never(*_: Any) -> Any:
        raise Diverged("the gradient is not finite at step 1")

    monkeypatch.setattr(Trainer, "_step", never)
    with pytest.raises(UserError, match=r"1 of the runs failed.*tuned, seed 1: error: the gradient is not finite"):
        place.run(seeds=2)  # in the table it is a failure
    place.study = replace(place.study, split="validation")
    for begun in (["tuned/seed-0"], []):  # on validation identities it is found out once, and told each time
        with pytest.raises(UserError, match=r"1 of the runs failed.*toy/tuned/seed-0: the gradient is not finite"):
            place.run(seeds=1, out=tmp_path / "validation")
        assert place.launch.names == begun
    with pytest.raises(UserError, match="no finished run"):
        write(place.study, place.results)  # a rate that was tried with a seed of its own is no seed of the table


def test_of_equal_learning_rates_the_lowest_wins() -> None:
    made = [Result({"train.lr": lr}, {"mAP": mAP}, {}) for lr, mAP in ((1e-2, 5.0), (1e-3, 5.0), (1e-4, 4.0))]
    assert best(made).lr == 1e-3


def test_a_failure_is_told_and_the_others_run(data: Path, tmp_path: Path) -> None:
    rows = [{"name": "bad", "change": {"train.instances": 999, "train.ids": 999}}, {"name": "one layer"}]
    place = Place(tmp_path, data, rows=rows)
    with pytest.raises(
        UserError, match=r"1 of the runs failed, the others are kept; the first: toy, bad, seed 0: error"
    ):
        place.run(seeds=1)
    assert [line["row"] for line in lines(place.results)] == ["one layer"]


def test_missing_modalities_have_a_column(data: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, data, missing=True)
    place.run(seeds=1, rows=["one layer"])
    assert "mean of the missing cases" in (place.results / "table.md").read_text()
    whole = find(str(write_study(tmp_path / "depth.yaml")))
    assert "missing" not in write(whole, place.results).read_text()  # as where such a result is taken over
    assert float(lines(place.results)[0]["mAP_missing_mean"]) > 0


def test_dry_run(finished: Place, data: Path, tmp_path: Path) -> None:
    said = dry_run(finished.plan(seeds=3), finished.results)
    assert said[:3] == ["done    toy/none/seed-0", "done    toy/none/seed-1", "to run  toy/none/seed-2"]
    assert said[-1].startswith("2 runs; about 0.00 hours")
    said = dry_run(finished.plan(), finished.results.parent / "twin")
    assert said[0] == "taken   toy/none/seed-0"
    assert said[-2:] == ["taken: over from another study, where data and weights are the same", said[-1]]
    assert said[-1].startswith("0 runs")
    fresh = Place(tmp_path, data, lr=[1e-4, 1e-3, 1e-2])
    said = dry_run(fresh.plan(), fresh.results)
    assert "to run  toy, none, seed 1, once its learning rate is chosen" in said
    assert said[-1].startswith("10 runs; no run has finished yet")
    assert not fresh.results.exists()


def test_settings_of_a_study_are_above_its_data_and_below_flags(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    on = str(write_data(tmp_path / "toy.yaml", data))
    path = str(write_study(tmp_path / "depth.yaml", base={"train.seed": 100}))
    main(["study", path, "--on", on, "--dry-run"])
    assert "to run  toy/none/seed-101\n" in capsys.readouterr().out
    main(["study", path, "--on", on, "--dry-run", "--train.seed", "7"])
    assert "to run  toy/none/seed-7\n" in capsys.readouterr().out


def test_an_estimate_takes_the_row_else_its_data(finished: Place) -> None:
    tasks = finished.plan(seeds=1).tests({})
    taken = [r.study["seconds_per_epoch"] for r in finished.found if r.row == "none"]
    assert estimate(tasks[:1], finished.found) == pytest.approx(2 * sum(taken) / 2)
    unknown = estimate([replace(tasks[0], row="another")], finished.found)
    every = sorted(r.study["seconds_per_epoch"] for r in finished.found)
    assert unknown == pytest.approx(2 * (every[1] + every[2]) / 2)
    assert estimate(tasks, []) is None


def never(task: Task) -> Result:
    raise AssertionError


class Fake:
    """A process that ends when it has been looked at often enough."""

    running = most = 0

    def __init__(self, task: Task):
        self.left, self.signals = 3, list[int]()
        Fake.running += 1
        Fake.most = max(Fake.most, Fake.running)

    def poll(self) -> int | None:
        self.left -= 1
        if self.left:
            return None
        Fake.running -= 1
        return 1

    def send_signal(self, sig: int, /) -> None:
        self.signals.append(sig)

    def wait(self) -> int:
        return 130


def test_no_more_processes_than_jobs(finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmpt.study.board._POLL", 0.0)
    monkeypatch.setattr(Fake, "most", 0)
    tasks = [replace(task, out=finished.root / f"no{n}") for n, task in enumerate(finished.plan(seeds=3).tests({}))]
    failures = execute(tasks, 2, "all", Fake, never, 0, 6)
    assert (Fake.most, Fake.running) == (2, 0)
    assert failures[0] == f"toy, none, seed 0: ended with exit code 1 ({finished.root / 'no0.log'})"
    assert len(failures) == len(tasks) == 6


@pytest.mark.parametrize(("count", "named", "expected"), [(2, "", "01"), (2, "4, 6", "46"), (0, "", ""), (0, "-1", "")])
def test_runs_are_spread_over_the_gpus(
    finished: Place, monkeypatch: pytest.MonkeyPatch, count: int, named: str, expected: str
) -> None:
    monkeypatch.setattr("dmpt.study.board._POLL", 0.0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    running: list[str | None] = []
    most: dict[str | None, int] = {}

    class OnGpu(Fake):
        def __init__(self, task: Task):
            super().__init__(task)
            self.gpu = task.gpu
            running.append(task.gpu)
            most[task.gpu] = max(most.get(task.gpu, 0), running.count(task.gpu))

        def poll(self) -> int | None:
            code = super().poll()
            if code is not None:
                running.remove(self.gpu)
            return code

    tasks = [replace(task, out=finished.root / f"gpu{n}") for n, task in enumerate(finished.plan(seeds=3).tests({}))]
    execute(tasks, 4, "all", OnGpu, never, 0, 6)
    assert most == (dict.fromkeys(expected, 2) or {None: 4})


def test_ctrl_c_is_passed_on_and_waited_for(finished: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Fake] = []

    def begin(task: Task) -> Fake:
        made.append(Fake(task))
        return made[-1]

    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dmpt.study.board.time.sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(finished.plan(seeds=3).tests({}), 2, "all", begin, never, 0, 6)
    assert [fake.signals for fake in made] == [[signal.SIGTERM], [signal.SIGTERM]]

    def full(task: Task) -> Fake:
        if len(made) == 3:
            raise OSError("no space left")
        return begin(task)

    with pytest.raises(OSError, match="no space left"):  # nobody else would end what is running
        execute(finished.plan(seeds=3).tests({}), 2, "all", full, never, 0, 6)
    assert made[2].signals == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("code", "said"),
    [(2, "error: caf\ufffd is no folder"), (-9, "killed by signal 9, mostly for want of memory"), (-15, "signal 15 (")],
)
def test_what_became_of_a_run_is_said(finished: Place, tmp_path: Path, code: int, said: str) -> None:
    class Ended(Fake):
        def poll(self) -> int | None:
            return code

    task = replace(finished.plan().tests({})[0], out=tmp_path / "seed-0")
    log_of(task).write_bytes(b"epoch 3 of 10\nerror: caf\xe9 is no folder\n")  # what a library or a full disk wrote
    (failure,) = execute([task], 1, "one", Ended, never, 0, 1)
    assert said in failure


@pytest.mark.long
def test_a_run_imports_nothing_from_where_the_user_is(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "statistics.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as under the command dmpt
    task = finished.plan().tests({})[0]
    lost = replace(task.config, data=replace(task.config.data, root=str(tmp_path / "lost")))
    task = replace(task, config=lost, out=tmp_path / "run")
    assert launch(task).wait() == 2
    assert "lost" in log_of(task).read_text()


@pytest.mark.long
def test_the_command(data: Path, tmp_path: Path) -> None:
    """With processes of their own, two at a time; a dead parent stops them."""
    path = write_study(tmp_path / "depth.yaml", data=str(write_data(tmp_path / "toy.yaml", data)))
    line = ["study", str(path), "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    listed = dmpt(*line, "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert "4 runs" in listed.stdout
    done = dmpt(*line, "--jobs", "2", "--data.root", str(data), "--train.epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "4 of 4:" in done.stderr
    assert "| one layer |" in done.stdout
    again = dmpt(*line, "--data.root", str(data), "--train.epochs", "2")
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("dmpt study: error: ")
    assert "train.epochs was 1, now it is 2" in again.stderr
    assert dmpt(*line, "--table").returncode == 0


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize(("number", "both"), [(signal.SIGTERM, True), (signal.SIGHUP, False)])
def test_a_study_that_is_told_to_end_waits_until_its_run_has_saved(
    data: Path, tmp_path: Path, number: signal.Signals, both: bool
) -> None:
    """Ctrl-C is ignored here and so in its runs, as in the background; a cluster may tell the run as well."""
    path = write_study(tmp_path / "depth.yaml", data=str(write_data(tmp_path / "toy.yaml", data)))
    places = ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    settings = ["--data.root", str(data), "--train.epochs", "300", "--train.save_every", "100000"]
    command = [sys.executable, "-m", "dmpt", "study", str(path), *places, *settings, "--seeds=1"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    until = time.monotonic() + 120
    while not (logs := [*(tmp_path / "runs").rglob("metrics.jsonl")]) or logs[0].read_text().count("\n") < 3:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    (run,) = (int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    if both:
        os.kill(run, number)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "stopping: each run saves first" in said
    assert "Traceback" not in said
    assert not is_running(run)
    assert (logs[0].parent / STATE).exists()


def write_data(path: Path, root: Path) -> Path:
    content = json.loads(json.dumps(asdict(settings(root))))
    content["data"]["root"] = None
    path.write_text(yaml.safe_dump({"asks": ["data.root"], "settings": content}))
    return path


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("early", [False, True])
def test_a_run_ends_with_its_parent(finished: Place, tmp_path: Path, early: bool) -> None:
    task = replace(finished.plan().tests({})[0], out=tmp_path / "run")
    config = replace(task.config, train=replace(task.config.train, epochs=5000))
    source = (
        "import time; from pathlib import Path; from dmpt.study.board import launch; from dmpt.study.plan import Task; "
        "from dmpt.settings.values import from_dict\n"
        f"config = from_dict({json.loads(json.dumps(asdict(config)))})\n"
        f"task = Task('toy', 'none', config, Path({str(task.out)!r}))\n"
        "print(launch(task).pid, flush=True)\n"  # and is gone before it has imported torch
        + ("" if early else f"while not __import__('os').path.exists({str(task.out / STATE)!r}): time.sleep(0.1)")
    )
    ended = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    pid = int(ended.stdout)
    until = time.monotonic() + 120  # it may have begun to import torch
    while is_running(pid):
        if time.monotonic() > until:
            os.kill(pid, 9)
            raise AssertionError("it went on without its parent")
        time.sleep(0.1)
    assert (task.out / STATE).exists() or early


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_with_brackets_is_shown_as_it_is(
    finished: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    seen = Console(file=io.StringIO(), force_terminal=terminal, width=200, highlight=False, markup=console._markup)
    for module in ("dmpt.base.terminal", "dmpt.study.board"):
        monkeypatch.setattr(f"{module}.console", seen)
    task = replace(finished.plan().tests({})[0], row="LoRA [rank 8] [/b]", out=tmp_path / "run")
    assert execute([task], 1, "[/b]", Counted(), lambda _: finished.found[0], 0, 1) == []
    assert isinstance(seen.file, io.StringIO)
    assert "LoRA [rank 8] [/b]" in seen.file.getvalue()


# The files.


def bases() -> dict[str, dict[str, Any]]:
    return {
        name: find_data(name).settings for name in ("synthetic", "vehicles", "market_mm", "rgbnt201", "rgbnt100_vit")
    }


def test_shipped_studies() -> None:
    assert studies() == [
        *("aspect", "bind_depth", "candidates", "comparison", "components", "efficiency", "few_identities"),
        *("finalists", "fusion", "low_rank", "missing", "missing_modalities", "modality_length", "readings"),
        *("semantic_length", "shift", "tuning"),
    ]
    assert [find(name).mirrors.split(" (")[0] for name in ("components", "bind_depth", "modality_length")] == [
        "Table 3",
        "Table 4",
        "Table 5",
    ]
    lengths = {row.name: row.change.get("semantic.length") for row in find("semantic_length").rows}
    assert [lengths[f"S = {n}"] for n in (1, 4, 8, 16, 32, 64)] == [1, 4, 8, 16, 32, 64]
    for name in studies():
        if name != "aspect":  # which asks of data
            assert "dmpt+" in [row.name for row in find(name).rows], name


@pytest.mark.parametrize("name", studies())
def test_rows_of_a_shipped_study(name: str) -> None:
    """Each is valid, differs from the base in what it says alone, and no two are the same."""
    chosen = find(name)
    for on, base in bases().items():
        for row in chosen.rows:
            change = row.changes(on)
            config = settings_of(chosen, row, on, base)
            check(config)
            after = flatten(asdict(config))
            assert {key for key in after if after[key] != base[key]} == {k for k, v in change.items() if base[k] != v}
        rows, left_out = runnable(chosen, on, base)
        assert (
            len({slug(row.name) for row, _ in rows})
            == len(rows)
            == len({json.dumps(asdict(c)) + str(r.lr) for r, c in rows})
        )
        assert len(rows) + len(left_out) == len(chosen.rows)
        assert any(row.name in chosen.reference for row, _ in rows)
        assert len(rows) >= 3


@pytest.mark.parametrize("name", ["few_identities", "fusion", "missing_modalities", "shift"])
def test_each_data_set_of_a_study_is_planned(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for on in find(name).data:
        main(["study", name, "--on", on, "--dry-run", "--results", str(tmp_path)])
        said = capsys.readouterr().out
        assert f"{on}/decoupled/seed-" in said
        assert "no run has finished yet" in said


def test_worlds_of_fusion_know_what_they_say() -> None:
    drawn = {on: find_data(on).world for on in ("colour_and_build", "any_two", "dark_camera", "drifting_camera")}
    setups = {on: None if world is None else world.setup for on, world in drawn.items()}
    assert setups == {
        "colour_and_build": Setup(rgb_alike=5, nir_alike=0, tir_alike=5, shape="tir"),
        "any_two": Setup(rgb_alike=5, nir_alike=5, tir_alike=5, shape="tir"),
        "dark_camera": Setup(dark_cameras=2),
        "drifting_camera": Setup(drifting_cameras=2),
    }
    seeds = [world.seed for on in find("shift").data + find("fusion").data if (world := find_data(on).world)]
    assert not {*seeds} & {0, 200, 201}  # of worlds that something was chosen on, or tested before


def test_a_world_is_tested_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def drawn(**what: Any) -> Path:
        asked.append(what)
        return tmp_path / str(len(asked))

    monkeypatch.setattr("dmpt.synthetic.cached.world", drawn)
    found = find_data("other_cameras")
    assert found.world is not None
    assert found.tested is not None
    assert (found.world.seed, found.world.setup) == (found.tested.seed, PLAIN)
    assert found.tested.setup == Setup(camera_seed=305)
    assert _with_data(found, config_of(found.settings)).data.root == str(tmp_path / "1")
    assert asked == [{"train_ids": 150, "test_ids": 100, "seed": 304, "object": "person", "setup": PLAIN}]
    real = find_data("drawn_to_real")
    with pytest.raises(UserError, match="drawn_to_real is your own: give --tested"):
        _with_data(real, config_of(real.settings | {"backbone.weights": "file"}))
    assert _with_data(real, config_of(real.settings | {"backbone.weights": "file"}), tmp_path).data.root is not None


def test_other_data_are_tested_than_those_trained_on(finished: Place, tmp_path: Path) -> None:
    """The same training, another test split: another run, whose numbers are those of dmpt evaluate there."""
    place = copy_of(finished, tmp_path / "c")
    other = toy(tmp_path / "other", seed=5, test_ids=5)
    place.run(tested=other, rows=["none"], seeds=1)
    assert place.launch.names == ["none/seed-0"]  # goes on with the run folder, and trains nothing
    elsewhere = [result for result in place.found if result.numbers["queries"] == 30]
    assert [(result.row, result.seed) for result in elsewhere] == [("none", 0)]
    assert elsewhere[0].numbers["provenance"]["apart"]
    own = evaluate(place.out / "toy" / "none" / "seed-0", Conditions(root=str(other)))
    assert elsewhere[0].numbers["mAP"] == own.metrics.mAP
    assert "none" in (place.results / "table.md").read_text()
    place.run(tested=other, rows=["none"], seeds=1)
    assert place.launch.names == []
    place.run(rows=["none"], seeds=1)
    assert place.launch.names == []
    assert len(place.found) == 5


def test_scores_that_a_threshold_can_use_are_columns(finished: Place) -> None:
    """The toy set has too few identities to say; a result that says is shown."""
    assert [result.numbers["threshold"] for result in finished.found] == [{"achieved": None, "dir": {}}] * 4
    rates = {"asked": 1.0, "fmr": 1.25, "low": 0.5, "high": 2.0, "tar": 60.0, "draws": 20}
    said = {"achieved": rates, "dir": {"1": 30.0, "10": 55.5}}
    place = copy_of(finished, finished.root.parent / "thresholds")
    place.change(lambda result: replace(result, numbers=result.numbers | {"threshold": said}))
    write(place.study, place.results)
    text = (place.results / "table.md").read_text()
    assert "| FMR where 1 % is asked | DIR at FPIR 10 % |" in text
    assert "| 1.25 | 55.5 |" in text
    assert [(line["fmr_asked_1"], line["tar_asked_1"], line["dir_at_fpir_1"]) for line in lines(place.results)] == [
        ("1.25", "60.0", "30.0")
    ] * 4
    place.change(lambda result: replace(result, numbers=result.numbers | {"threshold": said | {"achieved": None}}))
    write(place.study, place.results)
    assert "FMR where" not in (place.results / "table.md").read_text()


def test_any_to_any_of_some_rows_is_a_square_each(data: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, data, missing=True, any_to_any="one layer", seeds=2)
    place.run()
    text = (place.results / "table.md").read_text()
    assert "| mAP, mixed galleries |" in text
    assert "| one layer | RGB | NIR | TIR | RGB+NIR | RGB+TIR | NIR+TIR | RGB+NIR+TIR |" in text
    squares = [
        square(result.numbers["missing"]["any_to_any"])[1] for result in place.found if result.row == "one layer"
    ]
    row = (
        "| TIR | " + " | ".join(f"{(a + b) / 2:.1f}" for a, b in zip(squares[0][2], squares[1][2], strict=True)) + " |"
    )
    assert row in text
    drawn = (place.results / "toy-any-to-any.svg").read_text()
    assert drawn.count("<rect") == 49
    assert f"TIR in RGB: {(squares[0][2][0] + squares[1][2][0]) / 2:.1f}" in drawn
    for changes, said in (
        ({"any_to_any": "nobody", "missing": True}, "any_to_any 'nobody' is no row"),
        ({"any_to_any": "one layer"}, "any_to_any needs missing: true"),
    ):
        with pytest.raises(UserError, match=said):
            find(str(write_study(tmp_path / "bad.yaml", **changes)))


def test_vehicles_are_drawn_for_the_aspect_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dmpt.synthetic.cached.IMAGES", 4)
    found = find_data("vehicles")
    assert found.world is not None
    drawn = replace(found, world=replace(found.world, train_ids=3, test_ids=2))
    config = _with_data(drawn, config_of(drawn.settings))
    assert config.data.layout == "msvr310"
    assert config.data.root is not None
    dataset = load_dataset("msvr310", config.data.root)
    assert (dataset.object, dataset.protocol, len(dataset.train)) == ("vehicle", "same_scene", 12)
    sizes = [settings_of(find("aspect"), row, "vehicles", drawn.settings).data.size for row in find("aspect").rows]
    assert sizes == [(128, 64), (64, 128)] * 2
    path = tmp_path / "world.yaml"
    path.write_text("world: {train_ids: 3, test_ids: 2, colour: red}\n")
    with pytest.raises(UserError, match=r"this version of dmpt has no world.colour"):
        find_data(str(path))


RESULTS = folder("studies").parent / "results"


@pytest.mark.parametrize("name", [name for name in studies() if (RESULTS / name).is_dir()])
def test_the_tables_that_are_kept_are_what_the_results_say(name: str, tmp_path: Path) -> None:
    """Byte for byte, those that are not kept too: by their sums, as when all were first written."""
    kept = RESULTS / name
    shutil.copytree(kept, tmp_path / name)
    write(find(name), tmp_path / name)
    written = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if not path.name.endswith(ENDING)}
    sums = (line.split() for line in (Path(__file__).parent / "tables.sha256").read_text().splitlines())
    expected = {path.removeprefix(f"{name}/"): said for said, path in sums if path.startswith(f"{name}/")}
    assert {file: sha256(content).hexdigest() for file, content in written.items()} == expected
    for path in kept.iterdir():
        assert path.name.endswith(ENDING) or path.read_bytes() == written[path.name], path


def test_every_row_has_as_many_learning_rates() -> None:
    rows = find("comparison").rows
    assert {row.name: len(row.lr) for row in rows} == {row.name: 0 if row.name == "frozen" else 3 for row in rows}
    assert min(next(row for row in rows if row.name == "full fine-tuning").lr) == 1e-5


def test_a_row_can_be_a_file_of_settings(tmp_path: Path) -> None:
    """Its own changes are on top."""
    row = {"name": "tiny", "config": "tiny", "change": {"train.epochs": 3}}
    (found,) = find(str(write_study(tmp_path / "s.yaml", reference="tiny", rows=[row]))).rows
    tiny = flatten(yaml.safe_load((folder() / "tiny.yaml").read_text()))
    assert found.change == tiny | {"train.epochs": 3}


@pytest.mark.parametrize(
    ("on", "ids", "expected"),
    [
        ("synthetic", 150, 171),
        ("synthetic_fresh", 150, 171),
        ("market_mm", 180, 356),
        ("vehicles_dinov2", 150, 356),
        ("rgbnt201", 171, 457),
        ("rgbnt201_vit", 171, 467),
    ],
)
def test_lora_of_equal_count_has_the_rank_that_comes_next_on_any_data(on: str, ids: int, expected: int) -> None:
    comparison = find("comparison")
    (row,) = (row for row in comparison.rows if row.name == "LoRA of equal count")
    base = find_data(on).settings | {"heads": "concat+modality"}
    config = settings_of(comparison, row, on, base)
    assert config.lora.rank == expected
    wanted = count_parameters(config_of(base), ids)["trained"]
    ranks = [replace(config.lora, rank=config.lora.rank + off) for off in (-1, 0, 1)]
    fewer, own, more = (count_parameters(replace(config, lora=each), ids)["trained"] for each in ranks)
    assert abs(own - wanted) <= min(wanted - fewer, more - wanted)


@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        ({}, {}, " needs backbone.tune lora"),
        ({"text.loss": "identity"}, {"backbone.tune": "lora", "text.loss": "off"}, ": here the rank depends on the"),
        ({}, {"backbone.tune": "lora", "heads": "concat"}, ": here the rank depends on the"),
    ],
)
def test_no_equal_rank_where_the_number_of_identities_would_change_it(
    tmp_path: Path, base: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    rows = [{"name": "a", "change": {**change, "backbone.lora_rank": "equal"}}]
    study = find(str(write_study(tmp_path / "s.yaml", reference="a", rows=rows)))
    with pytest.raises(UserError, match=f"s.yaml: row a: lora.rank equal{said}"):
        settings_of(study, study.rows[0], "toy", bases()["synthetic"] | base)


def test_a_study_starts_from_no_adapter(tmp_path: Path) -> None:
    study = find(str(write_study(tmp_path / "s.yaml", reference="a", rows=[{"name": "a", "change": {}}])))
    with pytest.raises(UserError, match=r"s\.yaml: row a: a study trains each run from its start; leave out init"):
        settings_of(study, study.rows[0], "toy", bases()["synthetic"] | {"init": "runs/x"})


def test_rows_without_text_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = bases()
    components = find("components")
    rows, left_out = runnable(components, "market_mm", settings["market_mm"])
    prompts = ["S", "S + bind", "S + M + bind", "S + M + internal attention alone"]
    prompts += ["internal attention alone, no prompts"]
    alone = "dmpt+, internal attention alone"
    plus = ["dmpt+", alone, "dmpt+, no interaction", f"{alone}, no prompts"]
    assert [row.name for row, _ in rows] == prompts + plus
    assert left_out == [
        f"{name}: needs text, and this backbone has none" for name in ("all", "all, internal attention alone")
    ]
    assert len(runnable(components, "synthetic", settings["synthetic"])[0]) == 11
    left_out = runnable(find("readings"), "market_mm", settings["market_mm"])[1]
    assert "modality.source learned: the same settings as base here" in left_out
    for name in ("text.loss identity", "heads paper"):
        assert f"{name}: needs text, and this backbone has none" in left_out
    alone = settings["market_mm"] | {"heads": "paper"}
    assert "heads paper: the same settings as base here" in runnable(find("readings"), "market_mm", alone)[1]
    assert runnable(find("readings"), "synthetic", settings["synthetic"])[1] == []


def test_a_text_tower_counts_where_it_is_read_and_by_its_name() -> None:
    def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
        return content_of(one) == content_of(two)

    fixed = {"text.file": "package:text.safetensors", "text.tower": "ViT-B-16-quickgelu"}
    assert same(fixed, {**fixed, "text.tower": "other.json"})
    identity = {**fixed, "text.loss": "identity"}
    assert not same(identity, {**identity, "text.tower": "other.json"})
    assert same({"text.tower": "/here/own.json"}, {"text.tower": "/there/own.json"})
    one, two = ({"text.weights": f"hub:{repository}/open_clip_model.safetensors"} for repository in ("a/x", "b/y"))
    assert not same(one, two)


def test_any_settings_file_is_data(tmp_path: Path) -> None:
    assert find_data("rgbnt201").settings["backbone.name"] == "vit_base_patch16_clip_quickgelu_224.openai"
    assert find_data("rgbnt201").asks == ("data.root",)
    (tmp_path / "mine.yaml").write_text("config: rgbnt201_vit\nsettings: {train: {epochs: 5}}\n")
    mine = find_data(str(tmp_path / "mine.yaml"))
    assert (mine.name, mine.settings["train.epochs"]) == ("mine", 5)
    assert mine.settings["backbone.name"] == find_data("rgbnt201_vit").settings["backbone.name"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rows": [{"name": "a", "chnge": {}}]},
            "depth.yaml: row a: this version of dmpt has no chnge; did you",
        ),
        ({"rows": [{"name": "a", "lr": [1e-3]}]}, r"row a: lr is \[0.001\]; give two or more learning rates"),
        ({"rows": [{"name": "a"}, {"name": "A"}]}, "two rows would share the folder a; rename 'a'"),
        ({"rows": [{"name": "a", "change": 3}]}, "row a: change is 3; it must be keys and values as in {a: 1}"),
        ({"rows": [{"name": "a", "lr": [1e-3, 1e-3, 1e-2]}]}, "row a: lr is .*; give two or more"),
        ({"rows": [{"name": "a", "lr": [-1e-3, 1e-3, 1e-2]}]}, "row a: lr is .*; it must be a list as in"),
        ({"rows": [{"name": "β 1"}, {"name": "β  1"}]}, "two rows would share the folder β-1"),
        ({"rows": [{"name": "???"}]}, r"row \?\?\?: its name has no letter or digit"),
        ({"rows": [{"name": "a", "on": {"toi": {}}}]}, "row a: on toi: is not among the study's data toy"),
        ({"rows": [{"name": "a", "on": {"toy": {"train.epoch": 1}}}]}, "on toy: this version of dmpt has no setting"),
        (
            {"rows": [{"name": "one layer", "lr": [1e-3, 2e-3]}, {"name": "b", "lr": [1e-3, 2e-3, 3e-3]}]},
            r"rows try \[2, 3\] learning rates; give each that tries any the same number of them",
        ),
        ({"rows": 3}, "rows is 3; it must be a list"),
        ({"rows": [3]}, "row 1 is 3; give keys and values, a name among them"),
        ({"rows": [{"change": {}}]}, "row 1: lacks name"),
        ({"rows": []}, "rows is empty; give a list, each with a name"),
        ({"rows": None}, "rows is null; it must be a list"),
        ({"data": []}, "data is empty"),
        ({"reference": []}, "reference is empty"),
        ({"seeds": "abc"}, 'seeds is "abc"; it must be a whole number of at least 1'),
        ({"seeds": 0}, "seeds is 0; it must"),
        ({"missing": "no"}, 'missing is "no"; it must be true or false'),
        ({"timed": 1}, "timed is 1; it must be true or false"),
        ({"reference": "b"}, "reference 'b' is no row; rows are none, one layer"),
        ({"captain": "x"}, "depth.yaml: this version of dmpt has no captain; did you mean caption?"),
        ({"author": "x"}, "this version of dmpt has no author; it has caption, mirrors, reference, data, rows, pairs"),
        ({"split": "val"}, 'split is "val"; it must be test or validation'),
        ({"split": "validation", "missing": True}, "missing: true needs split: test"),
        ({"rows": [{"name": "a;b"}]}, "row a;b: a name has no semicolon"),
        ({"rows": [{"name": "a", "lr": [1e-3, 3e-3, float("inf")]}]}, "row a: lr is .*; it must be a list"),
        ({"rows": [{"name": "a", "change": {"train.select": "test"}}]}, "row a: train.select cannot be set here"),
        ({"rows": [{"name": "a", "change": {"train.seed": 5}}]}, "row a: train.seed cannot be set here"),
        ({"rows": [{"name": "a", "on": {"toy": {"train.seed": 5}}}]}, "row a: train.seed cannot be set here"),
        (
            {"rows": [{"name": "a", "change": {"train.lr": 0.1}, "lr": [1e-3, 2e-3, 3e-3]}]},
            "row a: train.lr cannot be set here: the row has a grid",
        ),
        ({"rows": [{"name": "a", 1: "x", "foo": "y"}]}, "row a: this version of dmpt has no 1; it has name, config"),
        ({"pairs": "none"}, 'pairs is "none"; it must be a list as in .*, each a list of 2'),
        ({"pairs": [["none", "two"]]}, r"pairs: \['none', 'two'\] must be two rows, of none, one layer"),
        ({"pairs": [["none"]]}, r'pairs is \[\["none"\]\]; it must be a list as in .*, each a list of 2'),
        ({"rows": [{"name": "a", "paper": "table9"}]}, "row a: the paper has no cell 'table9'; dmpt reproduce --list"),
        ({"rows": [{"name": "a", "paper": ["table3-s"]}]}, r'row a: paper is \["table3-s"\]; it must be text or null'),
        ({"base": {"train.val_shere": 0.3}}, "base: this version of dmpt has no setting train.val_shere; did you"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        find(str(write_study(tmp_path / "depth.yaml", **changes)))
    assert "\n" not in str(error.value)


def test_other_mistakes_are_one_line(
    finished: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(work: Callable[[], object], said: str) -> None:
        with pytest.raises(UserError, match=said) as error:
            work()
        assert "\n" not in str(error.value)

    refused(lambda: find("component"), "there is no study 'component'; did you mean components?")
    refused(lambda: find(str(tmp_path / "none.yaml")), "none.yaml: cannot be read")
    mine = write_study(tmp_path / "components.yaml")
    refused(lambda: find(str(mine)), "components is a study of dmpt's own, and results go by the name; rename the file")
    refused(lambda: find_data("rgbnt201_peer"), "its design is not the paper's, .*; give --on rgbnt201 and, as flags,")
    refused(
        lambda: find_data("market"), "--on market: no such data; there are .*market_mm, .*persons_candidates, synthetic"
    )
    refused(lambda: finished.plan(only=["two"]), "--rows two: .*depth.yaml has no such row; there are none; one layer")
    refused(lambda: write(finished.study, tmp_path), "no finished run of depth yet")
    (tmp_path / "bad.yaml").write_text("config: nothing\n")
    refused(lambda: find_data(str(tmp_path / "bad.yaml")), "bad.yaml: config 'nothing' is no file of configs/")
    path = write_study(tmp_path / "preset.yaml", reference="a", rows=[{"name": "a", "config": "nothing"}])
    refused(lambda: find(str(path)), "preset.yaml: row a: config 'nothing' is no file of configs/")
    path = write_study(tmp_path / "new.yaml", reference="new", rows=[{"name": "new", "change": {"bind.new": 1}}])
    refused(
        lambda: make(find(str(path)), "toy", finished.base, seeds=1, only=(), out=tmp_path),
        "row new: this version of dmpt has no setting bind.new",
    )
    typed = write_study(tmp_path / "typed.yaml", reference="a", rows=[{"name": "a", "change": {"train.epochs": "x"}}])
    refused(
        lambda: make(find(str(typed)), "toy", finished.base, seeds=1, only=(), out=tmp_path),
        'typed.yaml: row a: train.epochs is "x"; it must be a whole number of at least 0',
    )
    for content, said in (
        ("settings: 3", "settings is 3; it must be keys and values"),
        ("asks: [bogus]", "asks is .*bogus.*; it must be a list as in .*, each data.root, backbone.weights or tested"),
        ("world: {train_ids: x, test_ids: 3}", 'world.train_ids is "x"; it must be a whole number of at least 2'),
        ("world: {train_ids: 3}", "world: lacks test_ids"),
        ("world: {train_ids: 3, test_ids: 3, object: cat}", 'world.object is "cat"; it must be person or vehicle'),
    ):
        (tmp_path / "bad.yaml").write_text(content + "\n")
        refused(lambda: find_data(str(tmp_path / "bad.yaml")), said)
    trial = replace(finished.base, train=replace(finished.base.train, seed=TRIAL - 1))
    refused(
        lambda: make(finished.study, "toy", trial, seeds=2, only=(), out=tmp_path),
        "seed 1000 is the one that learning rates are tried with; give another --train.seed",
    )
    path = write_study(tmp_path / "one.yaml", missing=True, base={"data.modalities": ["rgb"]})
    alone = replace(finished.base, data=replace(finished.base.data, modalities=("rgb",)))
    refused(
        lambda: make(find(str(path)), "toy", alone, seeds=2, only=(), out=tmp_path),
        "--missing all: of this model can be missing: nothing, for it uses one modality",
    )
    chosen = replace(finished.base, train=replace(finished.base.train, select="test"))
    refused(
        lambda: make(finished.study, "toy", chosen, seeds=2, only=(), out=tmp_path),
        "train.select is test; a study tests the last epoch",
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "on.yaml").write_text("on: market_mm\n")
    for line, said in (
        (["study"], "give a study: dmpt study NAME"),
        (["study", "components", "--config", "on.yaml"], "market_mm is your own: give --data.root"),
        (["study", "components", "--rows", ""], "--rows is empty; name rows, separated by semicolons"),
        (["study", "components", "--seed", "5"], "unknown setting seed; did you mean seeds?"),
        (["study", "components", "--on", "market_mm"], "market_mm is your own: give --data.root"),
        (["study", "components", "--on", "market_mm", "--data.root", "x"], "give --backbone.weights"),
        (["study", "components", "--on", "market_mm", "--table"], "no finished run of components yet"),
    ):
        with pytest.raises(SystemExit) as end:
            main(line)
        assert end.value.code == 2
        assert said in capsys.readouterr().err


def test_weights_that_are_not_there_are_told_before_a_run_is_started(data: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, data)
    lost = replace(place.base, backbone=replace(place.base.backbone, weights=str(tmp_path / "lost.safetensors")))
    with pytest.raises(UserError, match=r"lost.safetensors"):
        place.run(lost)
    assert place.launch.tasks == []


def test_when_every_run_fails_the_first_failure_is_told(data: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, data)
    too_many = replace(place.base, train=replace(place.base.train, ids=64))
    with pytest.raises(UserError, match=r"4 of the runs failed, the others are kept; the first: .*ids"):
        place.run(too_many)


def test_the_list_of_studies(capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "--list"])
    assert "components" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "text", "other queries", "one precision less", "no identities"])
def test_damaged_results_are_told(finished: Place, tmp_path: Path, damage: str) -> None:
    place = copy_of(finished, tmp_path)
    whole = place.file.read_bytes()
    if damage == "cut":
        place.file.write_bytes(whole[: len(whole) // 2])
    elif damage == "text":
        place.file.write_text("pid,average_precision\n")
    else:
        own = place.result("none", 1).per_query
        pids, precisions = own["pids"], own["average_precision"]
        other = {
            "other queries": {"pids": pids[::-1], "average_precision": precisions},
            "one precision less": {"pids": pids, "average_precision": precisions[1:]},
            "no identities": {"pids": ["x" for _ in pids], "average_precision": precisions},
        }[damage]
        place.change(lambda result: replace(result, per_query=other) if result.place == ("none", "seed-1") else result)
    said = "none, seed 1: was tested on other queries" if damage == "other queries" else "toy.jsonl.gz is damaged .*"
    with pytest.raises(UserError, match=said) as error:
        write(place.study, place.results)
    assert "\n" not in str(error.value)


def test_a_row_that_is_not_trained_has_no_trained_parameters(data: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, data, rows=[{"name": "frozen", "change": {"train.epochs": 0}}], reference="frozen")
    place.run(seeds=1)
    assert [result.study["trained"] for result in place.found] == [0]


def test_seconds_per_step_are_those_of_the_fastest_epoch(finished: Place) -> None:
    for result in finished.found:
        log = (finished.out / "toy" / "/".join(result.place) / "metrics.jsonl").read_text().splitlines()
        taken = [line["step_seconds"] for line in map(json.loads, log) if "step_seconds" in line]
        assert len(taken) == 2
        assert result.study["seconds_per_step"] == min(taken)


def test_no_rate_is_chosen_before_the_whole_grid_was_run(finished: Place, data: Path, tmp_path: Path) -> None:
    rows = [{"name": "none", "change": {"bind.depth": 0}, "lr": [1e-3, 2e-3, 4e-3]}]
    plan = Place(tmp_path, data, rows=rows, reference="none").plan()
    found: list[Result] = []
    for task, chosen in zip(plan.trials, ({}, {}, {"none": 1e-3}), strict=True):
        found.append(replace(finished.result("none", 0), config=dotted(task.config)))
        assert plan.chosen(found) == chosen


def test_a_query_with_nothing_to_find_is_kept_as_such(finished: Place, tmp_path: Path) -> None:
    path = tmp_path / "x" / f"toy{ENDING}"
    keep(path, [replace(finished.found[0], per_query={"pids": [3, 4], "average_precision": [None, 12.5]})])
    pids, values = read(path).results[0].queries()
    assert pids.tolist() == [3, 4]
    np.testing.assert_array_equal(values, [np.nan, 12.5])


def test_two_that_keep_at_once_lose_nothing(finished: Place, tmp_path: Path) -> None:
    path, some = tmp_path / f"toy{ENDING}", finished.found[0]
    made = [replace(some, config=some.config | {"train.seed": seed}) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda result: keep(path, [result]), made))
    assert sorted(result.seed for result in read(path).results) == list(range(16))
    before = path.read_bytes()
    keep(path, made[3:5])
    assert path.read_bytes() == before  # the same content, the same bytes
    assert read(tmp_path / "none.jsonl.gz") == Kept()


def test_of_two_equal_rows_the_reference_is_run(finished: Place, tmp_path: Path) -> None:
    study = find(str(write_study(tmp_path / "s.yaml", rows=[{"name": "same"}, {"name": "base"}], reference="base")))

    rows, left_out = runnable(study, "toy", dotted(finished.base))
    assert [row.name for row, _ in rows] == ["base"]
    assert left_out == ["same: the same settings as base here"]
