"""A recipe as a picture: what each unit of each block is asked to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rsparse.analysis.pictures import rho_limits
from rsparse.analysis.recipe_table import by_kind
from rsparse.atomic import new_file
from rsparse.errors import RSparseError
from rsparse.recipe import Recipe

PANELS = (
    ("sparsity", "share of bytes not read"),
    ("rho", "rho: share of kept bytes in whole channels"),
    ("threshold", "threshold, log10"),
)


def check_plot(path: Path) -> None:
    """Raises RSparseError for a folder and for endings that are no picture."""
    if path.is_dir():
        raise RSparseError(f"{path} is a folder; name a picture file")
    if path.suffix.lower() not in ("", ".png", ".svg", ".pdf"):
        raise RSparseError(f"{path}: a picture is a .png, .svg or .pdf file")


def unit_grid(recipe: Recipe, field: str) -> NDArray[np.float64]:
    """A field of the recipe's units, [kinds, blocks]; NaN where a block has no such unit, or the unit no such value."""
    kinds = by_kind(recipe)
    grid = np.full((len(kinds), 1 + max(block for units in kinds.values() for block in units)), np.nan)
    for row, units in enumerate(kinds.values()):
        for block, unit in units.items():
            value = getattr(unit, field)
            grid[row, block] = np.nan if value is None else value
    return grid


def _limits(field: str, grid: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The ends of a panel's colours."""
    if field == "threshold":
        return None, None
    return rho_limits(grid) if field == "rho" else (0.0, 1.0)


def plot_recipe(recipe: Recipe, path: Path) -> None:
    """Heat maps block × kind of unit, as a PNG (or whatever `path` ends in)."""
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = by_kind(recipe)
    count = unit_grid(recipe, PANELS[0][0]).shape[1]
    width = max(6.0, 0.22 * count + 2.4)
    figure, axes = plt.subplots(
        len(PANELS), 1, figsize=(width, 1.1 + len(PANELS) * (0.3 * len(kinds) + 0.75)), layout="constrained"
    )
    for axis, (field, title) in zip(axes, PANELS, strict=True):
        grid = unit_grid(recipe, field)
        if field == "threshold":
            grid = np.log10(np.where(grid > 0, grid, np.nan))
        low, high = _limits(field, grid)
        image = axis.imshow(grid, aspect="auto", cmap="viridis", vmin=low, vmax=high)
        figure.colorbar(image, ax=axis, pad=0.01)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_yticks(range(len(kinds)), [kind.rpartition(".")[2] for kind in kinds], fontsize=8)
        axis.set_xticks(range(0, count, max(1, count // 15)))
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel("block", fontsize=8)
    name = recipe.model or recipe.model_type
    figure.suptitle(
        f"{recipe.method} recipe for {name}: asked sparsity {recipe.sparsity:.2f}, grouping {recipe.grouping}", fontsize=10
    )
    with new_file(path) as aside:
        figure.savefig(aside, dpi=150, format=path.suffix[1:].lower() or "png")
    plt.close(figure)
