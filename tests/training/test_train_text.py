"""Training with words and text losses, on a small CLIP in open_clip's names: image and text tower from one file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_files import OVERRIDES, backbone, clip, save, save_config
from dmpt.adapter import folder as adapter
from dmpt.base.errors import UserError
from dmpt.evaluation.evaluate import evaluate
from dmpt.extensions.assemble import assemble
from dmpt.extensions.identity_text import IdentityText
from dmpt.method.losses import Batch
from dmpt.method.prompts import pool
from dmpt.settings.config import Config, TextConfig
from dmpt.settings.modalities import MODALITIES
from dmpt.settings.shipped import read_config, shipped
from dmpt.towers.phrases import TextTargets, text_file
from dmpt.training.trainer import Trainer
from runs import fit, log, settings, toy, with_


@pytest.fixture
def clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The paper's setting on the small CLIP: words, modality loss, heads on the projections."""
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    file = save(clip(), tmp_path, "safetensors")
    config = settings(toy(tmp_path / "data"), epochs=2)
    text = TextConfig(loss="modality", tower=save_config(tmp_path), weights=str(file))

    config = replace(config, backbone=backbone(file), text=text, heads="paper")
    return with_(config, modality={"source": "words", "length": 2})


def losses(out: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in log(out) if "losses" in line]


def test_words_and_modality_loss(clipped: Config, tmp_path: Path) -> None:
    trainer = fit(clipped, tmp_path / "run")
    terms = losses(tmp_path / "run")
    assert set(terms[0]) == {"ce", "metric", "centre", "text"}
    assert terms[-1]["text"] < terms[0]["text"]
    words = trainer.network.prompts.modality.words  # type: ignore[union-attr]
    assert words.shape == (3, 2, 48)
    assert not words.requires_grad
    assert "projection.weight" not in trainer.trained
    assert "projected" in trainer.objective.heads.necks


def test_the_adapter_needs_no_text_tower(clipped: Config, tmp_path: Path) -> None:
    fit(clipped, tmp_path / "run")
    here = evaluate(tmp_path / "run")
    Path(clipped.text.tower).unlink()
    for cached in (tmp_path / "cache").rglob("*.safetensors"):
        cached.unlink()
    assert evaluate(tmp_path / "run").metrics.mAP == here.metrics.mAP


def test_saturation_of_the_text_loss_is_marked_once(
    clipped: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = fit(with_(clipped, loss={"text": 1e-4}), tmp_path / "weighted")
    assert trainer.progress.saturated is None  # the mark is for the loss itself, whatever its weight
    monkeypatch.setattr("dmpt.training.trainer._SATURATED", 1e9)
    trainer = fit(clipped, tmp_path / "run")
    assert trainer.progress.saturated == 1
    assert [line["step"] for line in log(tmp_path / "run") if line.get("text_saturated")] == [1]
    assert adapter.load_card(tmp_path / "run" / "last").metrics["text_saturated_at"] == 1


def test_saturation_is_judged_by_the_mean_over_the_modalities_where_the_loss_is_their_sum(
    clipped: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = with_(clipped, train={"epochs": 1})
    fit(one, tmp_path / "mean")
    first = log(tmp_path / "mean")[0]["losses"]["text"]
    summed = with_(one, text={"reduction": "sum"})
    for share, step in ((1.5, 1), (0.5, None)):
        monkeypatch.setattr("dmpt.training.trainer._SATURATED", share * first)
        monkeypatch.setattr("dmpt.training.trainer.Trainer._save", lambda _: None)
        trainer = Trainer(summed, tmp_path / str(share))
        trainer._step(next(trainer.data.batches(trainer.config, 0, 0, 0, 1)), 10)
        assert trainer.progress.saturated == step
        trainer.close()


def test_the_literal_loss_is_a_constant_that_trains_nothing(clipped: Config, tmp_path: Path) -> None:
    fit(with_(clipped, text={"loss": "literal"}), tmp_path / "literal")
    fit(with_(clipped, text={"loss": "off"}), tmp_path / "off")
    batch = 4 * 2
    assert all(terms["text"] == pytest.approx(3 * batch / 8) for terms in losses(tmp_path / "literal"))
    with_text, without = (load_file(tmp_path / name / "last" / "adapter.safetensors") for name in ("literal", "off"))
    for name in without:
        torch.testing.assert_close(with_text[name], without[name], rtol=1e-3, atol=1e-5)


def test_identity_tokens_are_trained_resumed_and_left_out_of_the_adapter(clipped: Config, tmp_path: Path) -> None:
    config = with_(clipped, text={"loss": "identity", "tokens": 2})
    whole = fit(config, tmp_path / "whole")
    assert "identity_text.tokens" in whole.trained
    state = load_file(tmp_path / "whole" / "state.safetensors")
    assert state["model.identity_text.tokens"].shape == (3, 8, 2, 48)
    assert not any("identity_text" in name for name in load_file(tmp_path / "whole" / "last" / "adapter.safetensors"))
    again = Trainer(config, tmp_path / "whole", resume=True)
    assert torch.equal(
        again.network.own_state()["identity_text.tokens"], whole.network.own_state()["identity_text.tokens"]
    )
    evaluate(tmp_path / "whole")


def test_identity_tokens_need_the_towers_own_text_tower_whatever_a_ready_file_says(
    clipped: Config, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.safetensors"
    text_file(clipped.text).save(ready)
    config = with_(clipped, text={"loss": "identity", "file": str(ready)}, train={"epochs": 1})
    (tmp_path / "gelu").mkdir()
    gelu = save(clip(False), tmp_path / "gelu", "safetensors", False)
    other = {"tower": save_config(tmp_path / "gelu", False), "weights": str(gelu)}
    with pytest.raises(UserError, match="are not of one CLIP"):
        Trainer(with_(config, text=other), tmp_path / "run")
    fit(config, tmp_path / "run")
    changed = {name: tensor + 0.01 for name, tensor in load_file(clipped.text.weights).items()}
    save_file(changed, tmp_path / "changed.safetensors")
    with pytest.raises(UserError, match=r"cannot resume .* sha256 of the text tower's weights was"):
        Trainer(with_(config, text={"weights": str(tmp_path / "changed.safetensors")}), tmp_path / "run", resume=True)


def test_a_tower_without_text_space_trains_its_projection_or_is_refused(clipped: Config, tmp_path: Path) -> None:
    plain = with_(
        clipped,
        backbone={
            "name": "vit_base_patch16_224.augreg_in21k",
            "weights": "random",
            "overrides": {k: v for k, v in OVERRIDES.items() if k != "num_classes"},
        },
    )
    with pytest.raises(UserError, match="has no image projection"):
        Trainer(plain, tmp_path / "run")
    with pytest.raises(UserError, match="features are 32 wide, projected image features 512"):
        Trainer(with_(plain, backbone={"projection": "trained"}), tmp_path / "run")
    trainer = fit(with_(plain, backbone={"projection": "trained", "projection_dim": 32}), tmp_path / "run")
    assert "projection.weight" in trainer.trained


@pytest.mark.parametrize("source", ["attribute", "permuted", "random", "learned"])
def test_other_sources_of_modality_prompts(clipped: Config, tmp_path: Path, source: Any) -> None:
    trainer = fit(with_(clipped, modality={"source": source, "length": 1}, train={"epochs": 1}), tmp_path / "run")
    assert trainer.network.prompts is not None
    assert ("prompts.modality.words" in trainer.trained) == (source == "learned")


def test_more_modality_prompts_than_words_is_an_error(clipped: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"modality\.length is 4, but the shortest modality phrase has 3 tokens"):
        Trainer(with_(clipped, modality={"length": 4}), tmp_path / "run")


def test_what_the_run_says_of_its_text_side(clipped: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Trainer(clipped, tmp_path / "a")
    said = capfd.readouterr().err
    assert "modality prompts from words" in said
    assert "text loss modality, tower projection" in said
    Trainer(with_(clipped, text={"loss": "off"}, modality={"source": "learned"}), tmp_path / "b")
    said = capfd.readouterr().err
    assert "modality prompts from learned" in said
    assert "text loss off" in said


def test_tensorboard_is_an_extra(clipped: Config, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fit(with_(clipped, train={"tensorboard": True, "epochs": 1}), tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


# The other benchmarks' differ in the data alone (test_layouts.py).
CONFIGS = [name for name in shipped() if name.startswith("rgbnt201")]


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_settings_move_every_trained_tensor_within_three_steps(
    name: str, clipped: Config, tmp_path: Path
) -> None:
    own = read_config(name)
    tower: dict[str, Any] = {"overrides": OVERRIDES}
    if own.backbone.projection == "trained":
        bare = {name: value for name, value in OVERRIDES.items() if name != "num_classes"}
        tower = {"overrides": bare, "weights": "random", "projection_dim": 32}
    else:
        tower["weights"] = clipped.backbone.weights
    small = with_(
        own,
        data={"root": clipped.data.root, "size": (32, 16), "workers": 0},
        backbone=tower,
        text={"tower": clipped.text.tower, "weights": clipped.text.weights},
        train={"epochs": 3, "ids": 8, "instances": 4, "weight_decay": 0.0},  # decay would look like a gradient
    )
    trainer = fit(small, tmp_path / "run")
    assert trainer.progress.step == 3
    moments = trainer.optimizer.optimizer.state
    still = [name for name, p in trainer.trained.items() if not moments[p]["exp_avg_sq"].any()]
    assert still == []


@pytest.mark.parametrize(("thing", "rows"), [("person", [0, 2, 4]), ("vehicle", [1, 3, 5])])
def test_texts_are_of_the_data_sets_object(
    clipped: Config, thing: str, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert targets_of(clipped, thing, monkeypatch).positive.tolist() == rows
    config = with_(clipped, text={"loss": "identity", "tokens": 2})
    text = assemble(config, 8, thing).network.get_submodule("identity_text")
    own = IdentityText(config.text, 8, thing)
    own.load_state_dict(text.state_dict())
    assert torch.equal(text(), own())


def targets_of(config: Config, thing: str, monkeypatch: pytest.MonkeyPatch) -> TextTargets:
    """What the text loss of the assembled objective is given."""
    model, seen = assemble(config, 8, thing), list[TextTargets]()
    monkeypatch.setattr(
        "dmpt.extensions.assemble.text_modality", lambda _, targets, __: seen.append(targets) or torch.zeros(())
    )
    output = model.network(torch.zeros(3, 2, 3, 32, 16))
    (text,) = (term for term in model.objective.terms if term.name == "text")
    text.loss(Batch(output, {}, torch.tensor([0, 1])))
    return seen[0]


def test_the_text_loss_has_the_scale_and_features_of_its_tower(
    clipped: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets, file = targets_of(clipped, "person", monkeypatch), text_file(clipped.text)
    assert targets.scale == file.logit_scale != 1
    assert torch.equal(targets.features, file.features)


@pytest.mark.parametrize(("source", "length"), [("words", 2), ("attribute", 1), ("permuted", 2)])
def test_modality_prompts_are_fed_the_words_of_their_modality(clipped: Config, source: Any, length: int) -> None:
    file = text_file(clipped.text)
    words = file.attributes if source == "attribute" else file.words
    order = ("tir", "rgb", "nir") if source == "permuted" else MODALITIES
    network = assemble(with_(clipped, modality={"source": source, "length": length}), 8, "person").network
    expected = pool([words[modality] for modality in order], length)
    assert torch.equal(network.get_buffer("prompts.modality.words"), expected)
