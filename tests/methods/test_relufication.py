"""ReLUfication: ReLU in the activation's place, its own level, and Case I of the paper beside it."""

from __future__ import annotations

import pytest
import torch

from rsparse import make_recipe, sparsify
from rsparse.errors import RSparseError
from rsparse.sparse_model import achieved_sparsity, measuring, state
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import calibration_of

ZEROS = {"model.layers.0.mlp": 0.0, "model.layers.1.mlp": 0.0}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def test_plans(model):
    own = make_recipe(model, "relufication", 0.3, level="own")
    assert own == make_recipe(model, "relufication", 0.0)
    assert (own.rule, own.sparsity, own.kept, dict(own.thresholds), own.settled) == ("relu", 0.0, 1.0, ZEROS, True)
    asked = make_recipe(model, "relufication", 0.3)
    assert (asked.rule, asked.thresholds) == ("relu", None)
    assert asked.kept == pytest.approx(1 - 0.3 * 18432 / 7680)
    phases = make_recipe(model, "relufication", 0.1, phases="3")
    assert (phases.rule, dict(phases.options)) == ("multi_phase", {"phases": 3})
    assert phases.kept == pytest.approx(1 - 0.1 * 18432 / 3840)  # of down alone
    assert dict(make_recipe(model, "relufication", 0.1, phases=3, level="own").thresholds) == ZEROS


@pytest.mark.parametrize(
    ("sparsity", "options", "says"),
    [
        (0.4, {}, "^sparsity 0.4 is past ReLUfication's floor: it drops at most 0.395 on this model$"),
        (0.2, {"phases": 2}, "^sparsity 0.2 is past ReLUfication's floor: it drops at most 0.197 on this model$"),
        (0.2, {"phases": -1}, "phases must be 0 or more, got -1"),
        (0.2, {"phases": "few"}, "phases must be a whole number, got 'few'"),
        (0.2, {"level": "high"}, "level must be one of asked, own"),
    ],
)
def test_refusals(model, sparsity, options, says):
    with pytest.raises(RSparseError, match=says):
        make_recipe(model, "relufication", sparsity, **options)


@torch.no_grad()
def by_relu(ids):
    """The model with ReLU for its activation, and the share of neurons that this leaves."""
    other, seen = tiny_model("llama", dtype=torch.float64), []
    for layer in other.model.layers:
        layer.mlp.act_fn = torch.nn.ReLU()
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: seen.append((args[0] != 0).double().mean()))
    return other(ids).logits, float(torch.stack(seen).mean())


@torch.no_grad()
def test_its_own_level_is_what_relu_leaves():
    model, ids = tiny_model("llama", dtype=torch.float64), token_ids(4, 24)
    sparsify(model, make_recipe(model, "relufication", 0.0, level="own"))
    with state(model).policy.using(TokenPolicy("all", sink_tokens=0)), measuring(model) as meter:
        found = model(ids).logits
    expected, kept = by_relu(ids)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert achieved_sparsity(model, meter)[0] == pytest.approx((1 - kept) * 7680 / 18432)
    assert 0.4 < kept < 0.6


@torch.no_grad()
def test_less_than_that_is_still_relu_and_more_shifts_it():
    ids, calibration = token_ids(4, 24), calibration_of("llama")
    less, more = (
        sparsify(tiny_model("llama"), make_recipe(tiny_model("llama"), "relufication", level), calibration)
        for level in (0.1, 0.35)
    )
    assert dict(state(less).plan.thresholds) == ZEROS
    assert min(state(more).plan.thresholds.values()) > 0
    with state(less).policy.using(TokenPolicy("all", sink_tokens=0)):
        assert torch.allclose(less(ids).logits, by_relu(ids)[0].float(), rtol=1e-3, atol=1e-3)
    with measuring(more) as meter:
        more(calibration.windows)
    assert achieved_sparsity(more, meter)[0] == pytest.approx(0.35, abs=3e-3)
