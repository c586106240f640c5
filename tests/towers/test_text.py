"""Words and text features from open_clip's text tower, and the file that keeps them."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from clip_files import FORMATS, SIZE, backbone, clip, one_line, save, save_config
from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.settings.config import TextConfig
from dmpt.towers import phrases as text
from dmpt.towers.image import build_vit
from dmpt.towers.phrases import ATTRIBUTES, PHRASES, PROMPTS, TextFile, check_matches, text_file
from dmpt.towers.text import load_text_tower


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> TextConfig:
    """A QuickGELU tower in open_clip's names."""
    return TextConfig(tower=save_config(tmp_path), weights=str(save(clip(), tmp_path, "safetensors")))


def test_prompts_and_tokens_are_the_papers() -> None:
    tokenizer = open_clip.SimpleTokenizer()
    assert [len(tokenizer.encode(phrase)) for phrase in PHRASES.values()] == [3, 5, 5]
    assert [len(tokenizer.encode(word)) for word in ATTRIBUTES.values()] == [1, 3, 3]
    assert list(PHRASES) == list(ATTRIBUTES) == ["rgb", "nir", "tir"]
    assert PROMPTS == (
        "a visible photo of a person.",
        "a visible photo of a vehicle.",
        "a near-infrared photo of a person.",
        "a near-infrared photo of a vehicle.",
        "a thermal-infrared photo of a person.",
        "a thermal-infrared photo of a vehicle.",
    )


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "timm"])
@torch.no_grad()
def test_every_format_gives_open_clips_features(kind: str, quick: bool, tmp_path: Path) -> None:
    if kind == "archive" and not quick:
        pytest.skip("OpenAI's archives have QuickGELU")
    model = clip(quick, half=kind == "archive")
    path = save(model, tmp_path, kind, quick)
    file = text_file(TextConfig(tower=save_config(tmp_path, quick), weights=str(path)))
    tokens = open_clip.SimpleTokenizer()(list(PROMPTS))
    torch.testing.assert_close(file.features, model.encode_text(tokens), atol=1e-5, rtol=1e-5)
    for group, words in ((PHRASES, file.words), (ATTRIBUTES, file.attributes)):
        for modality, phrase in group.items():
            ids = open_clip.SimpleTokenizer().encode(phrase)
            torch.testing.assert_close(words[modality], model.token_embedding.weight[ids])
    assert file.logit_scale == pytest.approx(model.logit_scale.exp().item())
    assert (file.tower, file.sha256, file.quick_gelu) == ("tiny", sha256(path), quick)


@torch.no_grad()
def test_gelu_is_not_quickgelu(tmp_path: Path) -> None:
    path = str(save(clip(), tmp_path, "safetensors"))
    quick = text_file(TextConfig(tower=save_config(tmp_path, True), weights=path))
    plain = text_file(TextConfig(tower=save_config(tmp_path, False), weights=path))
    assert (quick.features - plain.features).abs().max() > 1e-3  # nor does one answer from the other's cache


def test_the_tower_is_frozen_and_custom_text_names_load(tmp_path: Path, tiny: TextConfig) -> None:
    path = tmp_path / "custom.safetensors"
    tensors = load_file(tiny.weights)
    text_half = {n: t for n, t in tensors.items() if not n.startswith("visual.") and n != "logit_scale"}
    custom = {f"text.{n}": t for n, t in text_half.items()} | {"logit_scale": tensors["logit_scale"]}
    save_file(custom, path)
    tower = load_text_tower(replace(tiny, weights=str(path)))
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert torch.equal(tower.ln_final.weight, tensors["ln_final.weight"])


def test_a_tower_of_few_words_and_a_vocabulary_that_does_not_fit(tmp_path: Path, tiny: TextConfig) -> None:
    tensors = load_file(tiny.weights)
    kept = sorted({i for prompt in open_clip.SimpleTokenizer()(list(PROMPTS)).tolist() for i in prompt})
    few = {**tensors, "token_embedding.weight": tensors["token_embedding.weight"][kept].clone()}
    path = tmp_path / "few.safetensors"
    save_file(few, path, {"vocabulary": json.dumps(kept)})
    assert torch.equal(text_file(replace(tiny, weights=str(path))).features, text_file(tiny).features)
    for wrong in (kept[1:], [*kept[1:], 49408], ["a"] * len(kept), None):
        save_file(few, path, {"vocabulary": json.dumps(wrong)})
        with pytest.raises(UserError, match="its vocabulary does not fit") as error:
            load_text_tower(replace(tiny, weights=str(path)))
        one_line(error)
    save_file(few, path, {"vocabulary": "["})
    with pytest.raises(UserError, match="its vocabulary does not fit"):
        load_text_tower(replace(tiny, weights=str(path)))


# --- cache -----------------------------------------------------------------------------------------------------------


def test_built_once_then_read(tiny: TextConfig, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    first = text_file(tiny)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    monkeypatch.setattr(text, "load_text_tower", None)
    second = text_file(tiny)
    assert torch.equal(torch.rand(1), drawn)  # a warm cache changes nothing that training draws
    assert torch.equal(first.features, second.features)
    assert [path.name.startswith("text-tiny-") for path in cache.iterdir()] == [True]


def test_a_damaged_cache_is_rebuilt(tiny: TextConfig, cache: Path) -> None:
    first = text_file(tiny)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(text_file(tiny).features, first.features)
    assert torch.equal(TextFile.load(path).features, first.features)


def test_a_cache_that_cannot_be_written_loses_nothing(tiny: TextConfig, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="going on"):
        file = text_file(tiny)
    assert file.features.shape == (6, 32)


# --- the file --------------------------------------------------------------------------------------------------------


def test_save_and_load(tiny: TextConfig, tmp_path: Path) -> None:
    file = text_file(tiny)
    path = tmp_path / "folder" / "text.safetensors"
    file.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = text_file(TextConfig(file=str(path), tower="not needed"))
    assert torch.equal(file.features, again.features)
    assert all(torch.equal(file.words[m], again.words[m]) for m in PHRASES)
    assert all(torch.equal(file.attributes[m], again.attributes[m]) for m in PHRASES)
    assert (again.logit_scale, again.tower, again.sha256, again.quick_gelu) == (
        file.logit_scale,
        file.tower,
        file.sha256,
        file.quick_gelu,
    )
    assert [p.name for p in path.parent.iterdir()] == ["text.safetensors"]


@pytest.mark.parametrize(
    ("change", "about", "said"),
    [
        (lambda t: None, {"format": "pt"}, "no text file of dmpt"),
        (lambda t: None, {"version": "0"}, "another version"),
        (lambda t: None, {"prompts": json.dumps(["a cat"])}, "other prompts"),
        (lambda t: None, {"logit_scale": "high"}, "damaged"),
        (lambda t: t.pop("words.nir"), {}, "damaged .*words.nir"),
        (lambda t: t.update(extra=torch.ones(1)), {}, "do not fit together"),
        (lambda t: t.update({"words.rgb": torch.ones(3, 7)}), {}, "do not fit together"),
        (lambda t: t.update(features=torch.full((6, 32), torch.nan)), {}, "do not fit together"),
    ],
)
def test_files_that_are_wrong(change: Any, about: dict[str, str], said: str, tiny: TextConfig, tmp_path: Path) -> None:
    from safetensors import safe_open

    path = tmp_path / "text.safetensors"
    text_file(tiny).save(path)
    with safe_open(path, framework="pt") as content:
        metadata = content.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {**metadata, **about})
    with pytest.raises(UserError, match=said) as error:
        TextFile.load(path)
    assert str(path) in one_line(error)


def test_missing_and_truncated_files(tiny: TextConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        text_file(replace(tiny, file=str(tmp_path / "none")))
    path = tmp_path / "text.safetensors"
    text_file(tiny).save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="cut short"):
        TextFile.load(path)


# --- names, weights, activation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tower": "ViT-B-16-quickgelo"}, "no such model; near it are ViT-B-16-quickgelu"),
        ({"tower": "hf-hub:some/where"}, "no such model"),
        ({"tower": "/no/such.json"}, "no readable JSON"),
        ({"tower": "roberta-ViT-B-32"}, "CLIP's words"),
        ({"tower": "ViT-B-16-SigLIP"}, "CLIP's words"),
        ({"tower": "ViT-B-16", "weights": "openai"}, "trained with QuickGELU; set it to ViT-B-16-quickgelu"),
        ({"tower": "ViT-B-16-quickgelu", "weights": "laion2b"}, r"nor a tag of ViT-B-16-quickgelu \(openai"),
        ({"weights": "/no/such.pt"}, "neither a file"),
        ({"weights": "hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K/x.bin"}, "trained with GELU; set quick_gelu false"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, str], said: str, tiny: TextConfig) -> None:
    with pytest.raises(UserError, match=said) as error:
        text_file(replace(tiny, **changes))
    one_line(error)


def test_an_openai_archive_needs_quickgelu(tmp_path: Path) -> None:
    path = save(clip(), tmp_path, "archive")
    with pytest.raises(UserError, match="set quick_gelu true in it"):
        text_file(TextConfig(tower=save_config(tmp_path, quick=False), weights=str(path)))


def test_weights_of_another_tower(tmp_path: Path, tiny: TextConfig) -> None:
    with pytest.raises(UserError, match=r"has unknown transformer\.resblocks\.1\.attn\.in_proj_bias"):
        text_file(replace(tiny, tower=save_config(tmp_path, layers=1)))
    with pytest.raises(UserError, match="holds a tower for images alone; give a file with one for text"):
        text_file(replace(tiny, tower=save_config(tmp_path), weights=str(save(clip(), tmp_path, "timm"))))


def test_tags_come_from_the_hub_once(tmp_path: Path, tiny: TextConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of open_clip's two file names the second is tried when the repository lacks the first."""
    asked: list[str] = []
    kept: set[str] = set()

    class Absent(huggingface_hub.errors.EntryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def download(repo: str, file: str, local_files_only: bool = False) -> str:
        if local_files_only and file not in kept:
            raise LocalEntryNotFoundError("not cached")
        if not local_files_only:
            asked.append(f"{repo}/{file}")
            if file.endswith(".safetensors"):
                raise Absent
            kept.add(file)
        return tiny.weights

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    entry = {"hf_hub": "some/where/", "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda tower, tag: entry if tag == "tag" else {})
    for _ in range(2):
        assert text_file(replace(tiny, weights="tag")).features.shape == (6, 32)
    assert asked == ["some/where/open_clip_model.safetensors", "some/where/open_clip_pytorch_model.bin"]


def test_offline_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def download(repo: str, file: str, local_files_only: bool = False) -> str:
        asked.append(local_files_only)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(
        UserError, match=r"fetch .*vit_base_patch16_clip_224\.openai.*open_clip_model\.safetensors"
    ) as e:
        text_file(TextConfig())
    one_line(e)
    assert asked == [True, True, False]  # without network, not twice online: each try takes long


# --- fit with the image tower ----------------------------------------------------------------------------------------


def test_check_matches(tmp_path: Path, tiny: TextConfig) -> None:
    file = text_file(tiny)
    _, info = build_vit(backbone(save(clip(), tmp_path, "timm")), SIZE)
    check_matches(file, info, "tower", 32)
    with pytest.raises(UserError, match="32 wide, projected image features 512"):
        check_matches(file, info, "tower", 512)
    with pytest.raises(UserError, match="not of one CLIP"):
        check_matches(replace(file, quick_gelu=False), info, "tower", 32)
    check_matches(replace(file, quick_gelu=False), info, "trained", 32)
