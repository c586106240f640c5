"""The grid of a position table: told from the table, named, or asked for."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip_files import smooth, tiny_clip
from dmpt.base.errors import UserError
from dmpt.settings.config import BackboneConfig
from dmpt.towers.image import TowerInfo, build_vit
from dmpt.towers.packaged import local
from dmpt.towers.positions import _possible, _roughness, _smoothest, grid_of

NAME = "vit_small_patch16_224"
SMALL = {"embed_dim": 48, "depth": 1, "num_heads": 2}
GRIDS = [(14, 14), (16, 8), (8, 16), (16, 4), (4, 16), (8, 8), (24, 8), (24, 24), (21, 10), (28, 7), (32, 16), (4, 4)]
HERE = Path("x")


def resize(table: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    planes = table.T.reshape(1, -1, *grid)
    return F.interpolate(planes, size=target, mode="bicubic", antialias=True)[0].flatten(1).T


def learned(grid: tuple[int, int]) -> Tensor:
    """The table that the tiny CLIP learned, on another grid."""
    table = load_file(local("package:vit.safetensors"))["pos_embed"][0, 1:].float()
    return table if grid == (8, 8) else resize(table, (8, 8), grid)


def sines(grid: tuple[int, int]) -> Tensor:
    return timm.layers.build_sincos2d_pos_embed(list(grid), 64)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_table_shows_its_grid(grid: tuple[int, int]) -> None:
    grids = _possible(grid[0] * grid[1])
    assert len(grids) > 1
    for table in (learned(grid), sines(grid), smooth(*grid, 48)):
        assert _smoothest(table, grids) == grid
        noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
        if len(table) > 32:
            assert _smoothest(table + 0.7 * (table - table.mean(dim=0)).std() * noise, grids) == grid


def test_a_table_without_order_shows_none() -> None:
    dice = torch.Generator().manual_seed(0)
    for count in (8, 16, 32, 64, 128, 196, 576):
        for width in (32, 384):
            for _ in range(20):
                assert _smoothest(torch.randn(count, width, generator=dice), _possible(count)) is None
        assert _smoothest(torch.zeros(count, 4), _possible(count)) is None


def test_roughness_is_the_transcription() -> None:
    table = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    at = table.reshape(2, 3, 5)
    steps = [(at[y, x] - at[y + 1, x]).square().sum() for y in range(1) for x in range(3)]
    steps += [(at[y, x] - at[y, x + 1]).square().sum() for y in range(2) for x in range(2)]
    any_two = torch.stack([(a - b).square().sum() for a in table for b in table])
    assert _roughness(table, (2, 3)) == pytest.approx(float(torch.stack(steps).mean() / any_two.mean()), rel=1e-6)


def test_possible_grids() -> None:
    assert _possible(64) == [(4, 16), (8, 8), (16, 4)]
    assert _possible(1369) == [(37, 37)]
    assert _possible(13) == []
    assert _possible(16, {(16, 1)}) == [(2, 8), (4, 4), (8, 2), (16, 1)]


def test_the_order_of_evidence() -> None:
    dice = torch.Generator().manual_seed(0)
    noise = torch.randn(64, 48, generator=dice)
    own, target = (14, 14), (16, 4)
    assert grid_of(noise, (8, 8), own, target, HERE) == ((8, 8), "")
    assert grid_of(torch.randn(49, 8, generator=dice), None, own, target, HERE) == ((7, 7), "")  # the only one
    found = grid_of(smooth(4, 16, 48), None, own, target, HERE)
    assert found == ((4, 16), "by its neighbours, 8x8 and 16x4 were possible too")
    assert grid_of(noise, None, (8, 8), target, HERE) == ((8, 8), "the architecture's own")
    assert grid_of(smooth(16, 4, 48), None, (8, 8), target, HERE)[0] == (16, 4)  # whatever the architecture's own
    for table, named, said in (
        (noise, None, r"^x: its 64 positions could be 4x16 or 8x8 or 16x4, .*e\.g\. backbone\.grid \[16, 4\]"),
        (noise[:13], None, "13 positions are no grid of a usual shape; name the grid"),
        (noise, (16, 8), r"^backbone\.grid 16x8: is 128 positions, but x has 64; name the grid"),
    ):
        with pytest.raises(UserError, match=said) as error:
            grid_of(table, named, own, target, HERE)
        assert "\n" not in str(error.value)


# --- in a tower


def tower(folder: Path, table: Tensor, grid: tuple[int, int] | None = None) -> BackboneConfig:
    torch.manual_seed(0)
    vit = timm.create_model(NAME, img_size=64, **SMALL)
    tensors = {**vit.state_dict(), "pos_embed": torch.cat([torch.ones(1, 48), table])[None]}
    save_file(tensors, folder / "x")
    return BackboneConfig(name=NAME, weights=str(folder / "x"), grid=grid, overrides=SMALL)


def positions(config: BackboneConfig, size: tuple[int, int], square: bool = False) -> tuple[Tensor, TowerInfo]:
    vit, info = build_vit(config, size, square=square)
    table: Tensor = vit.pos_embed.data[0]
    assert torch.equal(table[0], torch.ones(48))
    return table[1:], info


@pytest.mark.parametrize("grid", [(16, 4), (8, 8), (4, 16)])
def test_sixty_four_positions_at_256x64(grid: tuple[int, int], tmp_path: Path) -> None:
    """As many as the images need, and only one of the three grids is theirs."""
    table = smooth(*grid, 48)
    found, info = positions(tower(tmp_path, table), (256, 64))
    assert info.grid == grid
    if grid == (16, 4):
        assert torch.equal(found, table)
        assert info.done == ("positions: a table of 16x4 (by its neighbours, 4x16 and 8x8 were possible too)",)
    else:
        torch.testing.assert_close(found, resize(table, grid, (16, 4)))
        assert info.done[0].endswith("were possible too), resampled to 16x4")


def test_a_rectangular_table_at_its_own_size(tmp_path: Path) -> None:
    """128 positions are no square, and were refused."""
    table = smooth(16, 8, 48)
    found, info = positions(tower(tmp_path, table), (256, 128))
    assert torch.equal(found, table)
    assert info.grid == (16, 8)
    found, _ = positions(tower(tmp_path, table), (256, 64))
    torch.testing.assert_close(found, resize(table, (16, 8), (16, 4)))


def test_a_named_grid_is_taken(tmp_path: Path) -> None:
    table = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="it does not show which"):
        positions(tower(tmp_path, table), (256, 64))
    found, info = positions(tower(tmp_path, table, (8, 8)), (256, 64))
    torch.testing.assert_close(found, resize(table, (8, 8), (16, 4)))
    assert info.done == ("positions: a table of 8x8, resampled to 16x4",)
    found, info = positions(tower(tmp_path, table, (16, 4)), (256, 64))
    assert torch.equal(found, table)
    assert info.done == ()


def test_as_before_the_setting(tmp_path: Path) -> None:
    table = smooth(16, 4, 48)
    found, info = positions(tower(tmp_path, table), (256, 64), square=True)
    torch.testing.assert_close(found, resize(table, (8, 8), (16, 4)))
    assert info.grid == (8, 8)
    assert positions(tower(tmp_path, table, (16, 4)), (256, 64), square=True)[1].grid == (16, 4)


def test_the_tiny_clip_shows_its_own() -> None:
    assert build_vit(tiny_clip()[0], (128, 64))[1].grid == (8, 8)
    random = BackboneConfig(name=NAME, weights="random", overrides=SMALL)
    assert build_vit(random, (64, 64))[1].grid is None
