"""Training with modality dropout, and on samples that lack modalities."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.data.missing import restrict
from dmpt.data.records import Dataset, Record
from dmpt.evaluation.evaluate import evaluate
from dmpt.settings.modalities import MODALITIES
from dmpt.training.trainer import Trainer
from runs import dying, fit, log, same_in_two_processes, same_state, settings, toy, with_

DROPOUT: dict[str, Any] = {"dropout": 0.4}
BOTH: dict[str, Any] = {"view": "both", "absent": "learned"}


def with_dropout(data: Path, **recipe: Any) -> Any:
    return with_(settings(data, **recipe), missing=DROPOUT)


def test_a_run_with_dropout_trains_everything(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(with_dropout(data, epochs=4), tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    trainer.fit()
    assert all(not torch.equal(p, before[name]) for name, p in trainer.trained.items())
    assert any(name.startswith("also.shared.project") for name in before)
    assert all(set(x["losses"]) == {"ce", "metric", "centre", "shared"} for x in log(tmp_path / "run") if "losses" in x)
    saved = load_file(tmp_path / "run" / "last" / "adapter.safetensors")
    assert (saved["also.shared.variance"] >= 0).any()


def test_a_run_that_sees_both_trains_everything_and_halves_the_terms(data: Path, tmp_path: Path) -> None:
    config = with_(with_dropout(data, epochs=1, precision="bf16"), missing=BOTH)
    trainer = Trainer(config, tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    trainer.fit()
    assert any(name.endswith("absent") for name in before)
    assert all(not torch.equal(p, before[name]) for name, p in trainer.trained.items())
    lines = [x["losses"] for x in log(tmp_path / "run") if "losses" in x]
    assert all(set(line) == {"ce", "metric", "centre", "shared", "distil"} for line in lines)
    ce = lines[0]["ce"]
    assert ce == pytest.approx(2.08, abs=0.1)  # log 8: one view's worth of it, not two
    assert evaluate(tmp_path / "run", without="rgb").missing["cases"]["M(RGB)"]["mAP"] > 0


def test_bf16_trains_with_dropout_and_is_evaluated(data: Path, tmp_path: Path) -> None:
    fit(with_dropout(data, epochs=1, precision="bf16"), tmp_path / "run")
    assert evaluate(tmp_path / "run", without="rgb").missing["cases"]["M(RGB)"]["mAP"] > 0


def test_interrupted_and_resumed_with_dropout_equals_unbroken(data: Path, tmp_path: Path) -> None:
    config = with_dropout(data, epochs=2, save_every=1)
    fit(config, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        dying(Trainer(config, tmp_path / "broken"), 2).fit()
    fit(config, tmp_path / "broken", resume=True)
    assert same_state(tmp_path / "whole", tmp_path / "broken")
    assert log(tmp_path / "whole") == log(tmp_path / "broken")


@pytest.mark.long
@pytest.mark.parametrize("missing", [{}, BOTH])
def test_two_processes_with_dropout_do_what_one_does(data: Path, tmp_path: Path, missing: dict[str, Any]) -> None:
    config = with_(with_dropout(data, epochs=2), missing=missing)
    same_in_two_processes(config, tmp_path, rtol=5e-3, atol=1e-4)


def incomplete(layout: str, root: str, *settings: Any) -> Dataset:
    """Every other sample lacks one modality or two."""
    whole = load_dataset(layout, root)

    def cut(records: tuple[Record, ...]) -> tuple[Record, ...]:
        lacks: list[set[str]] = [set(), {"tir"}, set(), {"rgb", "nir"}]
        return tuple(
            replace(r, paths={m: p for m, p in r.paths.items() if m not in lacks[i % 4]}) for i, r in enumerate(records)
        )

    test = cut(whole.gallery)
    return replace(whole, train=cut(whole.train), query=test, gallery=test)


def test_incomplete_samples_train_and_are_evaluated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmpt.training.data.load_dataset", incomplete)
    monkeypatch.setattr("dmpt.evaluation.opened.load_dataset", incomplete)
    fit(with_(settings(data, epochs=1), missing={"shared": True}), tmp_path / "run")
    result = evaluate(tmp_path / "run", without="all")
    assert result.metrics.queries == result.metrics.gallery == 24
    cases = result.missing["cases"]
    assert cases["M(RGB+NIR)"]["queries"] == 18  # those with a thermal image
    assert "mixed" not in result.missing["any_to_any"]


def test_no_complete_sample_is_refused_where_a_head_needs_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(layout: str, root: str, *settings: Any) -> Dataset:
        whole = load_dataset(layout, root)
        return replace(whole, train=tuple(restrict(whole.train, ("rgb", "nir"))))

    monkeypatch.setattr("dmpt.training.data.load_dataset", two)
    with pytest.raises(UserError, match=r"no training sample has all of rgb, nir, tir.*set data\.modalities"):
        Trainer(settings(data), tmp_path / "run")
    Trainer(with_(settings(data), data={"modalities": ("rgb", "nir")}), tmp_path / "other")


@pytest.mark.parametrize("modalities", [("rgb", "nir"), ("tir",)])
def test_a_fixed_subset_reads_nothing_else(data: Path, tmp_path: Path, modalities: tuple[str, ...]) -> None:
    root = tmp_path / "data"
    toy(root)
    folders = dict(zip(MODALITIES, ("RGB", "NI", "TI"), strict=True))
    for modality in set(MODALITIES) - set(modalities):
        for path in root.glob(f"*/{folders[modality]}/*.jpg"):
            path.write_bytes(b"not an image")
    config = with_(settings(root, epochs=1), data={"modalities": modalities})
    trainer = fit(config, tmp_path / "run")
    necks = trainer.objective.heads.necks
    assert set(necks) == {"concat", *modalities}
    assert necks["concat"].get_parameter("classifier.weight").shape[1] == len(modalities) * 48
    result = evaluate(tmp_path / "run", without="all" if len(modalities) > 1 else None)
    assert result.metrics.mAP > 0
    if len(modalities) == 1:
        with pytest.raises(UserError, match="can be missing: nothing, for it uses one modality"):
            evaluate(tmp_path / "run", without="all")
    else:
        assert set(result.missing["cases"]) == {"M(RGB)", "M(NIR)"}


@pytest.mark.parametrize("view", ["both", "subset"])
def test_a_run_reads_whole_samples_where_it_sees_both(data: Path, tmp_path: Path, view: Any) -> None:
    trainer = Trainer(with_(with_dropout(data), missing={"view": view}), tmp_path / "run")
    batches = list(trainer.data.batches(trainer.config, 0, 0, 0, 1))
    assert not all(batch.subset.all() for batch in batches)
    for batch in batches:
        assert torch.equal(batch.present, torch.ones_like(batch.subset) if view == "both" else batch.subset)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--missing.dropout=1.5", "missing.dropout is 1.5; it must be a number from 0 to 1"),
        ('--data.modalities=["nir","rgb"]', "data.modalities is ['nir', 'rgb']; name at least one of rgb, nir, tir"),
        ("--data.modalities=[]", "data.modalities is []; name at least one"),
        ("--loss.shared=-1", "loss.shared is -1; it must be a number of at least 0"),
        ("--loss.distil=-1", "loss.distil is -1; it must be a number of at least 0"),
        ("--missing.view=both", "missing.view both compares a sample with what modality dropout leaves of it"),
        (
            '--missing={"dropout": 0.3, "view": "both"} --bind.layers=[0]',
            "set missing.dropout above 0 and bind.layers [], or missing.view subset",
        ),
        ("--missing.absent=learned --bind.depth=0", "missing.absent learned stands in the bind, but there is none"),
    ],
)
def test_settings_are_checked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", f"--data.root={data}", f"--out={tmp_path / 'run'}", *re.split(r" (?=--)", setting)])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.replace("\n", " ")
