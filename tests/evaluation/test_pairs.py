"""``dmpt evaluate``: what is said of pairs, and of searches for people who may not be there."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from dmpt.cli import main
from dmpt.data.records import labels_of
from dmpt.evaluation.evaluate import evaluate
from dmpt.retrieval.calibration import verification
from dmpt.retrieval.openset import open_set
from runs import fit, settings


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(settings(data, epochs=1), folder)
    return folder


def test_how_far_mates_and_strangers_lie_apart(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run)])
    said = capsys.readouterr().out
    found = json.loads((run / "metrics.json").read_text())["verification"]
    evaluation = evaluate(run)
    expected = verification(*evaluation.seen)
    assert expected is not None
    assert found == asdict(expected)
    assert f"strangers score {expected.strangers:.3f} in the median, mates {expected.mates:.3f}" in said
    assert f"equal error rate {expected.eer:.1f} %" in said
    assert f"where 1 % of strangers pass, {expected.tar['1']:.1f} % of mates do" in said
    assert "open set" not in said


def test_open_set_search(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    main(["evaluate", str(run), "--openset"])
    assert "so few unknown probes cannot carry a rate of 10 % false alarms" in capsys.readouterr().out
    assert json.loads((run / "metrics.json").read_text())["open_set"] == []
    monkeypatch.setattr("dmpt.evaluation.evaluate.open_set", lambda *sides: open_set(*sides, far=(0.5,)))
    main(["evaluate", str(run), "--openset"])
    said = capsys.readouterr().out
    evaluation = evaluate(run, openset=True)
    expected = open_set(evaluation.seen.gallery, labels_of(evaluation.gallery), far=(0.5,))
    assert [each.rank for each in expected] == [1, 10]
    assert evaluation.open_set == expected
    assert json.loads((run / "metrics.json").read_text())["open_set"] == [asdict(each) for each in expected]
    assert f"open set: at 50 % false alarms, {expected[0].mean:.1f} % of known probes found at rank 1" in said
