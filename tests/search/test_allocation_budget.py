"""Every candidate of an allocation has the bytes that it was given, and no more ranks than it is charged for."""

from __future__ import annotations

import numpy as np
import pytest

from rsparse.errors import RSparseError
from rsparse.recipe import UnitRecipe
from rsparse.search import allocation as module
from rsparse.search.allocation import LEAST, MOST
from rsparse.sparse_model import is_sparse
from tests.search.allocations import STARTS, allocated, pulling, sizes_of, start_of, total
from tests.support.models import tiny_model


@pytest.mark.parametrize("start", STARTS)
def test_every_candidate_has_the_starts_bytes_and_each_level_its_bounds(judging, start):
    model, judged = tiny_model("llama"), judging(pulling())
    sizes, given = sizes_of(model), start_of(model, STARTS[start](14))
    found = allocated(model, given, polish=30, rounds=3)
    budget = total(given, sizes)
    assert len(judged) == found.evaluations > 90
    for units in (*(units for units, _ in judged), found.choices):
        assert total(units, sizes) == pytest.approx(budget, rel=1e-6)
        assert all(LEAST <= each.sparsity <= MOST for each in units.values())
    course = list(found.course.values())
    assert course == sorted(course, reverse=True)
    if start not in ("nearly all", "nearly nothing"):
        assert course[0] > course[1] > course[2]  # it moves at all


@pytest.mark.parametrize("start", STARTS)
def test_no_rank_is_more_than_the_bases(judging, start):
    """Or candidates would be judged with fewer ranks than they are charged for."""
    model, judged = tiny_model("llama"), judging(pulling())
    allocated(model, start_of(model, STARTS[start](14)), polish=10, rounds=4)
    for units, base in judged:
        assert all(rank <= base[name].rank for name, each in units.items() for rank in each.ranks)
    if start == "uniform":
        assert any(each.rank for each in judged[-1][0].values())


@pytest.mark.parametrize("sparsity", [LEAST, 0.5, MOST])
def test_the_bases_ranks_fit_a_units_bytes_at_every_level(sparsity):
    """Those of a real size: 0.0586 of [512, 512] at LEAST, and a unit at MOST leaves 0.05."""
    wide = module._Allocation._widest(None, UnitRecipe.uniform({"q": 512}, 512, sparsity))
    assert wide.ranks == UnitRecipe.uniform({"q": 512}, 512, LEAST, 0.94).ranks == (15,)
    assert wide.kept_share > 0


@pytest.mark.parametrize(("mean", "levels"), [("0.97", 0.97), ("0.01", 0.01), ("0.96", np.resize([0.95, 0.97], 14))])
def test_levels_without_room_are_refused(mean, levels):
    model = tiny_model("llama")
    with pytest.raises(RSparseError, match=rf"between sparsity 0.02 and 0.95 in the mean, got {mean}"):
        allocated(model, start_of(model, levels))
    assert not is_sparse(model)
