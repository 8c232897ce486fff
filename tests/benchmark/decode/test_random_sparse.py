"""Random weights have the sparsity and the low rank that were asked."""

from __future__ import annotations

import pytest
import torch

from rsparse.benchmark.decode.random_sparse import recipe_for, sparsify_random
from rsparse.sparse_model import measuring, state
from rsparse.token_policy import TokenPolicy
from tests.benchmark.decode.benches import shape
from tests.support.models import tiny_model


def test_the_random_models_decode_has_the_sparsity_that_was_asked():
    """Counted token by token with a cache, while the thresholds were solved in one call."""
    source = shape()
    model, prompt, given = source.load(), source.prompt(2, 60), source.given(2, 90)
    recipe = recipe_for(model, 0.5, "quarter")
    sparsify_random(model, recipe, torch.cat([prompt, given], 1), 60)
    with state(model).policy.using(TokenPolicy("decode")), measuring(model) as meter, torch.no_grad():
        cache = model(prompt).past_key_values
        for column in given.split(1, dim=1):
            model(column, past_key_values=cache)
    for name, unit in recipe.units.items():
        assert meter.kept_share(name) == pytest.approx(unit.kept_share, abs=0.004)


def test_a_quarter_of_the_units_have_factors():
    for name, at_least, at_most in (("none", 0, 0), ("quarter", 0.25, 0.4)):
        recipe = recipe_for(tiny_model("llama", hidden_size=240, intermediate_size=400, num_hidden_layers=4), 0.4, name)
        share = sum(unit.rank > 0 for unit in recipe.units.values()) / len(recipe.units)
        assert at_least <= share <= at_most
        assert recipe.sparsity == pytest.approx(0.4)
        assert recipe.method == ("rsparse" if name == "quarter" else "sparse_only")
