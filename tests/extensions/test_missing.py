"""Triplets that lack a modality: data, network, losses, training."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from dmpt.base.errors import UserError
from dmpt.cli import main
from dmpt.data.layouts import load_dataset
from dmpt.data.loader import Batch, TripletDataset, train_batches
from dmpt.data.missing import drop, restrict
from dmpt.data.records import Dataset, Record
from dmpt.data.transforms import TestTransform
from dmpt.embed.extract import Seen, extract, look
from dmpt.evaluation.evaluate import evaluate, open_adapter
from dmpt.evaluation.missing import MIXED_SEED, any_to_any, measure
from dmpt.extensions.shared import SETS, SharedPart
from dmpt.method.bind import ExternalInteraction
from dmpt.method.losses import (
    batch_hard_triplet,
    centre,
    cross_entropy,
    distillation,
    normalised_triplet,
    objective,
    text_identity,
    text_literal,
    text_modality,
)
from dmpt.method.network import DMPT, Output
from dmpt.retrieval.embeddings import join
from dmpt.retrieval.metrics import evaluate as score
from dmpt.settings.config import DataConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.training.trainer import Trainer
from items import items, some_labels
from runs import fit, log, same_in_two_processes, settings, toy, with_
from small import TEXT_WIDTH, error_of, redraw, seeded, small_config, small_images, small_network, small_targets

WIDTH, IDS = 32, 4
PRESENT = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 1], [1, 0, 0, 1, 0, 1]], dtype=torch.bool)
LABELS = torch.tensor([0, 0, 2, 2, 1, 1])
DROPOUT: dict[str, Any] = {"dropout": 0.4}
DROPPED: dict[str, Any] = {"dropout": 0.5, "seed": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("toy"))


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2


# --- data -------------------------------------------------------------------------------------------------------------


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
    dataset = TripletDataset(records, transform, (0, 65535), [0] * len(records), **options)
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


def test_whole_triplets_come_with_the_subset_that_dropout_leaves(data: Path) -> None:
    whole, dropped, both = (batches_of(data, **form) for form in ({}, DROPPED, {**DROPPED, "whole": True}))
    for one, left, batch in zip(whole, dropped, both, strict=True):
        assert torch.equal(batch.images, one.images)
        assert torch.equal(batch.present, one.present)
        assert torch.equal(batch.subset, left.present)
        assert torch.equal(one.subset, one.present)
        assert torch.equal(left.subset, left.present)
    assert not all(torch.equal(batch.subset, batch.present) for batch in both)


# --- network ----------------------------------------------------------------------------------------------------------


def network_of(**sections: Any) -> DMPT:
    network = small_network(ids=IDS, **{"missing": DROPOUT, **sections}).double()
    redraw(network, seeded(5), std=0.2)
    return network


def step(network: DMPT, images: Tensor, present: Tensor | None) -> tuple[Output, dict[str, Tensor], dict[str, Tensor]]:
    """Output, losses and gradients of one training step."""
    network.train().zero_grad()
    output = network(images, present)
    heads = network.heads(output.features, output.projected, output.shared, output.present)
    targets = small_targets()
    targets = replace(targets, features=targets.features.double())
    terms = objective(network.config, output, heads, LABELS, targets)
    torch.stack(list(terms.values())).sum().backward()
    return output, terms, {n: p.grad.clone() for n, p in network.trained().items() if p.grad is not None}


@pytest.mark.parametrize("form", ["prefix", "token"])
@pytest.mark.parametrize("sections", [{}, {"heads": "paper", "text": {"z": "after"}}, {"bind": {"depth": 0}}])
def test_nothing_reads_an_absent_image(form: str, sections: dict[str, Any]) -> None:
    network = network_of(prompts=form, **sections)
    images = small_images(network.backbone, batch=6)
    poisoned = images.masked_fill(~PRESENT[..., None, None, None], torch.nan)
    (one, terms, gradients), (two, other, poisoned_gradients) = (
        step(network, given, PRESENT) for given in (images, poisoned)
    )
    assert set(terms) == {"ce", "triplet", "centre", "text", "shared"}
    assert torch.equal(one.features, two.features)
    assert one.shared is not None
    assert torch.equal(one.shared, two.shared)  # type: ignore[arg-type]
    assert terms == other
    assert gradients.keys() == poisoned_gradients.keys() == network.trained().keys()
    assert all(torch.equal(gradients[n], poisoned_gradients[n]) for n in gradients)
    assert all(g.isfinite().all() for g in gradients.values())
    with torch.no_grad():
        network.eval().bake()
        embedded = network.embed(poisoned, PRESENT)
    assert embedded.isfinite().all()
    assert not embedded.view(6, 3, -1)[~PRESENT.T].any()
    torch.testing.assert_close(embedded.square().sum(dim=1), torch.ones(6, dtype=torch.float64))


def test_all_present_is_no_mask_and_a_triplet_does_not_depend_on_its_batch() -> None:
    network = network_of()
    images = small_images(network.backbone, batch=6)
    one, terms, gradients = step(network, images, None)
    two, other, masked_gradients = step(network, images, torch.ones(3, 6, dtype=torch.bool))
    assert error_of(two.features, one.features) < 1e-12
    assert error_of(two.shared, one.shared) < 1e-12  # type: ignore[arg-type]
    assert {n: t.item() for n, t in terms.items()} == pytest.approx({n: t.item() for n, t in other.items()})
    for name, gradient in gradients.items():
        torch.testing.assert_close(masked_gradients[name], gradient, rtol=1e-8, atol=1e-10, msg=name)
    with torch.no_grad():
        whole = network.eval()(images, PRESENT)
        for b in range(6):
            alone = network(images[:, b : b + 1], PRESENT[:, b : b + 1])
            assert error_of(alone.features[:, 0], whole.features[:, b]) < 1e-12
            assert error_of(alone.shared[0], whole.shared[b]) < 1e-12


def test_absent_images_are_not_computed() -> None:
    network = network_of()
    seen: list[int] = []
    network.backbone.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    network(small_images(network.backbone, batch=6), PRESENT)
    assert seen == PRESENT.sum(dim=1).tolist()
    seen.clear()
    lone = PRESENT.clone()
    lone[2] = False
    network(small_images(network.backbone, batch=6), lone)
    assert len(seen) == 2


@pytest.mark.parametrize("sections", [{}, {"missing": {**DROPOUT, "absent": "learned"}}, {"bind": {"depth": 2}}])
def test_whole_and_subset_from_one_pass_are_those_of_two(sections: dict[str, Any]) -> None:
    network = network_of(**sections).eval()
    images = small_images(network.backbone, batch=6).double()
    passes: list[int] = []
    network.backbone.vit.patch_embed.register_forward_pre_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        both = network(images, None, PRESENT)
        assert passes == [1]
        alone, left = network(images), network(images, PRESENT)
    assert both.subset is not None
    assert both.subset.present is PRESENT
    for one, other in ((both, alone), (both.subset, left)):
        seen = torch.ones_like(PRESENT) if one.present is None else PRESENT
        assert error_of(one.features, other.features) < 1e-12
        assert error_of(one.z[seen], other.z[seen]) < 1e-12
        assert error_of(one.shared, other.shared) < 1e-12


@pytest.mark.parametrize("sections", [{}, {"missing": {**DROPOUT, "absent": "learned"}}, {"missing": DROPOUT}])
def test_what_is_present_may_be_said_on_the_cpu_wherever_the_network_is(sections: dict[str, Any]) -> None:
    """The loader's masks stay there. Tensors without content stand for those on a GPU."""
    config = {"bind": {"depth": 1, "layers": [0]}, "modality": {"source": "learned"}, "text": {"loss": "off"}}
    network = small_network(**config, **sections).eval()
    shapes = {n: t.shape for n, t in (*network.named_parameters(), *network.named_buffers()) if t.is_floating_point()}
    shape = small_images(network.backbone, batch=PRESENT.shape[1]).shape
    with FakeTensorMode():
        tensors = {name: torch.empty(shape, device="cuda") for name, shape in shapes.items()}
        images, present = torch.empty(shape, device="cuda"), torch.ones(PRESENT.shape, dtype=torch.bool)
        found = functional_call(network, tensors, (images, present))
        assert found.features.device.type == "cuda"


def test_learned_tokens_stand_for_the_absent_modality_in_the_bind() -> None:
    plain, learned = (ExternalInteraction(WIDTH, absent=length).double() for length in (0, 5))
    redraw(learned, seeded(1), std=0.3)
    plain.load_state_dict({n: t for n, t in learned.state_dict().items() if n != "absent"})
    semantic = torch.randn(3, 6, 5, WIDTH, generator=seeded(2)).double()
    assert learned.absent is not None
    filled = semantic.clone()
    for m, b in (~PRESENT).nonzero().tolist():
        filled[m, b] = learned.absent[m, 0]
    poisoned = semantic.masked_fill(~PRESENT[..., None, None], torch.nan)
    assert error_of(learned(poisoned, PRESENT), plain(filled)) < 1e-12
    assert error_of(learned(semantic), plain(semantic)) < 1e-12
    assert learned(semantic, PRESENT)[0, 2].sub(plain(semantic, PRESENT)[0, 2]).abs().max() > 0.1
    learned(semantic).sum().backward()  # a complete share of a batch gives them a gradient too, of zero
    assert learned.absent.grad is not None
    assert not learned.absent.grad.any()


def test_distillation_teaches_the_subset_what_the_whole_is_similar_to() -> None:
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double().requires_grad_()
    shared = torch.randn(6, WIDTH, generator=seeded(4)).double().requires_grad_()
    part = torch.randn(3, 6, WIDTH, generator=seeded(5)).double().masked_fill(~PRESENT[..., None], 0).requires_grad_()
    whole, subset = Output(features), Output(part, shared=shared, present=PRESENT)
    loss, expected, scale = distillation(whole, subset, 4.0), 0.0, 4.0

    def similarity(of: Output, i: int, j: int) -> float:
        seen = torch.ones_like(PRESENT) if of.present is None else of.present
        common = [m for m in range(3) if seen[m, i] and seen[m, j]]
        one, other = (of.features[common, x].flatten() if common else shared[x] for x in (i, j))
        return F.cosine_similarity(one, other, dim=0).item()

    for i in range(6):
        others = [j for j in range(6) if j != i]
        p, q = (torch.tensor([scale * similarity(view, i, j) for j in others]).softmax(0) for view in (whole, subset))
        expected += float((p * (p / q).log()).sum()) / 6
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert distillation(whole, whole, 4.0).item() == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert features.grad is None  # the whole is the teacher
    for taught in (part, shared):
        assert taught.grad is not None
        assert taught.grad.isfinite().all()
        assert taught.grad.any()


def test_the_shared_part_is_the_mean_over_the_modalities_there_are() -> None:
    part = SharedPart(WIDTH).double()
    features = torch.randn(3, 6, WIDTH, generator=seeded(0)).double()
    shared = part(features.masked_fill(~PRESENT[..., None], 0), PRESENT)
    for b in range(6):
        own = [part.project[m](features[m, b]) for m in range(3) if PRESENT[m, b]]
        assert error_of(shared[b], torch.stack(own).mean(dim=0)) < 1e-12


def test_without_dropout_there_is_no_shared_part() -> None:
    assert small_network().shared is None
    assert small_network(missing={"shared": True}).shared is not None
    assert small_network(missing={"dropout": 0.2, "shared": False}).shared is None


# --- heads and losses -------------------------------------------------------------------------------------------------


def test_heads_see_the_triplets_they_can() -> None:
    network = network_of()
    network.train()
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double()
    shared = torch.randn(6, WIDTH, generator=seeded(4)).double()
    poisoned = features.masked_fill(~PRESENT[..., None], torch.nan)
    heads = network.heads(poisoned, None, shared, PRESENT)
    complete = PRESENT.all(dim=0)
    expected = {name: features[m][PRESENT[m]] for m, name in enumerate(MODALITIES)}
    expected |= {"concat": features.transpose(0, 1).flatten(1)[complete], "shared": shared}
    assert heads.keys() == expected.keys()
    for name, feature in expected.items():
        assert torch.equal(heads[name][0], feature)
        norm = network.heads.necks[name].norm
        moved = 0.9 * torch.zeros(feature.shape[1]) + 0.1 * feature.mean(dim=0)  # statistics of these rows alone
        assert error_of(norm.running_mean, moved) < 1e-6  # type: ignore[arg-type, union-attr]


def test_a_head_without_a_pair_of_triplets_adds_nothing() -> None:
    network = network_of(heads="concat+modality").train()
    present = torch.ones(3, 6, dtype=torch.bool)
    present[2, 1:] = False  # one thermal image, one complete triplet
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double().requires_grad_()
    shared = torch.randn(6, WIDTH, generator=seeded(4)).double()
    before = network.heads.necks["tir"].norm.running_mean.clone()  # type: ignore[operator, union-attr]
    heads = network.heads(features, None, shared, present)
    assert torch.equal(before, network.heads.necks["tir"].norm.running_mean)  # type: ignore[arg-type, union-attr]
    config = small_config(text={"loss": "off"}, missing=DROPOUT)
    terms = objective(config, Output(features, shared=shared, present=present), heads, LABELS)
    ce = [cross_entropy(heads[name][1], LABELS) for name in ("rgb", "nir")]
    triplet = [batch_hard_triplet(features[m], LABELS) for m in (0, 1)]
    assert terms["ce"].item() == pytest.approx(sum(x.item() for x in ce) / 4)
    assert terms["triplet"].item() == pytest.approx(sum(x.item() for x in triplet) / 4)
    own = cross_entropy(heads["shared"][1], LABELS) + batch_hard_triplet(shared, LABELS)
    assert terms["shared"].item() == pytest.approx(own.item())
    torch.stack(list(terms.values())).sum().backward()
    assert features.grad is not None
    assert not features.grad[2, 1:].any()


def test_the_weight_of_the_shared_part() -> None:
    network = network_of().train()
    features, shared = torch.randn(3, 6, WIDTH).double(), torch.randn(6, WIDTH).double()
    heads = network.heads(features, None, shared)
    output = Output(features, shared=shared)

    def terms(**loss: float) -> dict[str, Tensor]:
        return objective(small_config(text={"loss": "off"}, missing=DROPOUT, loss=loss), output, heads, LABELS)

    assert terms(shared=2.5)["shared"].item() == pytest.approx(2.5 * terms()["shared"].item())
    assert "shared" not in terms(shared=0)
    assert terms(shared=0)["ce"] == terms()["ce"]


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_masked_losses_are_those_of_the_slots_there_are(reduction: Any, normalise: bool) -> None:
    features = torch.randn(3, 6, WIDTH, generator=seeded(3)).double()
    poisoned = features.masked_fill(~PRESENT[..., None], torch.nan)
    total = count = 0.0
    for m in range(3):  # one modality's own rows, as if it were the only one
        own = PRESENT[m]
        total += float(centre(features[m, own][None], LABELS[own], reduction, normalise)) * int(own.sum())
        count += int(own.sum())
    got = centre(poisoned, LABELS, reduction, normalise, PRESENT)
    assert got.item() == pytest.approx(total / count)


def test_masked_text_losses_are_those_of_the_slots_there_are() -> None:
    z = torch.randn(3, 6, TEXT_WIDTH, generator=seeded(3)).double().requires_grad_()
    text, positive = torch.randn(6, TEXT_WIDTH, generator=seeded(4)).double(), torch.tensor([0, 2, 4])
    identities = torch.randn(3, IDS, TEXT_WIDTH, generator=seeded(5)).double()
    modality, identity = [], []
    for m, b in PRESENT.nonzero().tolist():
        modality.append(F.cross_entropy(10 * F.cosine_similarity(z[m, b], text, dim=-1), positive[m]))
        identity.append(F.cross_entropy(10 * F.cosine_similarity(z[m, b], identities[m], dim=-1), LABELS[b]))
    loss = text_modality(z, text, positive, 10, PRESENT)
    assert loss.item() == pytest.approx(torch.stack(modality).mean().item())
    assert text_identity(z, identities, LABELS, 10, PRESENT).item() == pytest.approx(
        torch.stack(identity).mean().item()
    )
    loss.backward()
    assert z.grad is not None
    assert not z.grad[~PRESENT].any()


# --- calibration ------------------------------------------------------------------------------------------------------


def test_running_statistics_are_those_of_different_identities() -> None:
    part = SharedPart(WIDTH)
    present = torch.rand(3, 40, generator=seeded(1)) > 0.4
    present[0] |= ~present.any(dim=0)
    labels = torch.arange(40) % 5
    features = (torch.randn(3, 40, WIDTH, generator=seeded(2)) + 1).masked_fill(~present[..., None], 0)
    shared = torch.randn(40, WIDTH, generator=seeded(3))
    part.observe(features, present, shared, labels)
    found: dict[int, list[float]] = {}
    for i in range(40):
        for j in range(i + 1, 40):
            if labels[i] != labels[j]:
                both = [m for m in range(3) if present[m, i] and present[m, j]]
                one, other = (features[both, x].flatten() for x in (i, j)) if both else (shared[i], shared[j])
                which = sum(2**m for m in both)
                found.setdefault(which, []).append(float(F.cosine_similarity(one, other, dim=0)))
    assert len(found) == 8
    for which, values in found.items():
        assert float(part.mean[which]) == pytest.approx(sum(values) / len(values), abs=1e-5)
        assert float(part.variance[which]) == pytest.approx(float(torch.tensor(values).var()), rel=1e-3)
    first = part.mean.clone()
    part.observe(features * 0 + 1, None, shared, labels)  # all the same: cosine 1
    assert float(part.mean[SETS - 1]) == pytest.approx(0.9 * float(first[SETS - 1]) + 0.1, abs=1e-5)
    assert torch.equal(part.mean[1 : SETS - 1], first[1 : SETS - 1])


@pytest.mark.parametrize(("modalities", "complete"), [(("rgb", "nir", "tir"), 7), (("rgb", "nir"), 3), (("tir",), 4)])
def test_calibration_moves_every_set_to_the_scale_of_complete_triplets(
    modalities: tuple[str, ...], complete: int
) -> None:
    part = SharedPart(WIDTH, modalities)
    assert torch.equal(part.calibration(), torch.tensor([[1.0, 0.0]]).expand(8, 2))  # nothing was seen
    part.mean.copy_(torch.linspace(-0.2, 0.5, 8))
    part.variance.copy_(torch.linspace(0.04, 0.01, 8))
    part.variance[2] = -1  # never seen
    scale, shift = part.calibration().T
    assert (scale[complete], shift[complete]) == (1, 0)
    assert (scale[2], shift[2]) == (1, 0)
    for which in {0, 1, 3, 4, 5, 6, 7} - {complete}:
        mean, spread = part.mean[which], part.variance[which].sqrt()
        assert scale[which] * mean + shift[which] == pytest.approx(float(part.mean[complete]), abs=1e-6)
        assert scale[which] * spread == pytest.approx(float(part.variance[complete].sqrt()), abs=1e-6)
    part.variance.zero_()  # constant features
    assert torch.equal(part.calibration()[:, 0], torch.ones(8))


def own_data(folder: Path, source: Path, test_has: Any) -> Path:
    """A manifest of the toy set whose test triplets lack what ``test_has`` says no to."""
    listed = load_dataset("rgbnt201", source, settings(source).data)
    rows = [",".join(map(str, [*r.paths.values(), r.pid, r.camera, "train"])) for r in listed.train]
    for record in listed.gallery:
        paths = [str(path) if test_has(record, name) else "" for name, path in record.paths.items()]
        rows.append(",".join([*paths, str(record.pid), str(record.camera), "test"]))
    folder.mkdir()
    (folder / "manifest.csv").write_text("\n".join(["rgb,nir,tir,pid,camera,split", *rows]) + "\n")
    return folder


def test_a_case_without_a_valid_query_is_named(tmp_path: Path) -> None:
    toys = toy(tmp_path / "toy")
    data = own_data(tmp_path / "own", toys, lambda record, name: name != "tir" or record.camera == 1)
    fit(with_(settings(toys, epochs=0), data={"root": str(data), "layout": "manifest"}), tmp_path / "run")
    with pytest.raises(UserError, match=r"--missing rgb\+nir: no query has a match"):
        evaluate(tmp_path / "run", without="all")


def test_a_test_split_without_the_models_modalities(tmp_path: Path) -> None:
    toys = toy(tmp_path / "toy")
    data = own_data(tmp_path / "own", toys, lambda record, name: name == "rgb")
    settled = with_(settings(toys, epochs=0), data={"root": str(data), "layout": "manifest", "modalities": ("tir",)})
    fit(settled, tmp_path / "run")
    with pytest.raises(UserError, match="no query triplet has tir, which the model reads"):
        evaluate(tmp_path / "run")


# --- training ---------------------------------------------------------------------------------------------------------


def with_dropout(data: Path, **recipe: Any) -> Any:
    return with_(settings(data, **recipe), missing=DROPOUT)


def same(a: Path, b: Path) -> bool:
    left, right = load_file(a / "state.safetensors"), load_file(b / "state.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_run_with_dropout_trains_everything(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(with_dropout(data, epochs=4), tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    trainer.fit()
    assert all(not torch.equal(p, before[name]) for name, p in trainer.trained.items())
    assert any(name.startswith("shared.project") for name in before)
    assert all(
        set(x["losses"]) == {"ce", "triplet", "centre", "shared"} for x in log(tmp_path / "run") if "losses" in x
    )
    saved = load_file(tmp_path / "run" / "last" / "adapter.safetensors")
    assert (saved["shared.variance"] >= 0).any()


BOTH: dict[str, Any] = {"view": "both", "absent": "learned"}


def test_a_run_that_sees_both_trains_everything_and_halves_the_terms(data: Path, tmp_path: Path) -> None:
    config = with_(with_dropout(data, epochs=1, precision="bf16"), missing=BOTH)
    trainer = Trainer(config, tmp_path / "run")
    before = {name: p.detach().clone() for name, p in trainer.trained.items()}
    trainer.fit()
    assert any(name.endswith("absent") for name in before)
    assert all(not torch.equal(p, before[name]) for name, p in trainer.trained.items())
    lines = [x["losses"] for x in log(tmp_path / "run") if "losses" in x]
    assert all(set(line) == {"ce", "triplet", "centre", "shared", "distil"} for line in lines)
    ce = lines[0]["ce"]
    assert ce == pytest.approx(2.08, abs=0.1)  # log 8: one view's worth of it, not two
    assert evaluate(tmp_path / "run", without="rgb")["missing"]["cases"]["M(RGB)"]["mAP"] > 0


def test_without_distillation_there_is_no_such_term(data: Path, tmp_path: Path) -> None:
    config = with_(with_dropout(data, epochs=1), missing={"view": "both"}, loss={"distil": 0.0})
    fit(config, tmp_path / "run")
    assert all("distil" not in x["losses"] for x in log(tmp_path / "run") if "losses" in x)


def test_bf16_trains_with_dropout_and_is_evaluated(data: Path, tmp_path: Path) -> None:
    fit(with_dropout(data, epochs=1, precision="bf16"), tmp_path / "run")
    assert evaluate(tmp_path / "run", without="rgb")["missing"]["cases"]["M(RGB)"]["mAP"] > 0


def test_interrupted_and_resumed_with_dropout_equals_unbroken(data: Path, tmp_path: Path) -> None:
    config = with_dropout(data, epochs=2, save_every=1)
    fit(config, tmp_path / "whole")
    trainer = Trainer(config, tmp_path / "broken")
    inner, calls = trainer._step, 0

    def dying(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("killed")
        return inner(*arguments)

    trainer._step = dying  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit()
    fit(config, tmp_path / "broken", resume=True)
    assert same(tmp_path / "whole", tmp_path / "broken")
    assert log(tmp_path / "whole") == log(tmp_path / "broken")


@pytest.mark.long
@pytest.mark.parametrize("missing", [{}, BOTH])
def test_two_processes_with_dropout_do_what_one_does(data: Path, tmp_path: Path, missing: dict[str, Any]) -> None:
    config = with_(with_dropout(data, epochs=2), missing=missing)
    same_in_two_processes(config, tmp_path, rtol=5e-3, atol=1e-4)


def incomplete(layout: str, root: str, *settings: Any) -> Dataset:
    """Every other triplet lacks one modality or two."""
    whole = load_dataset(layout, root)

    def cut(records: tuple[Record, ...]) -> tuple[Record, ...]:
        lacks: list[set[str]] = [set(), {"tir"}, set(), {"rgb", "nir"}]
        return tuple(
            replace(r, paths={m: p for m, p in r.paths.items() if m not in lacks[i % 4]}) for i, r in enumerate(records)
        )

    test = cut(whole.gallery)
    return replace(whole, train=cut(whole.train), query=test, gallery=test)


def test_incomplete_triplets_train_and_are_evaluated(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmpt.training.data.load_dataset", incomplete)
    monkeypatch.setattr("dmpt.evaluation.evaluate.load_dataset", incomplete)
    fit(with_(settings(data, epochs=1), missing={"shared": True}), tmp_path / "run")
    result = evaluate(tmp_path / "run", without="all")
    assert result["queries"] == result["gallery"] == 24
    cases = result["missing"]["cases"]
    assert cases["M(RGB+NIR)"]["queries"] == 18  # those with a thermal image
    assert "mixed" not in result["missing"]["any_to_any"]


def test_no_complete_triplet_is_refused_where_a_head_needs_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(layout: str, root: str, *settings: Any) -> Dataset:
        whole = load_dataset(layout, root)
        return replace(whole, train=tuple(restrict(whole.train, ("rgb", "nir"))))

    monkeypatch.setattr("dmpt.training.data.load_dataset", two)
    with pytest.raises(UserError, match=r"no training triplet has all of rgb, nir, tir.*set data\.modalities"):
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
    necks = trainer.network.heads.necks
    assert set(necks) == {"concat", *modalities}
    assert necks["concat"].classifier.in_features == len(modalities) * 48  # type: ignore[union-attr]
    result = evaluate(tmp_path / "run", without="all" if len(modalities) > 1 else None)
    assert result["mAP"] > 0
    if len(modalities) == 1:
        with pytest.raises(UserError, match="can be missing: nothing, for it uses one modality"):
            evaluate(tmp_path / "run", without="all")
    else:
        assert set(result["missing"]["cases"]) == {"M(RGB)", "M(NIR)"}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--missing.dropout=1.5", "missing.dropout is 1.5; it must lie between 0 and 1"),
        ('--data.modalities=["nir","rgb"]', "data.modalities is ['nir', 'rgb']; name at least one of rgb, nir, tir"),
        ("--data.modalities=[]", "data.modalities is []; name at least one"),
        ("--loss.shared=-1", "loss.shared is -1.0; it must be 0 or more"),
        ("--loss.distil=-1", "loss.distil is -1.0; it must be 0 or more"),
        ("--missing.view=both", "missing.view both compares a triplet with what modality dropout leaves of it"),
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
    refused("train", f"--data.root={data}", f"--out={tmp_path / 'run'}", *re.split(r" (?=--)", setting))
    assert said in capsys.readouterr().err.replace("\n", " ")


# --- dmpt evaluate --missing ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(with_dropout(data, epochs=2), folder)
    return folder


def test_all_cases_are_printed_and_written(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", str(run), "--missing", "all", "--rerank"])
    said = capsys.readouterr().out
    for words in ("M(NIR+TIR)", "mean of the cases", "mismatched", "k-reciprocal re-ranking", "same_camera"):
        assert words in said
    found = json.loads((run / "metrics.json").read_text())
    cases = found["missing"]["cases"]
    assert list(cases) == ["M(RGB)", "M(NIR)", "M(TIR)", "M(RGB+NIR)", "M(RGB+TIR)", "M(NIR+TIR)"]
    assert found["missing"]["mean"]["mAP"] == pytest.approx(sum(x["mAP"] for x in cases.values()) / 6)
    pairs = found["missing"]["any_to_any"]["pairs"]
    by_pair = {(tuple(p["query"]), tuple(p["gallery"])): p["mAP"] for p in pairs}
    assert len(by_pair) == 49
    assert by_pair[MODALITIES, MODALITIES] == found["mAP"]
    assert by_pair[("tir",), ("tir",)] == cases["M(RGB+NIR)"]["mAP"]
    means = found["missing"]["any_to_any"]
    assert means["matched"]["mAP"] == pytest.approx(sum(v for (q, g), v in by_pair.items() if q == g) / 7)
    assert means["mismatched"]["mAP"] == pytest.approx(sum(v for (q, g), v in by_pair.items() if q != g) / 42)
    apart = [v for (q, g), v in by_pair.items() if not set(q) & set(g)]
    assert len(apart) == 12
    assert means["disjoint"]["mAP"] == pytest.approx(sum(apart) / 12)
    assert found["k_reciprocal_reranked"]["method"] == "k-reciprocal re-ranking (k1=20, k2=6, lambda=0.3)"
    plain = evaluate(run)
    assert "missing" not in plain
    assert "k_reciprocal_reranked" not in plain
    assert plain["mAP"] == found["mAP"]


def test_a_case_is_a_test_set_without_these_images(run: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = evaluate(run, without="tir+RGB")["missing"]
    assert list(one["cases"]) == ["M(RGB+TIR)"]
    assert "any_to_any" not in one

    def only(layout: str, root: str, *settings: Any) -> Dataset:
        whole = load_dataset(layout, root)
        test = tuple(restrict(whole.gallery, ("nir",)))
        return replace(whole, query=test, gallery=test)

    monkeypatch.setattr("dmpt.evaluation.evaluate.load_dataset", only)
    assert evaluate(run)["mAP"] == one["cases"]["M(RGB+TIR)"]["mAP"]


@pytest.mark.parametrize("what", ["rgb+nir+tir", "infrared", "rgb+rgb", ""])
def test_an_unknown_case_is_refused(run: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    refused("evaluate", str(run), f"--missing={what}")
    assert (
        "of this model can be missing: rgb, nir, tir, rgb+nir, rgb+tir, nir+tir; or give all"
        in capsys.readouterr().err.replace("\n", " ")
    )


def test_without_a_shared_part_it_says_so(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(settings(data, epochs=1), tmp_path / "run")
    main(["evaluate", str(tmp_path / "run"), "--missing", "all"])
    assert "no shared part was trained" in capsys.readouterr().out


# --- what a run makes of its settings


def test_batches_drop_what_their_epoch_and_index_say(data: Path) -> None:
    records = list(load_dataset("rgbnt201", data).train)
    records[1] = replace(records[1], paths={"nir": records[1].paths["nir"]})
    present = torch.cat([batch.present for batch in batches_of(data, **DROPPED)], dim=1)
    for index in range(6):
        left = drop(records[index], 0.5, 3, 1, index).paths  # batches_of draws epoch 1
        assert present[:, index].tolist() == [modality in left for modality in MODALITIES]


@pytest.mark.parametrize("view", ["both", "subset"])
def test_a_run_reads_whole_triplets_where_it_sees_both(data: Path, tmp_path: Path, view: Any) -> None:
    trainer = Trainer(with_(with_dropout(data), missing={"view": view}), tmp_path / "run")
    batches = list(trainer.data.batches(trainer.config, 0, 0, 0, 1))
    assert not all(batch.subset.all() for batch in batches)
    for batch in batches:
        assert torch.equal(batch.present, torch.ones_like(batch.subset) if view == "both" else batch.subset)


def test_distillation_takes_its_weight_and_scale(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[float, float]]()

    def spy(whole: Output, subset: Output, scale: float) -> Tensor:
        found = distillation(whole, subset, scale)
        seen.append((scale, float(found.detach())))
        return found

    monkeypatch.setattr("dmpt.training.trainer.distillation", spy)
    config = with_(with_dropout(data, epochs=1), missing={"view": "both"}, loss={"metric_scale": 3.0, "distil": 0.5})
    fit(config, tmp_path / "run")
    assert {scale for scale, _ in seen} == {3.0}
    logged = [line["losses"]["distil"] for line in log(tmp_path / "run") if "losses" in line]
    assert logged == pytest.approx([0.5 * value for _, value in seen])


def test_statistics_are_kept_of_the_sets_that_training_saw(data: Path, tmp_path: Path) -> None:
    trainer = fit(with_(settings(data, epochs=1), missing={"dropout": 1.0}), tmp_path / "run")
    assert trainer.network.shared is not None
    seen = (trainer.network.shared.variance >= 0).nonzero().flatten().tolist()
    assert 0 in seen
    assert set(seen) <= {0, 1, 2, 4}  # one modality is left of each triplet


def test_the_network_knows_what_a_complete_triplet_has() -> None:
    network = small_network(missing=DROPOUT, data={"modalities": ["rgb", "nir"]})
    assert network.shared is not None
    assert network.shared.complete == 3


@pytest.mark.parametrize("form", ["modality", "identity", "literal"])
def test_the_text_term_is_of_the_slots_there_are(form: str) -> None:
    z, texts = torch.randn(3, 6, TEXT_WIDTH, generator=seeded(3)), torch.randn(3, IDS, TEXT_WIDTH, generator=seeded(5))
    targets, heads = small_targets(), {"shared": (torch.zeros(6, WIDTH), torch.zeros(6, IDS))}
    config = small_config(text={"loss": form}, loss={"ce": 0, "triplet": 0, "shared": 0})
    terms = objective(config, Output(torch.zeros(3, 6, WIDTH), z=z, present=PRESENT), heads, LABELS, targets, texts)
    expected = {
        "modality": text_modality(z, targets.features, targets.positive, targets.scale, PRESENT),
        "identity": text_identity(z, texts, LABELS, targets.scale, PRESENT),
        "literal": text_literal(z, targets.features[targets.positive], IDS, targets.scale, PRESENT),
    }
    assert terms["text"].item() == pytest.approx(expected[form].item())


def test_the_shared_part_has_the_forms_and_weights_of_the_other_heads() -> None:
    feature, logits = torch.randn(6, WIDTH, generator=seeded(3)), torch.randn(6, IDS, generator=seeded(4))
    form = {"ce": 2.0, "triplet": 3.0, "shared": 1.5, "smoothing": 0.3, "metric": "normalised", "metric_scale": 4.0}
    config = small_config(text={"loss": "off"}, missing=DROPOUT, loss=form)
    heads = {"rgb": (feature, logits), "shared": (feature, logits)}
    terms = objective(config, Output(torch.zeros(3, 6, WIDTH), shared=feature), heads, LABELS)
    ce, triplet = cross_entropy(logits, LABELS, 0.3), normalised_triplet(feature, LABELS, 4.0)
    assert terms["shared"].item() == pytest.approx(1.5 * (2 * ce + 3 * triplet).item())


SUBSETS = [tuple(m for i, m in enumerate(MODALITIES) if code >> i & 1) for code in (7, 6, 5, 3, 4, 2, 1)]


def seen_in(kept: tuple[str, ...]) -> Seen:
    """9 queries and 15 gallery items whose features depend on what is left, as the interaction makes them."""
    has = np.array([m in kept for m in MODALITIES])
    code = sum(2 ** MODALITIES.index(m) for m in kept)
    sides = items(9, code, has, calibrated=True), items(15, 10 + code, has, calibrated=True)
    return Seen(*sides, some_labels(9), some_labels(15, 1))


def test_any_to_any_is_every_pair_and_a_draw_of_views() -> None:
    seen = {kept: seen_in(kept) for kept in SUBSETS}
    labels = seen[SUBSETS[0]].query_labels, seen[SUBSETS[0]].gallery_labels
    found = any_to_any(seen, "none")
    for pair in found["pairs"]:
        one, other = seen[tuple(pair["query"])], seen[tuple(pair["gallery"])]
        assert pair["mAP"] == score(one.query, other.gallery, *labels, "none").mAP
    chance, views = np.random.default_rng(MIXED_SEED), list(seen.values())
    choice = chance.integers(0, 7, 9), chance.integers(0, 7, 15)
    query = join(*(views[c].query[np.array([i])] for i, c in enumerate(choice[0])))
    gallery = join(*(views[c].gallery[np.array([i])] for i, c in enumerate(choice[1])))
    assert found["mixed"]["mAP"] == score(query, gallery, *labels, "none").mAP
    raw = score(query, replace(gallery, calibration=None), *labels, "none").mAP
    assert found["mixed_uncalibrated"]["mAP"] == raw != found["mixed"]["mAP"]


def test_each_side_is_cut_to_what_is_left() -> None:
    query, gallery = (
        [Record({m: Path(f"{s}{i}_{m}") for m in MODALITIES}, i, 1) for i in range(n)] for s, n in (("q", 9), ("g", 15))
    )
    pairs = list[Any]()

    def cut(pair: Any) -> Seen:
        pairs.append(pair)
        return seen_in(("nir", "tir"))

    measure((query, gallery), seen_in(MODALITIES), MODALITIES, "rgb", "none", cut)
    assert pairs == [(restrict(query, ("nir", "tir")), restrict(gallery, ("nir", "tir")))]


def test_features_have_length_1_and_the_calibration_of_their_network(data: Path, tmp_path: Path) -> None:
    fit(with_dropout(data, epochs=1), tmp_path / "run")
    opened = open_adapter(tmp_path / "run", None)
    found = extract(opened.network, opened.dataset.gallery, opened.data)
    assert found.shared is not None
    assert np.linalg.norm(found.shared, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(found.flat, axis=1) == pytest.approx(1, abs=1e-5)
    assert opened.network.shared is not None
    assert np.array_equal(found.calibration, opened.network.shared.calibration().numpy())  # type: ignore[arg-type]


def test_a_run_is_evaluated_in_the_precision_of_its_training(data: Path, tmp_path: Path) -> None:
    fit(settings(data, epochs=0, precision="bf16"), tmp_path / "run")
    assert evaluate(tmp_path / "run")["provenance"]["precision"] == "bf16"
    assert evaluate(tmp_path / "run", precision="fp32")["provenance"]["precision"] == "fp32"


def test_both_sides_are_looked_at_in_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[Any, Any]]()
    monkeypatch.setattr("dmpt.embed.extract.extract", lambda _, records, __, **how: seen.append((records, how)))
    query, gallery = ([Record({"rgb": Path(name)}, 1, 1)] for name in ("q", "g"))
    look(None, DataConfig(), (query, gallery), "bf16", 7)  # type: ignore[arg-type]
    how = {"precision": torch.bfloat16, "batch_size": 7}
    assert sorted(seen, key=str) == sorted([(query, how), (gallery, how)], key=str)
