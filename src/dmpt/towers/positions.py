"""Which grid a table of position embeddings is, and the table on another grid.

A file holds N positions and not their grid. A wrong one is not seen in any shape: a table pretrained at 256x64 has 64
positions, 16x4 or 8x8.
"""

from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dmpt.base.errors import UserError

Grid = tuple[int, int]
"""Height and width, in patches."""
_LONGEST = 4
"""Images up to so much longer than wide, or wider than long: 256x64 is the longest that people are cut out to."""
_ALIKE = 0.95
"""Neighbours are alike below this roughness; it is 1 where a table has no order."""
_MARGIN = 1.05
"""How much rougher any other grid must be. It is 1.18 times and more for DINOv2's table and the tiny CLIP's, resampled
to 24 grids from 4x2 to 32x16. Of random tables of 32 numbers a position, one in 1000 passes both limits; real ones have
192 and more, and none passed."""


def _possible(count: int, usual: Collection[Grid] = ()) -> list[Grid]:
    """Grids of so many positions, lowest first: the usual ones, and all that are not too long."""
    grids = [(height, count // height) for height in range(1, count + 1) if count % height == 0]
    return [grid for grid in grids if grid in usual or max(grid) <= _LONGEST * min(grid)]


def _roughness(table: Tensor, grid: Grid) -> float:
    """Mean squared distance of neighbours in ``(N, D)``, as a share of any two positions'; about 1 for random ones."""
    x = table.double()
    x = x - x.mean(dim=0)
    on_grid = x.reshape(*grid, -1)
    steps = [on_grid.diff(dim=side).square().sum(dim=-1).flatten() for side in (0, 1)]
    return float(torch.cat(steps).mean() / (2 * x.square().sum(dim=1).mean()).clamp_min(1e-12))


def _smoothest(table: Tensor, grids: Collection[Grid]) -> Grid | None:
    """The grid on which neighbours are alike, of two or more; None where the table does not tell."""
    (best, grid), (second, _), *_ = sorted((_roughness(table, grid), grid) for grid in grids)
    return grid if best < _ALIKE and second > _MARGIN * best else None


def grid_of(table: Tensor, named: Grid | None, own: Grid, target: Grid, path: Path) -> tuple[Grid, str]:
    """The grid of a file's table: the named one, the only possible one, what the table shows, or the architecture's.

    Args:
        table: ``(N, D)``, without prefix tokens.
        named: ``backbone.grid``.
        own: of the images that the named architecture was pretrained on.
        target: of the images at hand.
        path: the file, for errors.

    Returns:
        The grid, and how it was found where there was a choice, else nothing.

    Raises:
        UserError: the named grid has another number of positions, or none is named and it cannot be told.
    """
    count = len(table)
    if named is not None:
        if named[0] * named[1] != count:
            raise UserError(
                f"backbone.grid {shown(named)}: is {named[0] * named[1]} positions, but {path} has {count}; "
                "name the grid that the file was pretrained on, or set it to null"
            )
        return named, ""
    grids = _possible(count, (own, target))
    if len(grids) == 1:
        return grids[0], ""
    others = [shown(grid) for grid in grids]
    if found := _smoothest(table, grids) if grids else None:
        others.remove(shown(found))
        return found, f"by its neighbours, {' and '.join(others)} were possible too"
    if own in grids:
        return own, "the architecture's own"
    which = f"could be {' or '.join(others)}, and it does not show which" if grids else "are no grid of a usual shape"
    raise UserError(
        f"{path}: its {count} positions {which}; name the grid that it was pretrained on, e.g. backbone.grid "
        f"[{target[0]}, {target[1]}], or it is of another architecture than backbone.name"
    )


def resampled(table: Tensor, grid: Grid, target: Grid, antialias: bool) -> Tensor:
    """A table ``(1, h w, D)`` of one grid on another: ``(1, H W, D)``."""
    if grid == target:
        return table
    # Contiguous: with the channels last, torch 2.14 gives wrong values for a one-column grid and antialias.
    planes = table.transpose(1, 2).reshape(1, -1, *grid).contiguous()
    planes = F.interpolate(planes, size=target, mode="bicubic", antialias=antialias)
    return planes.flatten(2).transpose(1, 2)


def shown(grid: Grid) -> str:
    """``16x8``."""
    return f"{grid[0]}x{grid[1]}"
