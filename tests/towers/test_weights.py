"""Image towers from every format, strictly; nothing in a weights file is ever run."""

import contextlib
import hashlib
import os
import pickle
import random
import socket
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_files import FORMATS, OVERRIDES, PLAIN, QUICK, SIZE, backbone, clip, one_line, save, save_archive
from dmpt.base.errors import UserError
from dmpt.base.files import sha256
from dmpt.settings.config import BackboneConfig
from dmpt.towers.hub import native_quick_gelu, resolve
from dmpt.towers.image import _is_projection, build_vit
from dmpt.towers.tensors import read_tensors


def features(vit: Any, images: Tensor) -> Tensor:
    x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    features: Tensor = vit.norm(vit.blocks(x))[:, 0]
    return features


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
@torch.no_grad()
def test_every_format_gives_open_clips_features(kind: str, quick: bool, tmp_path: Path, images: Tensor) -> None:
    if kind == "archive" and not quick:
        pytest.skip("OpenAI's archives have QuickGELU")
    model = clip(quick, half=kind == "archive")
    path = save(model, tmp_path, kind, quick)
    vit, info = build_vit(backbone(path, quick), SIZE)
    vit.eval()
    assert info.projection is not None
    assert info.projection.shape == (32, 64)
    ours = features(vit, images)
    torch.testing.assert_close(ours @ info.projection.T, model.encode_image(images), atol=1e-5, rtol=1e-5)
    model.visual.proj = None
    torch.testing.assert_close(ours, model.encode_image(images), atol=1e-5, rtol=1e-5)
    assert (info.unused, vit.embed_dim, info.quick_gelu) == ((), 64, quick)
    assert info.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(parameter.dtype == torch.float32 for parameter in vit.parameters())


@torch.no_grad()
def test_gelu_is_not_quickgelu(tmp_path: Path, images: Tensor) -> None:
    path = save(clip(True), tmp_path, "pt")
    quick, _ = build_vit(backbone(path, True), SIZE)
    plain, _ = build_vit(backbone(path, False), SIZE)  # a local file without a tag of its own: nobody can know
    assert (features(quick, images) - features(plain, images)).abs().max() > 1e-3


def test_archive_tensors_equal_the_modules(tmp_path: Path) -> None:
    model = clip()
    tensors, info = read_tensors(save_archive(model, tmp_path / "archive"))
    assert info["container"] == "torchscript"
    assert set(tensors) == {*model.state_dict(), "attn_mask", "input_resolution", "context_length", "vocab_size"}
    assert tensors["visual.conv1.weight"].dtype == torch.float16
    for name, value in model.state_dict().items():
        torch.testing.assert_close(tensors[name], value.half())


# --- traps -----------------------------------------------------------------------------------------------------------


class _Payload:
    """Unpickling it creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("kind", ["pt", "legacy", "archive"])
def test_a_pickle_that_would_run_code_is_refused(kind: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights"
    if kind == "archive":
        good = save_archive(clip(), tmp_path / "good")
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                evil = pickle.dumps({"x": _Payload(canary)}, 2)
                target.writestr(name, evil if name.endswith("/data.pkl") else source.read(name))
    else:
        torch.save({"x": _Payload(canary)}, path, _use_new_zipfile_serialization=kind == "pt")
    with pytest.raises(UserError, match=r"refused, loading it would run code \((posix|nt)\.system\)") as error:
        read_tensors(path)
    assert not canary.exists()
    one_line(error)


@pytest.mark.filterwarnings("error")
def test_a_plain_pickle_is_refused_in_one_line(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pt"
    for content, said in ((_Payload(canary), "would run code"), ([1.5], "is a pickle, but not one of torch.save")):
        path.write_bytes(pickle.dumps({"x": content}, 4))
        with pytest.raises(UserError, match=said) as error:
            read_tensors(path)
        assert not canary.exists()
        assert "nothing in it was run" in one_line(error)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.999])
def test_truncated_files(kind: str, share: float, tmp_path: Path) -> None:
    path = save(clip(), tmp_path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match="cut short or damaged") as error:
        read_tensors(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"", "no weights file"),
        (b"hello, these are words and no weights", "no weights file"),
    ],
)
def test_files_that_are_no_weights(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read_tensors(path)
    assert str(path) in one_line(error)


def test_contents_that_are_no_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content, said in (([1], "holds a list"), ({"epoch": 1}, "holds no tensors")):
        torch.save(content, path)
        with pytest.raises(UserError, match=said):
            read_tensors(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(tmp_path)


# --- strictness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("blocks.0.attn.qkv.bias"), "lacks blocks.0.attn.qkv.bias"),
        (lambda t: t.update({"blocks.0.extra": torch.ones(1)}), "has unknown blocks.0.extra"),
        (lambda t: t.update({"norm.weight": torch.ones(65)}), r"another shape of norm.weight \(65,\) for \(64,\)"),
        (lambda t: t.update({"pos_embed": torch.zeros(1, 1 + 15, 64)}), "15 positions could be 3x5 or 5x3"),
        (lambda t: t.update({"pos_embed": torch.zeros(1, 1 + 13, 64)}), "13 positions are no grid of a usual shape"),
        (lambda t: t.update({"head.bias": torch.ones(32)}), "a classifier, not CLIP's projection"),
        (lambda t: t.pop("head.weight"), "lacks head.weight"),
    ],
)
def test_loading_is_strict(change: Any, said: str, tmp_path: Path) -> None:
    path = save(clip(), tmp_path, "timm")
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(UserError, match=said) as error:
        build_vit(backbone(path), SIZE)
    one_line(error)


def test_strange_names_in_a_clip_file(tmp_path: Path) -> None:
    path = save(clip(), tmp_path, "safetensors")
    save_file({**load_file(path), "optimizer.state": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"has unknown optimizer\.state"):
        build_vit(backbone(path), SIZE)


def test_many_differences_are_counted(tmp_path: Path) -> None:
    path = save(clip(), tmp_path, "timm")
    overrides = {**OVERRIDES, "depth": 4}
    with pytest.raises(UserError, match=r"another architecture .*: lacks blocks\.3\.norm1\.weight, .* and 9 more"):
        build_vit(backbone(path, overrides=overrides), SIZE)
    with pytest.raises(UserError, match=r"has unknown blocks\.2"):
        build_vit(backbone(path, overrides={**OVERRIDES, "depth": 2}), SIZE)


@torch.no_grad()
def test_what_may_stay_unused_is_listed(tmp_path: Path, images: Tensor) -> None:
    path = save(clip(), tmp_path, "timm")
    whole, _ = build_vit(backbone(path), SIZE)
    vit, info = build_vit(backbone(path, blocks=1, norm="plain"), SIZE)
    assert info.unused == ("blocks.1", "blocks.2", "norm")
    assert len(vit.blocks) == 1
    x = whole.blocks[0](whole.norm_pre(whole._pos_embed(whole.patch_embed(images))))
    torch.testing.assert_close(features(vit, images), F.layer_norm(x, (64,), eps=1e-5)[:, 0])


def test_a_classifier_is_dropped_and_listed(tmp_path: Path) -> None:
    name, overrides = "vit_base_patch16_224.augreg_in21k", {"embed_dim": 32, "depth": 1, "num_heads": 2}
    saved = timm.create_model(name, img_size=SIZE, num_classes=7, **overrides)
    path = tmp_path / "vit.safetensors"
    save_file(saved.state_dict(), path)
    _, info = build_vit(BackboneConfig(name=name, weights=str(path), grid=(4, 4), overrides=overrides), SIZE)
    assert (info.unused, info.projection, info.mean) == (("head",), None, (0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("name", "tensors", "expected"),
    [
        (QUICK, (), True),
        (PLAIN, ("head.weight",), True),
        ("vit_base_patch16_clip_224.openai_ft_in1k", ("head.weight",), False),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", ("visual.proj",), True),
        ("vit_base_patch16_224.augreg_in21k", ("head.weight",), False),
        ("vit_small_patch14_dinov2.lvd142m", (), False),
    ],
)
def test_which_heads_are_projections(name: str, tensors: tuple[str, ...], expected: bool) -> None:
    architecture, _, tag = name.partition(".")
    tower = SimpleNamespace(pretrained_cfg={"architecture": architecture, "tag": tag}, head=nn.Linear(1, 1))
    assert _is_projection(tower, tensors) is expected


# --- grids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(64, 32), (128, 64), (32, 128), (256, 16)])
def test_positions_are_resampled(antialias: bool, size: tuple[int, int], tmp_path: Path) -> None:
    """(32, 128) and (256, 16) have as many patches as the file's 4x4 grid, and are still other grids."""
    path = save(clip(), tmp_path, "timm")
    saved = load_file(path)["pos_embed"]
    grid = (size[0] // 16, size[1] // 16)
    table = saved[:, 1:].transpose(1, 2).unflatten(2, (4, 4)).contiguous().double()
    expected = F.interpolate(table, size=grid, mode="bicubic", antialias=antialias).float()
    vit, _ = build_vit(backbone(path, antialias=antialias), size)
    torch.testing.assert_close(vit.pos_embed.data, torch.cat([saved[:, :1], expected.flatten(2).transpose(1, 2)], 1))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"])
@torch.no_grad()
def test_dinov2_in_its_own_names(name: str, tmp_path: Path) -> None:
    """LayerScale; registers have no position, and the class token's is folded in by the conversion."""
    overrides = {"embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    model: Any = timm.create_model(name, img_size=56, **overrides).eval()
    for value in model.parameters():
        value.add_(torch.randn_like(value) * 0.1)
    tensors = {**model.state_dict(), "mask_token": torch.zeros(1, 32)}
    if "reg4" in name:
        tensors["register_tokens"] = tensors.pop("reg_token")
        tensors["pos_embed"] = torch.cat([torch.full((1, 1, 32), 0.5), tensors["pos_embed"]], 1)
        tensors["cls_token"] = tensors["cls_token"] - 0.5
    path = tmp_path / "dino.pth"
    torch.save(tensors, path)
    vit, info = build_vit(BackboneConfig(name=name, weights=str(path), grid=(4, 4), overrides=overrides), (56, 56))
    images = torch.randn(1, 3, 56, 56)
    torch.testing.assert_close(features(vit, images), model(images), atol=1e-5, rtol=1e-5)
    assert (info.unused, info.projection) == ((), None)


# --- names and settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        ({"name": "vit_base_patch16_clip_quickgelu.openai"}, SIZE, f"no such model; near it are {QUICK}"),
        ({"name": "hf-hub:timm/vit"}, SIZE, "no such model"),
        ({"name": "vit_base_patch16_clip_224.nonsense"}, SIZE, "timm has no such model"),
        ({"name": "vit_base_patch16_siglip_224", "overrides": {}}, SIZE, "class token and standard pre-norm blocks"),
        ({"name": "deit_tiny_distilled_patch16_224", "overrides": {}}, SIZE, "standard pre-norm blocks"),
        ({"overrides": {**OVERRIDES, "gated": True}}, SIZE, "timm refuses it"),
        ({"overrides": {**OVERRIDES, "num_heads": 0}}, SIZE, "timm refuses it"),
        ({"overrides": {**OVERRIDES, "act_layer": "nonsense"}}, SIZE, "timm refuses it"),
        ({"overrides": {**OVERRIDES, "depth": 0}}, SIZE, "standard pre-norm blocks"),
        ({"overrides": {**OVERRIDES, "scale_attn_norm": True}}, SIZE, "standard pre-norm blocks"),
        ({"overrides": {"checkpoint_path": "x.pt"}}, SIZE, "checkpoint_path is not part of an architecture"),
        ({"overrides": {**OVERRIDES, "drop_path_rate": 0.1}}, SIZE, "drop_path_rate is not part of an architecture"),
        ({"blocks": 4}, SIZE, "has 3; set it lower"),
        ({}, (60, 64), "next sizes are 48x64 and 64x64"),
        ({"weights": "/no/such.pt"}, SIZE, r"^backbone\.weights /no/such\.pt: no such weights file"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], size: tuple[int, int], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        build_vit(backbone(**{"weights": "random", **changes}), size, load="weights" in changes)
    one_line(error)


@pytest.mark.parametrize("name", [QUICK, "vit_base_patch16_224.augreg_in21k", "vit_small_patch14_dinov2"])
def test_shapes_without_weights(name: str) -> None:
    """Timm has the names that the documentation gives; the hub is not asked."""
    patch = 14 if "patch14" in name else 16
    vit, info = build_vit(BackboneConfig(name=name), (16 * patch, 8 * patch), load=False)
    assert all(parameter.is_meta for parameter in vit.parameters())
    assert vit.pos_embed.shape == (1, 129, vit.embed_dim)
    assert info.sha256 is None
    assert (info.projection is not None and info.projection.shape == (512, 768)) is (name == QUICK)


def test_random_weights_follow_the_seed() -> None:
    towers = []
    for _ in range(2):
        torch.manual_seed(3)
        towers.append(build_vit(backbone("random"), SIZE))
    (one, info), (two, again) = towers
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert info.sha256 == again.sha256
    torch.manual_seed(4)
    assert build_vit(backbone("random"), SIZE)[1].sha256 != info.sha256
    assert info.projection is not None


def test_an_openai_archive_needs_quickgelu(tmp_path: Path) -> None:
    path = save(clip(), tmp_path, "archive")
    with pytest.raises(UserError, match="has GELU; set it to vit_base_patch16_clip_quickgelu_224") as error:
        build_vit(backbone(path, quick=False), SIZE)
    one_line(error)


def test_a_tag_with_the_other_activation_is_refused(tmp_path: Path) -> None:
    path = save(clip(), tmp_path, "timm")
    with pytest.raises(UserError, match=rf"vit_base_patch16_clip_224\.openai has GELU; set it to {QUICK}"):
        build_vit(backbone(path, name="vit_base_patch16_clip_224.openai"), SIZE)


@pytest.mark.parametrize(
    ("repo", "quick"),
    [
        ("timm/vit_base_patch16_clip_224.openai", True),
        ("timm/vit_base_patch16_clip_224.metaclip_400m", True),
        ("timm/vit_base_patch16_clip_224.dfn2b", True),  # timm has no note on it, open_clip has
        ("timm/vit_large_patch14_clip_224.dfn2b_s39b", False),
        ("laion/CLIP-ViT-B-16-laion2B-s34B-b88K", False),
        ("timm/vit_base_patch16_clip_224.openai_ft_in1k", None),
        ("someone/something", None),
    ],
)
def test_who_needs_quickgelu(repo: str, quick: bool | None) -> None:
    assert native_quick_gelu(repo) is quick


# --- hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub of local files: ``files`` it has, ``cached`` ones, and the requests that went online."""
    state: dict[str, Any] = {"files": {}, "cached": set(), "online": []}

    def download(repo: str, file: str, local_files_only: bool = False) -> str:
        name = f"{repo}/{file}"
        if local_files_only and name not in state["cached"]:
            raise LocalEntryNotFoundError("not cached")
        if not local_files_only:
            state["online"].append(name)
            if name not in state["files"]:
                raise LocalEntryNotFoundError("no network")
            state["cached"].add(name)
        return str(state["files"][name])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return state


def test_hub_is_asked_once_then_never(tmp_path: Path, hub: dict[str, Any]) -> None:
    name = "timm/vit_base_patch16_clip_224.openai/model.safetensors"
    hub["files"][name] = save(clip(), tmp_path, "timm")
    for _ in range(2):
        _, info = build_vit(backbone("hub"), SIZE)
    assert hub["online"] == [name]
    assert info.sha256 == sha256(hub["files"][name])


def test_hub_file_of_a_repository(tmp_path: Path, hub: dict[str, Any]) -> None:
    hub["files"]["some/where/deep/er.pt"] = save(clip(), tmp_path, "pt")
    _, info = build_vit(backbone("hub:some/where/deep/er.pt"), SIZE)
    assert info.sha256 == sha256(hub["files"]["some/where/deep/er.pt"])
    hub["files"]["laion/CLIP-ViT-B-16-laion2B-s34B-b88K/x.pt"] = save(clip(False), tmp_path, "pt")
    with pytest.raises(UserError, match=r"has QuickGELU; set it to vit_base_patch16_clip_224"):
        build_vit(backbone("hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K/x.pt"), SIZE)


def test_offline_and_not_cached_says_what_to_fetch(hub: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"fetch .*/timm/vit_base_patch16_clip_224\.openai/.*elsewhere") as error:
        resolve("hub", QUICK)
    one_line(error)
    with pytest.raises(UserError, match="OWNER/REPO/FILE"):
        resolve("hub:some/where", QUICK)
    with pytest.raises(UserError, match="has no file on the hub"):
        resolve("hub", "vit_base_patch16_224_miil.nonsense")


def test_a_local_file_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("went online")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    build_vit(backbone(save(clip(), tmp_path, "timm")), SIZE)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path) -> None:
    """Bytes of an archive's pickle changed at random: read, or refused in one line."""
    good = save_archive(clip(), tmp_path / "good")
    with zipfile.ZipFile(good) as source:
        content = {name: source.read(name) for name in source.namelist()}
    (script,) = [name for name in content if name.endswith("/data.pkl")]
    dice = random.Random(0)
    for _ in range(60):
        damaged = bytearray(content[script])
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        with zipfile.ZipFile(tmp_path / "damaged", "w") as target:
            for name, data in content.items():
                target.writestr(name, bytes(damaged) if name == script else data)
        with contextlib.suppress(UserError):
            read_tensors(tmp_path / "damaged")
