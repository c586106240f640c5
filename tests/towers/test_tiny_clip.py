"""The tool that trains the tiny CLIP: rendering, resuming, and files that load as every CLIP's do."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from clip_files import tiny_clip
from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.method.backbone import Backbone
from dmpt.settings.config import Config, DataConfig, TextConfig
from dmpt.towers import packaged as assets
from dmpt.towers.hub import resolve
from dmpt.towers.image import build_vit
from dmpt.towers.phrases import ATTRIBUTES, PHRASES, PROMPTS, TextFile, check_matches, text_file
from dmpt.towers.tensors import read_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import pretrain_tiny_clip
import tiny_data
import tiny_model
from tiny_model import TinyCLIP, Words, contrastive_loss

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 200), "white": (230, 230, 230)}


@dataclass
class Shot:
    rgb: Any
    nir: Any
    tir: Any
    quality: tuple[int, int, int] = (90, 80, 70)


class StubWorld:
    """Coloured rectangles."""

    def __init__(self, object: str, seed: int, cameras: int = 4, size: tuple[int, int] = (128, 64)) -> None:
        self.object, self.seed, self.size = object, seed, size

    def _colour(self, pid: int) -> str:
        return list(COLOURS)[int(np.random.default_rng([self.seed, pid]).integers(4))]

    def caption(self, pid: int, modality: str) -> str:
        words = {
            "rgb": self._colour(pid),
            "nir": ("bright", "dark")[pid % 3 > 1],
            "tir": f"warm{'' if pid % 2 else ' cold'}",
        }
        return f"{self.object} in {words[modality]}"

    def shoot(self, pid: int, camera: int, number: int) -> Shot:
        draw = np.random.default_rng([self.seed, pid, camera, number])
        rgb = draw.integers(0, 60, (*self.size, 3), dtype=np.uint8)
        rgb[20:-20, 20:-20] = COLOURS[self._colour(pid)]
        return Shot(rgb, rgb[..., 0], rgb[..., 1])


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiny_data, "World", StubWorld)
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "dmpt"))
    changes = {"embed_dim": 48, "depth": 2}
    for name, value in changes.items():
        monkeypatch.setitem(tiny_model.OVERRIDES, name, value)


def command(folder: Path, *more: str) -> list[str]:
    return [
        *("--out", str(folder / "out"), "--cache", str(folder / "cache"), "--docs", str(folder / "docs")),
        *("--pictures", "67", "--person-worlds", "1", "--vehicle-worlds", "1", "--epochs", "2", "--batch", "8"),
        *("--threads", "1", "--workers", "0", "--save-every", "3", "--held-out", "8", *more),
    ]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    pretrain_tiny_clip.main(command(tmp_path))
    return tmp_path / "out"


@pytest.fixture
def shipped(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(assets, "_FOLDER", trained)
    return trained


def model_of(folder: Path) -> tuple[TinyCLIP, Words]:
    """The towers as training left them."""
    from safetensors import safe_open

    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["tiny_clip"])
    words = Words(about["vocabulary"])
    assert about["words"] == words.tokens
    model = TinyCLIP(len(words.kept)).eval()
    tensors = load_file(folder / "checkpoint.safetensors")
    model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
    return model, words


# --- the files -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_files_load_as_every_clips_and_say_what_the_tool_says(shipped: Path) -> None:
    model, words = model_of(shipped)
    backbone, text = tiny_clip()
    vit, info = build_vit(replace(backbone, grid=(8, 8)), tiny_data.SIZE)  # three steps leave no order in it
    assert info.unused == ()
    assert (info.licence, info.quick_gelu) == ("Apache-2.0", True)
    assert all(value.dtype == torch.float16 for value in load_file(shipped / "vit.safetensors").values())
    assert all(value.dtype == torch.float32 for value in vit.state_dict().values())
    pictures = torch.rand(3, 3, *tiny_data.SIZE)
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (info.mean, info.std))
    expected = model.encode_image(pictures)
    frozen = Backbone(vit)
    cls = frozen.norm(frozen((pictures - mean) / std)[:, 0])
    assert info.projection is not None
    torch.testing.assert_close(cls @ info.projection.T, expected, atol=5e-3, rtol=5e-3)
    assert expected.std(dim=0).max() > 1e-3  # not one answer for all pictures

    file = text_file(text)
    check_matches(file, info, "tower", 128)
    torch.testing.assert_close(file.features, model.encode_text(words(PROMPTS)))
    assert file.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert [len(part) for part in file.words.values()] == [3, 5, 5]
    assert [len(part) for part in file.attributes.values()] == [1, 3, 3]
    for group, parts in ((PHRASES, file.words), (ATTRIBUTES, file.attributes)):
        for modality, phrase in group.items():
            # Not one of the paper's words is missing in the vocabulary.
            assert 0 not in words.encode(phrase)
            assert torch.equal(parts[modality], model.text.token_embedding.weight[words.encode(phrase)])
    tower_alone = text_file(replace(text, file=None))
    torch.testing.assert_close(tower_alone.features, file.features, atol=5e-3, rtol=5e-3)  # half precision
    assert tower_alone.logit_scale == pytest.approx(file.logit_scale)


@pytest.mark.parametrize("loss", ["modality", "identity"])
def test_dmpt_builds_on_them(shipped: Path, loss: Any) -> None:
    from dmpt.extensions.assemble import assemble

    backbone, text = tiny_clip()
    backbone = replace(backbone, grid=(8, 8))
    config = Config(data=DataConfig(size=(128, 64)), backbone=backbone, text=replace(text, loss=loss))
    model = assemble(config, 4, "person")
    digest = sha256(shipped / ("text_tower.safetensors" if loss == "identity" else "vit.safetensors"))
    assert model.text_sha256 == digest
    assert "text" in {term.name for term in model.objective.terms}
    assert model.network.embed(torch.zeros(3, 2, 3, 128, 64)).shape == (2, 3 * 48)
    if loss == "identity":
        assert model.network.get_submodule("identity_text")().shape == (3, 4, 128)


@torch.no_grad()
def test_the_packages_text_tower_says_what_its_text_file_says() -> None:
    _, text = tiny_clip()
    tower, file = text_file(replace(text, file=None)), text_file(text)
    torch.testing.assert_close(F.normalize(tower.features), F.normalize(file.features), atol=2e-3, rtol=0)
    assert tower.logit_scale == pytest.approx(file.logit_scale)
    for one, other in ((tower.words, file.words), (tower.attributes, file.attributes)):
        for modality, words in one.items():
            torch.testing.assert_close(words, other[modality], atol=1e-4, rtol=1e-3)


def test_the_report_and_the_card(trained: Path) -> None:
    card = json.loads((trained / "tiny_clip.json").read_text())
    files = "vit.safetensors", "text.safetensors", "text_tower.safetensors", "text_tower.json"
    assert card["sha256"] == {name: sha256(trained / name) for name in files}
    assert card["steps"] == 2 * (card["pictures"] // 8) == card["curve"][-1][0]
    assert 0 < card["infrared_share"] < 0.1
    page = (trained.parent / "docs" / "tiny_clip.md").read_text()
    assert card["command"] in page
    assert all(digest in page for digest in card["sha256"].values())
    assert "nan" not in page


# --- training --------------------------------------------------------------------------------------------------------


def test_killed_and_started_again_it_ends_the_same(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def killed(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:  # two steps behind the last checkpoint
            raise KeyboardInterrupt
        return contrastive_loss(*arguments)

    again = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_tiny_clip, "contrastive_loss", killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain_tiny_clip.main(command(again))
    assert not (again / "out" / "vit.safetensors").exists()
    pretrain_tiny_clip.main(command(again))
    assert (again / "out" / "vit.safetensors").read_bytes() == (trained / "vit.safetensors").read_bytes()
    texts = [read_tensors(folder / "text.safetensors") for folder in (trained, again / "out")]
    assert texts[0][1] == texts[1][1]  # safetensors writes metadata in any order, so bytes may differ
    assert all(torch.equal(tensor, texts[1][0][name]) for name, tensor in texts[0][0].items())
    one, other = (json.loads((folder / "tiny_clip.json").read_text()) for folder in (trained, again / "out"))
    assert one["curve"] == other["curve"]


def test_a_checkpoint_of_another_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        pretrain_tiny_clip.main(command(trained.parent, "--lr", "2e-3"))
    assert stopped.value.code == 2


def test_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pretrain_tiny_clip, "contrastive_loss", lambda image, *rest: contrastive_loss(image, *rest) * torch.nan
    )
    args = pretrain_tiny_clip._parser().parse_args(command(tmp_path))
    with pytest.raises(UserError, match="loss is nan at step 0"):
        pretrain_tiny_clip.run(args, "")


def test_minutes_choose_the_epochs_and_change_nothing_else(trained: Path, tmp_path: Path) -> None:
    """The steps that were only timed leave no trace: two epochs by --minutes are two by --epochs."""
    pretrain = pretrain_tiny_clip
    args = pretrain._parser().parse_args(command(tmp_path / "timed", "--minutes", "1"))
    pictures = tiny_data.captioned(tiny_data.plan(67, 1, 1), args.cache, 0)
    timed = pretrain.Training(args, pictures)
    assert timed.epochs >= 1
    timed.epochs = 2
    timed.fit()
    assert timed.step == json.loads((trained / "tiny_clip.json").read_text())["steps"]
    expected = load_file(trained / "checkpoint.safetensors")
    assert all(torch.equal(value, expected[f"model.{name}"]) for name, value in timed.model.state_dict().items())


def test_loss_against_open_clips() -> None:
    from open_clip import ClipLoss

    torch.manual_seed(0)
    image, text = F.normalize(torch.randn(2, 6, 16), dim=-1)
    ids = torch.arange(6)[:, None]
    scale = torch.tensor(7.0)
    torch.testing.assert_close(contrastive_loss(3 * image, 5 * text, scale, ids), ClipLoss()(image, text, scale))
    ids[5] = ids[0]  # the same words: no negatives of each other
    logits = scale * image @ text.T
    logits[0, 5] = logits[5, 0] = -torch.inf
    losses = [F.cross_entropy(table, torch.arange(6)) for table in (logits, logits.T)]
    torch.testing.assert_close(contrastive_loss(image, text, scale, ids), sum(losses) / 2)


# --- words and pictures ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    words = Words.of(["person in a red coat", "vehicle"])
    model = TinyCLIP(len(words.kept)).eval()
    short = words(["a photo of a person."])
    long = words(["a photo of a person.", "a visible photo of a person in a red coat"])
    assert short.shape[1] < long.shape[1]
    torch.testing.assert_close(model.encode_text(long)[:1], model.encode_text(short))
    assert bool((long.argmax(dim=1) == (long != 0).sum(dim=1) - 1).all())  # the end of text has the largest id


def test_pictures_are_rendered_once_and_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = tiny_data.plan(67, 1, 1)
    assert [world.pictures for world in worlds] == [34, 33]
    assert min(world.seed for world in worlds) == tiny_data.FIRST_SEED
    assert not {world.seed for world in tiny_data.plan(60_000, 40, 20)} & set(tiny_data.HELD_OUT.values())
    first = tiny_data.captioned(worlds, tmp_path, 0)
    assert first.picture(0).shape == (*tiny_data.SIZE, 3)
    assert [item.modality for item in first.items].count("rgb") == 67
    other = tiny_data.captioned(worlds, tmp_path / "other", 0)
    assert all(np.array_equal(first.picture(i), other.picture(i)) for i in range(len(first)))
    monkeypatch.setattr(tiny_data, "World", None)
    assert tiny_data.captioned(worlds, tmp_path, 0).items == first.items


# --- what comes with the package -------------------------------------------------------------------------------------


def test_changed_and_unknown_files(shipped: Path) -> None:
    assert resolve("package:vit.safetensors", "any") == shipped / "vit.safetensors"
    with pytest.raises(UserError, match=r"no such file comes with dmpt; there are text.safetensors, text_tower"):
        resolve("package:other", "any")
    save_file({"x": torch.ones(1)}, shipped / "text.safetensors")
    with pytest.raises(UserError, match=r"another sha256.*install dmpt again") as error:
        text_file(TextConfig(file="package:text.safetensors"))
    assert "\n" not in str(error.value)
    (shipped / "tiny_clip.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        resolve("package:vit.safetensors", "any")


def test_a_text_file_by_its_path(shipped: Path) -> None:
    path = shipped / "text.safetensors"
    assert torch.equal(text_file(TextConfig(file=str(path))).features, TextFile.load(path).features)
