"""Recipes and candidate models that several test files use."""

from __future__ import annotations

from rsparse.models.layout import unit_shapes
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.search.candidate import CandidateModel
from rsparse.search.genome import child, initial
from tests.support.recipes import calibration_of

SPARSITY = 0.5


def recipe_of(model, rhos, grouping="linear", criterion="paper", fit="svd", sparsity=SPARSITY):
    """`rhos`: one number for all units, or a list."""
    shapes = unit_shapes(model, grouping)
    rhos = [rhos] * len(shapes) if isinstance(rhos, (int, float)) else rhos
    units = {
        name: UnitRecipe.uniform(linears, size, sparsity, float(rho), criterion=criterion)
        for (name, (linears, size)), rho in zip(shapes.items(), rhos, strict=True)
    }
    return Recipe(model.config.model_type, units, "rsparse", grouping, fit)


def mixed(model, grouping, seed=0):
    """A rho of its own for each unit, 0 and 1 among them."""
    count = len(unit_shapes(model, grouping))
    genes = child(seed, 1, 0, [initial(seed, 9, 10, list(range(count))), initial(seed + 1, 9, 10, [0] * count)], [0] * count)
    genes[0], genes[1] = 0, 1
    return genes.tolist()


def candidates_of(model, grouping="linear", criterion="paper", objective="perplexity", fit="svd", windows=None, **more):
    calibration = calibration_of(model.config.model_type)
    base = recipe_of(model, 0.0, grouping, criterion, fit, **more)
    windows = calibration.windows if windows is None else windows
    return CandidateModel(model, base, calibration, windows, objective)
