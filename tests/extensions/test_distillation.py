"""Whole samples and what is left of them: the mean of both views, and what one teaches the other."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.extensions.distillation import _distillation, both_views
from dmpt.method.modalities import Features
from dmpt.method.network import Output
from runs import fit, log, settings, with_
from small import PRESENT, seeded

WIDTH = 32


def views() -> tuple[Output, Output]:
    """Of whole samples and of what is left; their tensors take gradients."""
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double().requires_grad_()
    shared = torch.randn(6, WIDTH, generator=seeded(4)).double().requires_grad_()
    part = torch.randn(3, 6, WIDTH, generator=seeded(5)).double().masked_fill(~PRESENT[..., None], 0).requires_grad_()
    return Output(Features(features)), Output(Features(part, PRESENT), also={"shared": shared})


def test_distillation_teaches_the_subset_what_the_whole_is_similar_to() -> None:
    whole, subset = views()
    shared = subset.also["shared"]
    loss, expected, scale = _distillation(whole, subset, 4.0), 0.0, 4.0

    def similarity(of: Features, i: int, j: int) -> float:
        seen = torch.ones_like(PRESENT) if of.present is None else of.present
        common = [m for m in range(3) if seen[m, i] and seen[m, j]]
        one, other = (of.x[common, x].flatten() if common else shared[x] for x in (i, j))
        return F.cosine_similarity(one, other, dim=0).item()

    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = (
            torch.tensor([scale * similarity(view.features, i, j) for j in others]).softmax(0)
            for view in (whole, subset)
        )
        expected += float((p * (p / q).log()).sum()) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert _distillation(whole, whole, 4.0).item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert whole.features.x.grad is None  # the whole is the teacher
    for taught in (subset.features.x, shared):
        assert taught.grad is not None
        assert taught.grad.isfinite().all()
        assert taught.grad.any()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_terms_are_the_mean_of_both_views(weight: float) -> None:
    whole, subset = views()
    labels = torch.tensor([0, 0, 2, 2, 1, 1])
    seen: list[tuple[Output, Tensor]] = []

    def objective(output: Output, own: Tensor) -> dict[str, Tensor]:
        seen.append((output, own))
        return {"ce": output.features.x.sum(), "centre": output.features.x.square().sum()}

    terms = both_views(objective, whole, subset, labels, weight, 4.0)  # type: ignore[arg-type]
    assert [view for view, _ in seen] == [whole, subset]
    assert all(own is labels for _, own in seen)
    one, other = objective(whole, labels), objective(subset, labels)
    for name in ("ce", "centre"):
        assert terms.pop(name).item() == pytest.approx((one[name] + other[name]).item() / 2)
    if weight:
        assert terms.pop("distil").item() == pytest.approx(0.5 * _distillation(whole, subset, 4.0).item())
    assert not terms


# --- runs -------------------------------------------------------------------------------------------------------------


def of_both(data: Path, **loss: float) -> Any:
    return with_(settings(data, epochs=1), missing={"dropout": 0.4, "view": "both"}, loss=loss)


def test_without_distillation_there_is_no_such_term(data: Path, tmp_path: Path) -> None:
    fit(of_both(data, distil=0.0), tmp_path / "run")
    assert all("distil" not in x["losses"] for x in log(tmp_path / "run") if "losses" in x)


def test_distillation_takes_its_weight_and_scale(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[float, float]]()

    def spy(whole: Output, subset: Output, scale: float) -> Tensor:
        found = _distillation(whole, subset, scale)
        seen.append((scale, float(found.detach())))
        return found

    monkeypatch.setattr("dmpt.extensions.distillation._distillation", spy)
    fit(of_both(data, metric_scale=3.0, distil=0.5), tmp_path / "run")
    assert {scale for scale, _ in seen} == {3.0}
    logged = [line["losses"]["distil"] for line in log(tmp_path / "run") if "losses" in line]
    assert logged == pytest.approx([0.5 * value for _, value in seen])
