"""What the analyses' pictures have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsparse.analysis.recipe_table import block_and_kind
from rsparse.atomic import new_file

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray", "tab:olive")


@contextlib.contextmanager
def picture(path: Path, rows: int, columns: int, size: tuple[float, float], title: str, **grid: Any) -> Iterator[Any]:
    """(figure, axes [rows, columns]) that become a PNG when the block ends well; `size` in inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **grid)
    try:
        figure.suptitle(title, fontsize=10)
        yield figure, axes
        with new_file(path) as aside:
            figure.savefig(aside, dpi=130, format="png")
    finally:
        plt.close(figure)


def by_kind(values: Mapping[str, float]) -> tuple[list[str], NDArray[np.float64]]:
    """Values by unit's full name → kinds in the model's order, and [kinds, blocks]; NaN where there is no such unit."""
    placed: dict[str, dict[int, float]] = {}
    for name, value in values.items():
        block, kind = block_and_kind(name)
        placed.setdefault(kind.rpartition(".")[2], {})[block] = value
    grid = np.full((len(placed), 1 + max(block for row in placed.values() for block in row)), np.nan)
    for row, found in enumerate(placed.values()):
        for block, value in found.items():
            grid[row, block] = value
    return list(placed), grid


def kind_means(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over the blocks, by kind of unit."""
    kinds, grid = by_kind(values)
    return {kind: float(np.nanmean(row)) for kind, row in zip(kinds, grid, strict=True)}


def rho_limits(values: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of a map's colours: searches leave most units near 1, which a scale from 0 shows as one colour."""
    return min(0.9, float(np.nanmin(values))), 1.0


def heat_map(figure: Any, axis: Any, values: Mapping[str, float], title: str, *, low: Any = None, high: Any = None) -> None:
    """Values by unit as block × kind."""
    kinds, grid = by_kind(values)
    image = axis.imshow(grid, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, ax=axis, pad=0.01)
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_yticks(range(len(kinds)), kinds, fontsize=8)
    axis.set_xticks(range(0, grid.shape[1], max(1, grid.shape[1] // 12)))
    axis.tick_params(labelsize=8)
    axis.set_xlabel("block", fontsize=8)


def finish(axis: Any, x: str, y: str, title: str, *, legend: bool = True) -> None:
    """Labels, grid and legend of a line plot."""
    axis.set_xlabel(x, fontsize=8)
    axis.set_ylabel(y, fontsize=8)
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.3)
    if legend:
        axis.legend(fontsize=7)
