"""What a search may be asked, and what makes it another search."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest

import rsparse
from rsparse.errors import RSparseError
from rsparse.search import check_study, genome, search
from rsparse.sparse_model import is_sparse
from tests.search.searches import SETTINGS, searched
from tests.support.folders import sparse_model
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of

pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.mark.parametrize("change", ["windows", "sinks", "dtype", "weights", "population"])
def test_a_study_of_another_search_is_refused(expected, change):
    model, calibration, settings = tiny_model("llama"), copy.copy(calibration_of("llama")), SETTINGS
    if change == "windows":  # as of another seed or length: the label is the same
        calibration.windows = calibration.windows.flip(1)
    elif change == "sinks":
        calibration.meta = dataclasses.replace(calibration.meta, sink_tokens=2)
    elif change == "dtype":
        model = model.double()
    elif change == "weights":
        model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    else:
        settings = dataclasses.replace(SETTINGS, population=5)
    with pytest.raises(RSparseError, match="is of another search: its ") as caught:
        search(model, calibration, settings, storage=expected[0])
    assert "\n" not in str(caught.value)
    assert not is_sparse(model)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "kl"},
        {"fit": "dropped"},
        {"grouping": "group", "criterion": "column_norm"},
        {"grouping": "group", "fit": "dropped", "objective": "kl", "seed": 3},
        {"criterion": "magnitude", "sparsity": 0.7, "seed": 1},
    ],
    ids=str,
)
def test_other_settings(journal, changes):
    settings = dataclasses.replace(SETTINGS, generations=2, **changes)
    result = searched(journal, settings)
    assert result.evaluations == 8
    assert 0 < result.fitness <= result.sparse_only
    recipe = result.recipe
    assert (recipe.grouping, recipe.fit) == (settings.grouping, settings.fit)
    assert recipe.sparsity == pytest.approx(settings.sparsity)
    assert {unit.criterion for unit in recipe.units.values()} == {settings.criterion}
    assert len(recipe.units) == (8 if settings.grouping == "group" else 14)
    assert max(len(unit.linears) for unit in recipe.units.values()) == (3 if settings.grouping == "group" else 1)
    rsparse.sparsify(tiny_model("llama"), recipe, calibration_of("llama"))


def test_seeds_differ(expected, journal):
    assert searched(journal, dataclasses.replace(SETTINGS, seed=1)).recipe != expected[1].recipe


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *[({"sparsity": value}, "between 0 and 1") for value in (0, 1, -0.5, 1.5, math.nan, math.inf)],
        ({"population": 1}, "population must be 2 or more, got 1"),
        ({"generations": 0}, "generations must be 1 or more, got 0"),
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"objective": "taste"}, "objective must be one of perplexity, kl, got 'taste'"),
        ({"fit": "tight"}, "fit must be one of svd, dropped, got 'tight'"),
        ({"grouping": "heap"}, "grouping must be one of linear, group, got 'heap'"),
        ({"criterion": "taste"}, "criterion 'taste' is unknown; choose one of "),
        ({"criterion": "residual_norm"}, "residual_norm"),
    ],
    ids=str,
)
def test_settings_out_of_range(changes, says):
    with pytest.raises(RSparseError, match=says.replace("[", r"\[")):
        dataclasses.replace(SETTINGS, **changes)


def test_what_cannot_be_searched(journal, tmp_path):
    with pytest.raises(RSparseError, match="dense model"):
        searched(journal, model=sparse_model("llama"))
    with pytest.raises(RSparseError, match="another model"):
        searched(journal, model=tiny_model("qwen2"))
    with pytest.raises(RSparseError, match="64 windows, and the search samples 65"):
        searched(journal, dataclasses.replace(SETTINGS, samples=65))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [None, "windows", "sinks", "population", "operators"])
def test_what_shows_before_the_model_is_there(expected, tmp_path, monkeypatch, change):
    calibration, settings = copy.copy(calibration_of("llama")), SETTINGS
    check_study(calibration, settings, f"journal:{tmp_path}/none")
    if change == "windows":
        calibration.windows = calibration.windows.flip(1)
    elif change == "sinks":
        calibration.meta = dataclasses.replace(calibration.meta, sink_tokens=2)
    elif change == "population":
        settings = dataclasses.replace(SETTINGS, population=5)
    elif change == "operators":  # as of another version of this library
        monkeypatch.setattr(genome, "VERSION", genome.VERSION + 1)
    if change is None:
        check_study(calibration, settings, expected[0])
        return
    with pytest.raises(RSparseError, match="is of another search: its ") as early:
        check_study(calibration, settings, expected[0])
    with pytest.raises(RSparseError) as late:
        search(tiny_model("llama"), calibration, settings, storage=expected[0])
    assert str(early.value) == str(late.value)
