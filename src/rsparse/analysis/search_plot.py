"""A search as a picture: the best by generation, and the rho that it found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rsparse.analysis.pictures import rho_limits
from rsparse.analysis.recipe_plot import check_plot, unit_grid
from rsparse.analysis.recipe_table import by_kind
from rsparse.atomic import new_file
from rsparse.recipe import Recipe


def plot(recipe: Recipe, history: Sequence[float], objective: str, path: Path) -> None:
    """`history`: best fitness so far by generation, mean −log p (drawn as perplexity) or KL."""
    check_plot(path)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grid = unit_grid(recipe, "rho")
    count = grid.shape[1]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(6.5 + 0.14 * count, 3.4), width_ratios=[1, 1 + count / 24], layout="constrained"
    )
    values = [math.exp(value) for value in history] if objective == "perplexity" else list(history)
    left.plot(range(1, len(values) + 1), values, marker="o")
    left.set(xlabel="generation", ylabel=f"best {objective} so far", xticks=range(1, len(values) + 1))
    left.grid(alpha=0.3)
    low, high = rho_limits(grid)
    image = right.imshow(grid, aspect="auto", cmap="viridis", vmin=low, vmax=high)
    figure.colorbar(image, ax=right, pad=0.01)
    right.set_yticks(range(len(grid)), [kind.rpartition(".")[2] for kind in by_kind(recipe)], fontsize=8)
    right.set(xlabel="block", title="rho: share of kept bytes in whole channels")
    figure.suptitle(f"Search on {recipe.model or recipe.model_type}: sparsity {recipe.sparsity:.2f}", fontsize=10)
    with new_file(path) as aside:
        figure.savefig(aside, dpi=130, format=path.suffix[1:].lower() or "png")
    plt.close(figure)
