"""R-Sparse as the paper searches it (arXiv 2504.19449, Algorithm 1): one level for all units, a rho for each by evolution.

The search's study lives as long as the call; `rsparse search` keeps it, takes several workers and resumes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rsparse.calibration.store import Calibration
from rsparse.errors import RSparseError
from rsparse.progress import progress
from rsparse.recipe import Recipe
from rsparse.search import SearchSettings, search

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(options: Mapping[str, Any]) -> None:
    """Raises RSparseError for values that no model would take."""
    SearchSettings(0.5, **options)


def prepare(
    model: PreTrainedModel,
    sparsity: float,
    *,
    calibration: Calibration | None = None,
    population: int = 32,
    generations: int = 5,
    samples: int = 16,
    objective: str = "perplexity",
    criterion: str = "paper",
    fit: str = "svd",
    grouping: str = "linear",
    seed: int = 0,
) -> Recipe:
    """The fittest recipe of the search. Raises RSparseError without a calibration of this model."""
    if calibration is None:
        raise RSparseError("method searched needs a calibration")
    settings = SearchSettings(sparsity, population, generations, samples, objective, criterion, fit, grouping, seed)
    bar = progress(population * generations, "search", unit="candidate")
    with tempfile.TemporaryDirectory(prefix="rsparse-search-") as folder, bar:
        found = search(model, calibration, settings, storage=f"sqlite:///{folder}/study.db", report=lambda _: bar.update())
    return replace(found.recipe, method="searched")
