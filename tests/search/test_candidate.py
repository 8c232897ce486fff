"""One candidate after another on one model, each against `sparsify` and `evaluate` on a model of its own."""

from __future__ import annotations

import math

import pytest
import torch

from rsparse import sparsify
from rsparse.calibration.histogram import quantile_threshold
from rsparse.evaluation.perplexity import evaluate
from rsparse.lowrank.svd import _by_gram
from rsparse.search.candidate import CandidateModel, spread_rows
from rsparse.sparse_model import achieved_sparsity, measuring, state
from tests.search.candidates import candidates_of, mixed, recipe_of
from tests.support.models import tiny_model
from tests.support.recipes import TYPES, calibration_of

CRITERIA = ["paper", "column_norm", "magnitude"]


@pytest.fixture
def exact(monkeypatch):
    """Factors whose prefix is the factors of a lower rank to the last digit, and one way to solve a threshold."""

    def svd(weight, rank, *, seed=0):
        left, sigma, right = _by_gram(weight.float(), rank)
        return left * sigma, right

    monkeypatch.setattr("rsparse.conversion.truncated_svd", svd)
    monkeypatch.setattr("rsparse.conversion.solve_threshold", lambda x, c, share: float(quantile_threshold(x, c, share)))


def by_the_public_way(model_type, recipe, objective="perplexity"):
    """Fitness by `sparsify` and `evaluate`, and the sparse model."""
    model, calibration = tiny_model(model_type, dtype=torch.float64), calibration_of(model_type)
    sparsify(model, recipe, calibration, settle_tokens=1 << 20)
    found = evaluate(model, calibration.windows)
    return (math.log(found.perplexity) if objective == "perplexity" else found.kl_to_dense), model


@pytest.mark.parametrize(
    ("model_type", "grouping", "criterion"),
    [
        *[("llama", grouping, criterion) for grouping in ("linear", "group") for criterion in CRITERIA],
        *[
            (other, *layout)
            for other in ("qwen2", "gemma3_text")
            for layout in zip(("linear", "group", "linear"), CRITERIA, strict=True)
        ],
    ],
)
def test_fitness_is_that_of_the_sparsified_model(exact, model_type, grouping, criterion):
    objective = "kl" if criterion == "paper" else "perplexity"
    model = tiny_model(model_type, dtype=torch.float64)
    candidates = candidates_of(model, grouping, criterion, objective)
    for rhos in (mixed(model, grouping), 1.0, 0.0)[: 3 if model_type == "llama" else 1]:
        recipe = recipe_of(model, rhos, grouping, criterion)
        found = candidates.evaluate(recipe)
        expected, sparse = by_the_public_way(model_type, recipe, objective)
        assert found.value == pytest.approx(expected, rel=2e-6)
        assert (found.tokens, found.stopped) == (len(candidates.windows) * 23, False)
        for name, members in ((name, unit.members) for name, unit in candidates.units.items()):
            assert float(members[0].threshold) == pytest.approx(state(sparse).recipe.units[name].threshold, rel=1e-6)


@pytest.mark.parametrize("model_type", TYPES)
def test_perplexity_of_the_papers_criterion(exact, model_type):
    model = tiny_model(model_type, dtype=torch.float64)
    recipe = recipe_of(model, mixed(model, "linear"))
    assert candidates_of(model).evaluate(recipe).value == pytest.approx(by_the_public_way(model_type, recipe)[0], rel=2e-6)


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_without_the_exact_factors_it_is_nearly_so(objective):
    model = tiny_model("llama", dtype=torch.float64)
    recipe = recipe_of(model, mixed(model, "linear"))
    found, expected = (
        candidates_of(model, objective=objective).evaluate(recipe).value,
        by_the_public_way("llama", recipe, objective)[0],
    )
    assert found == pytest.approx(expected, rel=0.02)


def test_a_fit_to_dropped_inputs_is_that_of_the_lowest_rho():
    model = tiny_model("llama", dtype=torch.float64)
    candidates, recipe = candidates_of(model, fit="dropped"), recipe_of(model, 0.0, fit="dropped")
    assert candidates.evaluate(recipe).value == pytest.approx(by_the_public_way("llama", recipe)[0], rel=1e-3)
    assert candidates.evaluate(recipe_of(model, 0.5, fit="dropped")).value > 0


@pytest.mark.parametrize(("grouping", "objective"), [("linear", "kl"), ("group", "perplexity")])
def test_no_candidate_leaves_anything_to_the_next(grouping, objective):
    model, windows = tiny_model("qwen2", dtype=torch.float64), calibration_of("qwen2").windows[:20]
    asked = [recipe_of(model, rhos, grouping) for rhos in (1.0, 0.0, mixed(model, grouping), mixed(model, grouping, 5), 0.9)]
    alone = []
    for recipe in asked:
        candidates = candidates_of(model, grouping, objective=objective, windows=windows)
        alone.append(candidates.evaluate(recipe))
        candidates.close()
    assert len({each.value for each in alone}) == 5
    candidates = candidates_of(model, grouping, objective=objective, windows=windows)
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [1, 0, 1, 4, 2, 0, 3]):
        for index in order:
            assert candidates.evaluate(asked[index]) == alone[index]
    candidates.evaluate(asked[1], worst=1e-3)  # stopped
    assert candidates.evaluate(asked[0]) == alone[0]


@pytest.mark.parametrize("grouping", ["linear", "group"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_achieved_sparsity_is_the_asked_one(grouping, dtype, sparsity):
    model = tiny_model("llama", dtype=dtype)
    candidates = candidates_of(model, grouping, sparsity=sparsity)
    for rhos in (1.0, 0.4, mixed(model, grouping)):
        recipe = recipe_of(model, rhos, grouping, sparsity=sparsity)
        with measuring(model) as meter:
            candidates.evaluate(recipe)
        state(model).recipe = recipe
        total, by_unit = achieved_sparsity(model, meter)
        assert total == pytest.approx(sparsity, abs=0.003)
        assert list(by_unit.values()) == pytest.approx([sparsity] * len(by_unit), abs=0.005)


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_a_stopped_candidate_has_a_lower_bound_beyond_the_worst(monkeypatch, objective):
    monkeypatch.setattr("rsparse.losses.batch_tokens", lambda model: 6 * 24)  # 11 batches
    model = tiny_model("llama", dtype=torch.float64)
    candidates = candidates_of(model, objective=objective)
    runs = []
    monkeypatch.setattr("rsparse.search.candidate.hidden_states", counted(runs))
    for rhos in (1.0, 0.3):
        recipe = recipe_of(model, rhos)
        full = candidates.evaluate(recipe).value
        assert candidates.evaluate(recipe, worst=full).stopped is False  # not beyond the worst: it may survive
        assert candidates.evaluate(recipe, worst=full * 1.01).value == full
        for share in (0.1, 0.5, 0.999999):
            runs.clear()
            found = candidates.evaluate(recipe, worst=share * full)
            assert found.stopped
            assert share * full < found.value <= full
            assert len(runs) == pytest.approx(1 + share * 11, abs=1.5)


def counted(runs):
    from rsparse.losses import hidden_states

    def counting(model, ids):
        runs.append(len(ids))
        return hidden_states(model, ids)

    return counting


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_every_batch_is_judged_by_its_own_windows(monkeypatch, objective):
    """With the thresholds that it left, the model's own evaluation says the same."""
    monkeypatch.setattr("rsparse.losses.batch_tokens", lambda model: 6 * 24)
    model = tiny_model("llama", dtype=torch.float64)
    candidates = candidates_of(model, objective=objective)
    recipe = recipe_of(model, mixed(model, "linear"))
    value = candidates.evaluate(recipe).value
    state(model).recipe = recipe
    found = evaluate(model, candidates.windows)
    assert value == pytest.approx(math.log(found.perplexity) if objective == "perplexity" else found.kl_to_dense, rel=1e-6)


def test_batches_do_not_matter_beyond_their_thresholds(monkeypatch):
    """Thresholds are of the first batch; with equal batches the fitness is the same."""
    model, calibration = tiny_model("llama", dtype=torch.float64), calibration_of("llama")
    windows = calibration.windows[:8]
    recipe = recipe_of(model, mixed(model, "linear"))
    candidates = candidates_of(model, windows=windows)
    once = candidates.evaluate(recipe).value
    candidates.close()
    monkeypatch.setattr("rsparse.losses.batch_tokens", lambda model: 8 * 24)
    twice = candidates_of(model, windows=torch.cat([windows, windows]))
    assert twice.evaluate(recipe).value == pytest.approx(once, rel=1e-9)


def test_dense_sinks_take_no_part_in_the_thresholds(monkeypatch):
    """The sinks' inputs are made huge: neither thresholds nor what is kept of the others may change."""
    model = tiny_model("llama", dtype=torch.float64)
    candidates = candidates_of(model)
    unit = candidates.units["model.layers.0.self_attn.q_proj"]
    x = torch.randn(4, 24, 48, dtype=torch.float64)
    found = []
    for sink in (1.0, 100.0):
        unit.set(recipe_of(model, 0.7).units["model.layers.0.self_attn.q_proj"])
        x[:, 0] *= sink
        hook = unit.settle_next(1)
        unit.members[0](x)
        hook.remove()
        found.append(float(unit.members[0].threshold))
    assert found[0] == found[1] > 0


@pytest.mark.parametrize(("batch", "tokens", "sinks"), [(3, 24, 1), (200, 24, 0), (200, 24, 3), (1, 5000, 1), (171, 24, 0)])
def test_rows_are_spread_over_all_that_are_not_sinks(batch, tokens, sinks):
    x = torch.arange(batch * tokens).view(batch, tokens, 1).expand(-1, -1, 3)
    rows = x[:, sinks:].flatten(0, 1)
    assert torch.equal(spread_rows(x, sinks), rows[:: max(1, len(rows) // 2048)])


@pytest.mark.parametrize("fit", ["svd", "dropped"])
def test_statistics_are_read_only_where_factors_are_fitted_to_them(monkeypatch, fit):
    calibration, read = calibration_of("llama"), []
    real = type(calibration).block
    monkeypatch.setattr(type(calibration), "block", lambda self, index: (read.append(index), real(self, index))[1])
    candidates_of(tiny_model("llama"), fit=fit)
    assert read == ([] if fit == "svd" else [0, 1])


def test_no_unit_keeps_a_copy_of_its_weight():
    model = tiny_model("llama")
    candidates = candidates_of(model, "group")
    candidates.evaluate(recipe_of(model, 0.5, "group"))
    for unit in candidates.units.values():
        own = [value for value in vars(unit).values() if isinstance(value, torch.Tensor)]
        scales = [scale for scale in unit._scales.values() if scale is not None]
        assert own == []
        assert all(scale.dim() == 1 for scale in scales)


def test_seconds_of_the_factors(monkeypatch):
    clock = iter([10.0, 17.5])
    monkeypatch.setattr("rsparse.search.candidate.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(CandidateModel, "_install", lambda self, calibration: None)
    assert candidates_of(tiny_model("llama")).factors_seconds == 7.5
