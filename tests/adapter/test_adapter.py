"""Adapters: small, strict, with their preprocessing inside."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_files import smooth
from dmpt.adapter import folder as adapter
from dmpt.adapter.files import adapter_folder
from dmpt.base.errors import UserError
from dmpt.evaluation.conditions import Conditions
from dmpt.evaluation.evaluate import evaluate
from dmpt.towers.image import build_vit
from dmpt.training.trainer import Trainer
from runs import fit, settings, toy, with_
from small import BARE


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run whose backbone comes from a file, as a real one does."""
    folder = tmp_path_factory.mktemp("adapter")
    config = settings(toy(folder / "data"), epochs=1)
    torch.manual_seed(7)
    vit, _ = build_vit(config.backbone, (32, 32))
    save_file(vit.state_dict(), folder / "tower.safetensors")
    return fit(with_(config, backbone={"weights": str(folder / "tower.safetensors"), "grid": (2, 2)}), folder / "run")


@pytest.fixture
def copy(trained: Trainer, tmp_path: Path) -> Path:
    """The trained adapter in its run, to be damaged."""
    shutil.copy(trained.out / "config.yaml", tmp_path)
    return shutil.copytree(trained.out / "last", tmp_path / "copy")


def change_card(folder: Path, change: dict[str, Any]) -> None:
    card = json.loads((folder / "config.json").read_text())
    card.update(change)
    (folder / "config.json").write_text(json.dumps(card))


def test_a_loaded_adapter_gives_the_trained_features(trained: Trainer) -> None:
    network, card = adapter.load(trained.out / "last")
    images = torch.randn(3, 2, 3, 32, 16)
    trained.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(network.embed(images), trained.network.embed(images))
    assert card.ids == 8
    assert card.object == "person"
    assert card.config.data.mean == trained.model.tower.mean
    assert card.backbone_sha256 == trained.model.tower.sha256
    assert card.data["samples"] == 48


def test_a_position_table_is_read_again_as_in_training(tmp_path: Path) -> None:
    """Without a grid a card is older than the setting, and every table was a square then."""
    config = settings(toy(tmp_path / "data"), epochs=0)
    vit, _ = build_vit(config.backbone, (128, 32))
    vit.pos_embed.data[0, 1:] = smooth(8, 2, vit.embed_dim)
    save_file(vit.state_dict(), tmp_path / "tower.safetensors")
    run = fit(with_(config, backbone={"weights": str(tmp_path / "tower.safetensors")}), tmp_path / "run")
    table = run.network.backbone.vit.pos_embed
    network, card = adapter.load(run.out / "last")
    assert card.config.backbone.grid == (8, 2)
    assert torch.equal(network.backbone.vit.pos_embed, table)
    content = json.loads((run.out / "last" / "config.json").read_text())
    del content["config"]["backbone"]["grid"]
    (run.out / "last" / "config.json").write_text(json.dumps(content))
    square, _ = build_vit(replace(card.config.backbone, grid=(4, 4)), card.config.data.size)
    network, _ = adapter.load(run.out / "last")
    assert torch.equal(network.backbone.vit.pos_embed, square.pos_embed)
    assert not torch.equal(square.pos_embed, table)


def test_it_holds_what_was_trained_and_nothing_of_the_backbone(trained: Trainer) -> None:
    names = set(load_file(trained.out / "last" / "adapter.safetensors"))
    assert set(trained.network.trained()) <= names
    assert not any(name.startswith("backbone.") for name in names)
    content = json.loads((trained.out / "last" / "config.json").read_text())
    assert {"backbone_sha256", "object", "data", "metrics", "licence", "config", "ids"} <= set(content)


def test_the_backbone_may_move_but_not_change(trained: Trainer, tmp_path: Path) -> None:
    here = Path(trained.config.backbone.weights)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(here.read_bytes())
    adapter.load(trained.out / "last", weights=str(moved))
    other = {name: tensor + 1e-3 for name, tensor in load_file(here).items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"was trained on .* give the right file with --backbone\.weights"):
        adapter.load(trained.out / "last", weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("damage", ["missing", "unknown", "shape"])
def test_tensors_are_loaded_strictly(copy: Path, damage: str) -> None:
    tensors = load_file(copy / "adapter.safetensors")
    name = "prompts.semantic.tokens"
    if damage == "missing":
        del tensors[name]
    elif damage == "unknown":
        tensors["surprise"] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:, :, :1].contiguous()
    save_file(tensors, copy / "adapter.safetensors", {"step": "1"})
    with pytest.raises(UserError, match="it belongs to a model with other settings"):
        adapter.load(copy)


def test_another_version_is_refused(copy: Path) -> None:
    change_card(copy, {"format": "dmpt-adapter/99"})
    with pytest.raises(UserError, match="dmpt-adapter/99"):
        adapter.load(copy)


def test_damaged_files_are_named(copy: Path) -> None:
    tensors = copy / "adapter.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"adapter\.safetensors is damaged"):
        adapter.load(copy)
    with pytest.raises(UserError, match=r"cannot be read .* check its rights"), adapter.reading(tensors):
        raise PermissionError(13, "Permission denied")
    tensors.unlink()
    with pytest.raises(UserError, match="does not exist"):
        adapter.load(copy)
    (copy / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        adapter.load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match="is no adapter"):
        adapter.load(copy)


def test_a_card_with_a_missing_key_is_named(copy: Path) -> None:
    card = json.loads((copy / "config.json").read_text())
    del card["ids"]
    (copy / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="lacks the key 'ids'"):
        adapter.load(copy)


@pytest.mark.parametrize(("key", "value"), [("ids", "12"), ("data", "rgbnt201"), ("metrics", []), ("licence", None)])
def test_a_card_with_a_value_of_another_type_is_named(copy: Path, key: str, value: object) -> None:
    change_card(copy, {key: value})
    with pytest.raises(UserError, match=rf"config\.json: card\.{key} is .*; it must be .*; copy it again"):
        adapter.load(copy)


def test_an_adapter_alone_can_be_evaluated(trained: Trainer, copy: Path) -> None:
    from_run = evaluate(trained.out)
    alone = evaluate(copy)
    assert alone.metrics.mAP == from_run.metrics.mAP
    with pytest.raises(UserError, match="is an adapter itself"):
        evaluate(copy, Conditions(which="best"))


def test_weights_of_initial_values_are_checked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = fit(settings(toy(tmp_path / "data"), epochs=0), tmp_path / "run")
    adapter.load(trainer.out / "last")
    card = json.loads((trainer.out / "last" / "config.json").read_text())
    card["config"]["train"]["seed"] = 1  # draws another tower, as another version of timm may
    (trainer.out / "last" / "config.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="was trained on"):
        adapter.load(trainer.out / "last")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": None}, "data: must be keys and values"),
        ({"heads": "five"}, 'heads is "five"; it must be concat'),
        ({"surprise": 1}, "this version of dmpt has no .*surprise"),
    ],
)
def test_a_card_with_settings_that_cannot_be_is_named(copy: Path, change: dict[str, Any], said: str) -> None:
    card = json.loads((copy / "config.json").read_text())
    change_card(copy, {"config": card["config"] | change})
    with pytest.raises(UserError, match=said):
        adapter.load(copy)


def test_best_goes_before_last_and_can_be_asked_for(tmp_path: Path) -> None:
    for which in ("best", "last"):
        (tmp_path / which).mkdir()
        (tmp_path / which / "adapter.safetensors").touch()
    (tmp_path / "last" / "config.json").touch()
    assert adapter_folder(tmp_path).name == "last"  # a kill came between the first best's two files
    (tmp_path / "best" / "config.json").touch()
    assert adapter_folder(tmp_path).name == "best"
    assert adapter_folder(tmp_path, "last").name == "last"


def test_features_that_are_not_finite_are_refused(trained: Trainer, copy: Path) -> None:
    tensors = load_file(copy / "adapter.safetensors")
    for value, said in ((3e38, "hold NaN"), (float("nan"), r"prompts\.semantic\.tokens holds NaN or infinity")):
        tensors["prompts.semantic.tokens"][:] = value
        save_file(tensors, copy / "adapter.safetensors", {"step": "1"})
        with pytest.raises(UserError, match=said):
            evaluate(copy)


def test_one_camera_has_no_valid_query(trained: Trainer, tmp_path: Path) -> None:
    data = toy(tmp_path / "one", cameras=1)
    with pytest.raises(UserError, match="camera"):
        evaluate(trained.out, Conditions(root=str(data)))


def test_a_gallery_under_ten_is_fine(trained: Trainer, tmp_path: Path) -> None:
    data = toy(tmp_path / "few", test_ids=2, images=2)
    result = evaluate(trained.out, Conditions(root=str(data)))
    assert result.metrics.gallery == 4
    assert result.metrics.rank10 == 100


OLDER: dict[str, tuple[dict[str, Any], str, str]] = {
    "linear": (BARE | {"backbone": {"tune": "linear"}}, "readout.map.0.weight", "probe.map.0.weight"),
    "exchanges": (
        {"bind": {"layers": (0,)}},
        "exchanges.0.external.key.weight",
        "bind.between.0.external.key.weight",
    ),
    "shared": ({"missing": {"dropout": 0.4}}, "also.shared.project.2.bias", "shared.project.2.bias"),
}


@pytest.mark.parametrize("name", OLDER)
def test_adapters_with_older_names_are_read(tmp_path: Path, name: str) -> None:
    changes, now, then = OLDER[name]
    trainer = fit(with_(settings(toy(tmp_path / "data"), epochs=1), **changes), tmp_path / "run")
    folder = tmp_path / "run" / "last"
    path = folder / "adapter.safetensors"
    tensors, metadata = load_file(path), adapter.metadata_of(path)
    assert now in tensors
    names = {new: old for old, new in adapter._RENAMED.items()}

    def of_old(tensor: str) -> str:
        new = next((prefix for prefix in names if tensor.startswith(prefix)), "")
        return names.get(new, "") + tensor.removeprefix(new)

    older = {of_old(tensor): value for tensor, value in tensors.items()}
    assert then in older
    assert not any(tensor.startswith(tuple(names)) for tensor in older)
    assert sum(tensor.startswith("heads.") for tensor in older) == sum(n.startswith("heads.") for n in tensors)
    save_file(older, path, metadata)
    network, _ = adapter.load(folder)
    own = network.own_state()
    assert own.keys() == tensors.keys()
    assert all(torch.equal(own[tensor], value) for tensor, value in tensors.items())
    images = torch.randn(3, 2, 3, 32, 16)
    with torch.no_grad():
        assert torch.equal(network.embed(images), trainer.network.eval().embed(images))
