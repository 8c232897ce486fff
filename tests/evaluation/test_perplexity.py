"""Figures against computations written out here, with hooks on the dense model."""

from __future__ import annotations

import math
import types

import pytest
import torch

from rsparse import losses, sparsify
from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.errors import RSparseError
from rsparse.evaluation import perplexity
from rsparse.evaluation.perplexity import evaluate
from rsparse.losses import dense_states
from rsparse.sparse_model import state
from rsparse.token_policy import TokenPolicy
from tests.support.folders import sparse_model
from tests.support.formula import factors_of, run_formula, scale_of
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import calibration_of, sparse_of, uniform

WINDOWS = token_ids(5, 20, seed=9)
TOKENS = WINDOWS.shape[1]


@torch.no_grad()
def nll_by_hand(logits, windows=WINDOWS):
    """−log p of tokens 1 … n−1: [windows, n−1]."""
    log_p = logits.double().log_softmax(-1)[:, :-1]
    return -log_p.gather(-1, windows[:, 1:, None])[..., 0]


@torch.no_grad()
def dense_logits(model_type, dtype=torch.float64):
    return tiny_model(model_type, dtype=dtype)(WINDOWS, use_cache=False).logits


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gemma3_text"])
def test_a_dense_model(model_type):
    result = evaluate(tiny_model(model_type), WINDOWS)
    nll = nll_by_hand(dense_logits(model_type))
    assert result.perplexity == pytest.approx(float(nll.mean().exp()), rel=1e-4)
    assert result.window_nll == pytest.approx(nll.mean(1).tolist(), abs=2e-5)
    assert result.tokens == 5 * 19
    assert (result.kl_to_dense, result.dense_perplexity, result.sparsity_by_unit) == (None, None, None)
    assert (result.achieved_sparsity, result.sparse_row_share) == (0, 0)
    assert "kl_to_dense" not in result.metrics()
    assert result.metrics()["perplexity"] == result.perplexity


def test_batches_do_not_matter(monkeypatch):
    model = sparse_of("llama")
    whole = evaluate(model, WINDOWS)
    monkeypatch.setattr(losses, "batch_tokens", lambda model: 2 * TOKENS)
    parts = evaluate(model, WINDOWS)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert parts.sparsity_by_unit == whole.sparsity_by_unit
    monkeypatch.setattr(losses, "batch_tokens", lambda model: 1)
    assert evaluate(model, WINDOWS).achieved_sparsity == whole.achieved_sparsity


@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize(("grouping", "stacked", "model_type"), [("linear", False, "qwen2"), ("group", True, "gemma3_text")])
def test_all_tokens_sparse(model_type, grouping, stacked, sinks):
    model = sparse_of(model_type, grouping, stacked)
    recipe = state(model).recipe
    result = evaluate(model, WINDOWS, TokenPolicy(sink_tokens=sinks))
    dense = tiny_model(model_type, dtype=torch.float64)
    logits, kept = run_formula(dense, recipe, factors_of(model), WINDOWS, sinks)
    before = dense_logits(model_type)
    nll = nll_by_hand(logits)
    assert result.perplexity == pytest.approx(float(nll.mean().exp()), rel=1e-5)
    assert result.dense_perplexity == pytest.approx(float(nll_by_hand(before).mean().exp()), rel=1e-5)
    p, q = (every[:, :-1].double().log_softmax(-1) for every in (before, logits))
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert result.kl_to_dense == pytest.approx(float(kl.mean()), rel=1e-4)
    assert result.token_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert result.sparse_row_share == pytest.approx(1 - sinks / TOKENS)
    # achieved: 1 − (kept channels + factors) / weights, by unit and over all linears of all blocks
    by_unit = {name: 1 - kept[unit.linears[0]] - unit.lowrank_size / unit.size for name, unit in recipe.units.items()}
    assert result.sparsity_by_unit == pytest.approx(by_unit, abs=1e-12)
    total = sum(unit.size for unit in recipe.units.values())
    expected = sum(by_unit[name] * unit.size for name, unit in recipe.units.items()) / total
    assert result.achieved_sparsity == pytest.approx(expected, abs=1e-12)


def test_units_outside_of_the_recipe_count_in_the_denominator():
    model = tiny_model("llama")
    recipe = uniform(model, 0.5)
    only = {name: unit for name, unit in recipe.units.items() if "down_proj" in name}
    sparsify(model, type(recipe)(recipe.model_type, only), calibration_of("llama"))
    result = evaluate(model, WINDOWS)
    inside = sum(result.sparsity_by_unit[name] * 80 * 48 for name in only)
    assert len(only) == 2
    # a block: q and o 48·48, k and v 24·48, gate, up and down 80·48
    assert result.achieved_sparsity == pytest.approx(inside / (2 * (2 * 48 * 48 + 2 * 24 * 48 + 3 * 80 * 48)))
    assert result.achieved_sparsity < 0.2


def test_policy_dense_is_the_dense_model():
    result = evaluate(sparse_model("llama"), WINDOWS, TokenPolicy("dense"))
    dense = evaluate(tiny_model("llama"), WINDOWS)
    assert result.perplexity == dense.perplexity == result.dense_perplexity
    assert result.window_nll == dense.window_nll
    assert (result.kl_to_dense, result.token_agreement) == (0, 1)
    assert (result.achieved_sparsity, result.sparse_row_share) == (0, 0)
    assert result.bytes_per_token == result.dense_bytes_per_token == dense.bytes_per_token


def sparse_rows_of(model, policy, windows=WINDOWS):
    """The row masks that the model's linears saw in its sparse passes."""
    seen = []

    def look(module, args):
        seen.append(module.policy.sparse)

    linear = next(module for module in model.modules() if getattr(module, "policy", None) is not None)
    handle = linear.register_forward_pre_hook(look)
    try:
        result = evaluate(model, windows, policy, against_dense=False)
    finally:
        handle.remove()
    return seen, result


def test_decode_scores_the_second_half_after_a_dense_prompt():
    model = sparse_of("llama")
    seen, result = sparse_rows_of(model, TokenPolicy("decode"))
    expected = torch.zeros(5, TOKENS, dtype=torch.bool)
    expected[:, 10:] = True
    assert len(seen) == 1
    assert torch.equal(seen[0], expected)
    assert result.tokens == 5 * 10  # tokens 10 … 19, the first of them predicted by the last prompt token
    assert result.sparse_row_share == pytest.approx(0.5)
    dense = tiny_model("llama", dtype=torch.float64)
    logits, _ = run_formula(dense, state(model).recipe, factors_of(model), WINDOWS, sinks=10)
    nll = nll_by_hand(logits)[:, 9:]
    assert result.perplexity == pytest.approx(float(nll.mean().exp()), rel=1e-5)
    assert result.window_nll == pytest.approx(nll.mean(1).tolist(), abs=2e-5)


def test_decode_at_an_odd_length():
    seen, result = sparse_rows_of(sparse_of("llama"), TokenPolicy("decode"), WINDOWS[:, :7])
    assert seen[0].sum(1).tolist() == [4] * 5
    assert result.tokens == 5 * 4


@pytest.mark.parametrize(("fraction", "dense_tokens"), [(0.1, 18), (0.5, 10), (1.0, 1), (0.33, 13)])
def test_last_fraction(fraction, dense_tokens):
    model = sparse_of("llama")
    _, result = sparse_rows_of(model, TokenPolicy("last_fraction", fraction))
    dense = tiny_model("llama", dtype=torch.float64)
    logits, _ = run_formula(dense, state(model).recipe, factors_of(model), WINDOWS, sinks=dense_tokens)
    assert result.tokens == 5 * 19
    assert result.perplexity == pytest.approx(float(nll_by_hand(logits).mean().exp()), rel=1e-5)
    assert result.sparse_row_share == pytest.approx(1 - dense_tokens / TOKENS)


def test_without_the_dense_comparison():
    model = sparse_of("llama")
    short, whole = evaluate(model, WINDOWS, against_dense=False), evaluate(model, WINDOWS)
    assert short.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    assert short.achieved_sparsity == whole.achieved_sparsity
    assert (short.kl_to_dense, short.dense_perplexity, short.token_agreement) == (None, None, None)


def passes(model, run):
    """(result, forward passes of the decoder stack)."""
    seen = []
    handle = model.base_model.register_forward_hook(lambda *_: seen.append(1))
    try:
        return run(), len(seen)
    finally:
        handle.remove()


@pytest.mark.parametrize("policy", [TokenPolicy(), TokenPolicy("decode"), TokenPolicy("last_fraction", 0.5)], ids=str)
def test_dense_states_spare_the_dense_passes(monkeypatch, policy):
    model = sparse_of("llama")
    monkeypatch.setattr(losses, "batch_tokens", lambda model: 2 * TOKENS)  # batches of 2, 2 and 1 windows
    states = dense_states(model, WINDOWS)
    with torch.no_grad():
        expected = tiny_model("llama", dtype=torch.float64).model(WINDOWS).last_hidden_state
    assert torch.allclose(states, expected, rtol=1e-12, atol=1e-12)
    assert state(model).policy.token_policy == TokenPolicy()
    whole, count = passes(model, lambda: evaluate(model, WINDOWS, policy))
    spared, fewer = passes(model, lambda: evaluate(model, WINDOWS, policy, dense_hidden=states))
    assert (count, fewer) == (6, 3)
    for name in ("perplexity", "dense_perplexity", "kl_to_dense", "token_agreement", "window_nll", "achieved_sparsity"):
        assert getattr(spared, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    assert spared.dense_forward_tokens_per_second is None


def test_dense_states_of_a_dense_model():
    model = tiny_model("gemma2")
    states = dense_states(model, WINDOWS)
    with torch.no_grad():
        assert torch.equal(states, model.model(WINDOWS).last_hidden_state)


def test_rates(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(perplexity, "time", types.SimpleNamespace(perf_counter=lambda: float(next(clock))))
    # start at 0; sparse pass 1-2; dense pass 3-4; end at 5
    result = evaluate(sparse_of("llama"), WINDOWS)
    assert result.forward_tokens_per_second == result.dense_forward_tokens_per_second == 5 * TOKENS / 1
    assert result.eval_tokens_per_second == 5 * TOKENS / 5
    alone = evaluate(tiny_model("llama"), WINDOWS)
    assert alone.dense_forward_tokens_per_second is None
    assert alone.forward_tokens_per_second == 5 * TOKENS
    assert alone.eval_tokens_per_second == pytest.approx(5 * TOKENS / 3)


def test_evaluation_leaves_no_trace():
    model = sparse_model("llama")
    with torch.no_grad():
        before = model(WINDOWS).logits
        evaluate(model, WINDOWS, TokenPolicy("decode"))
        assert torch.equal(model(WINDOWS).logits, before)
    assert state(model).policy.token_policy == TokenPolicy()
    assert all(getattr(module, "meter", None) is None for module in model.modules())


def test_windows_too_short_to_score():
    for windows, policy in ((WINDOWS[:, :1], TokenPolicy()), (WINDOWS[:, :1], TokenPolicy("decode"))):
        with pytest.raises(RSparseError, match="nothing to score"):
            evaluate(sparse_of("llama"), windows, policy)


def test_output_that_is_not_finite():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(RSparseError, match="not finite"):
        evaluate(model, WINDOWS)


def test_a_huge_loss_stays_a_number():
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight *= 1e4
    assert math.isfinite(evaluate(model, WINDOWS).perplexity)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_dense_bytes(dtype, size):
    # a block of the tiny Llama: q and o 48·48, k and v 24·48, gate, up and down 80·48; the head 160·48
    block = 2 * 48 * 48 + 2 * 24 * 48 + 3 * 80 * 48
    assert dense_bytes_per_token(tiny_model("llama", dtype=dtype)) == size * (2 * block + 160 * 48)
    # Qwen2 adds biases to q, k and v
    assert dense_bytes_per_token(tiny_model("qwen2", dtype=dtype)) == size * (2 * (block + 48 + 2 * 24) + 160 * 48)


@pytest.mark.parametrize(("grouping", "stacked"), [("linear", False), ("group", True), ("group", False)])
def test_sparse_bytes(grouping, stacked):
    model = tiny_model("qwen2")
    recipe = uniform(model, 0.5, 0.6, grouping=grouping, stacked=stacked, criterion="column_norm")
    sparsify(model, recipe, calibration_of("qwen2"))
    result = evaluate(model, WINDOWS)
    units, expected = recipe.units, 4 * (160 * 48 + 2 * (48 + 24 + 24))  # head, biases
    for name, unit in units.items():
        low_rank = unit.lowrank_size
        kept = (1 - result.sparsity_by_unit[name]) * unit.size - low_rank
        expected += 4 * (kept + low_rank) + 4 * unit.in_features  # the score's scale: one fp32 a channel, once a unit
        assert scale_of(tiny_model("qwen2"), unit) is not None
    assert result.bytes_per_token == pytest.approx(expected, abs=1)
    assert result.bytes_per_token == bytes_per_token(model, result.sparsity_by_unit)
    assert result.bytes_per_token < result.dense_bytes_per_token


def test_bytes_are_those_of_a_token_that_runs_sparse():
    model = sparse_model("llama")
    by_unit = dict.fromkeys(state(model).recipe.units, 0.25)
    block = 2 * 48 * 48 + 2 * 24 * 48 + 3 * 80 * 48
    assert bytes_per_token(model, by_unit) == 4 * (0.75 * 2 * block + 160 * 48)
    assert bytes_per_token(tiny_model("llama"), {}) == 4 * (2 * block + 160 * 48)
