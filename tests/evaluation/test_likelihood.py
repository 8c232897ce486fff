"""Log-likelihoods against log-softmax of whole logits, one request at a time, with hooks on the dense model."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import DynamicCache

from rsparse import losses
from rsparse.errors import RSparseError
from rsparse.evaluation.likelihood import score_continuations
from rsparse.sparse_model import measuring, state
from rsparse.token_policy import TokenPolicy
from tests.support.formula import factors_of, run_formula
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import sparse_of

TYPES = ["llama", "gemma2", "gemma3_text"]  # plain; soft caps; a sliding window of 6
POLICIES = [TokenPolicy(), TokenPolicy("decode"), TokenPolicy("last_fraction", 0.5), TokenPolicy("dense")]


def ids(count, seed):
    return token_ids(1, count, seed)[0].tolist()


# Lengths differ, so that a batch is padded; some continuations are one token.
SIZES = [(3, 4), (11, 1), (7, 9), (1, 2), (14, 5), (7, 1)]
REQUESTS = [(ids(context, seed=i), ids(continuation, seed=50 + i)) for i, (context, continuation) in enumerate(SIZES)]


def dense_rows(policy, context, tokens):
    """How many of the `tokens` that the model reads are dense, by hand."""
    return {
        "all": policy.sink_tokens,
        "decode": max(context, policy.sink_tokens),
        "last_fraction": max(tokens // 2, policy.sink_tokens),
        "dense": tokens,
    }[policy.kind]


@functools.cache
def dense_of(model_type):
    return tiny_model(model_type, dtype=torch.float64)


@torch.no_grad()
def by_hand(dense, context, continuation, sparse=None, dense_tokens=0):
    """(log p, greedy) from whole logits of the dense model, or of the formula with `dense_tokens` dense rows."""
    whole = torch.tensor([[*context, *continuation]])
    if sparse is None:
        logits = dense(whole[:, :-1], use_cache=False).logits
    else:
        logits, _ = run_formula(dense, state(sparse).recipe, factors_of(sparse), whole[:, :-1], sinks=dense_tokens)
    log_p = logits[0, -len(continuation) :].double().log_softmax(-1)
    target = torch.tensor(continuation)
    return float(log_p.gather(-1, target[:, None]).sum()), bool((log_p.argmax(-1) == target).all())


def assert_same(found, expected):
    assert [log_p for log_p, _ in found] == pytest.approx([log_p for log_p, _ in expected], rel=1e-6)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("model_type", TYPES)
def test_a_dense_model(model_type):
    dense = dense_of(model_type)
    assert_same(score_continuations(dense, REQUESTS), [by_hand(dense, *request) for request in REQUESTS])


@pytest.mark.parametrize("sinks", [1, 4])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("model_type", TYPES)
def test_every_token_policy_in_a_padded_batch(model_type, policy, sinks):
    sparse, dense = sparse_of(model_type), dense_of(model_type)
    policy = TokenPolicy(policy.kind, policy.fraction, sinks)
    expected = [
        by_hand(dense, context, continuation, sparse, dense_rows(policy, len(context), len(context) + len(continuation) - 1))
        for context, continuation in REQUESTS
    ]
    assert_same(score_continuations(sparse, REQUESTS, policy), expected)
    assert state(sparse).policy.token_policy == TokenPolicy()
    plain = score_continuations(dense, REQUESTS)
    different = [abs(found[0] - other[0]) > 1e-3 for found, other in zip(expected, plain, strict=True)]
    # Else a policy that did nothing would pass: only where a scored position was sparse may it be the dense model's.
    assert any(different) == (policy.kind != "dense")


@pytest.mark.parametrize("model_type", TYPES)
def test_decode_is_what_a_decode_loop_sees(model_type):
    sparse = sparse_of(model_type)
    policy = state(sparse).policy
    expected = []
    for context, continuation in REQUESTS:
        cache, total = DynamicCache(config=sparse.config), 0.0
        with torch.no_grad():
            with policy.using(TokenPolicy("dense")):
                logits = sparse(torch.tensor([context]), past_key_values=cache).logits[0, -1]
            for token in continuation:
                total += float(logits.double().log_softmax(-1)[token])
                with policy.using(TokenPolicy("decode")):
                    logits = sparse(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        expected.append(total)
    found = [log_p for log_p, _ in score_continuations(sparse, REQUESTS, TokenPolicy("decode"))]
    assert found == pytest.approx(expected, rel=1e-6)


def test_one_token_under_decode_is_the_dense_models():
    sparse = sparse_of("llama")
    one = [(context, continuation[:1]) for context, continuation in REQUESTS]
    dense = score_continuations(sparse, one, TokenPolicy("dense"))
    assert_same(score_continuations(sparse, one, TokenPolicy("decode")), dense)
    assert score_continuations(sparse, one)[0][0] != pytest.approx(dense[0][0], rel=1e-4)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_batching_and_order_do_not_matter(policy, monkeypatch):
    sparse = sparse_of("gemma3_text")
    whole = score_continuations(sparse, REQUESTS, policy)
    assert_same(score_continuations(sparse, REQUESTS, policy, batch_tokens=1), whole)
    assert_same(score_continuations(sparse, REQUESTS, policy, batch_tokens=30), whole)
    assert_same(score_continuations(sparse, REQUESTS[::-1], policy), whole[::-1])
    monkeypatch.setattr(losses, "LOGIT_ELEMENTS", {"cpu": 2 * sparse.config.vocab_size})  # a continuation in slices
    assert_same(score_continuations(sparse, REQUESTS, policy), whole)


def shapes_of(model, run):
    seen = []
    handle = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        return run(), seen
    finally:
        handle.remove()


def test_answers_of_one_token_share_a_forward_pass():
    dense, (context, _) = dense_of("llama"), REQUESTS[1]
    answers = [(context, [token]) for token in (5, 9, 17, 9)]
    requests = [*answers, (context, [5, 9]), (context, [5, 11])]
    found, shapes = shapes_of(dense, lambda: score_continuations(dense, requests))
    # Two rows: the context for the four answers, and the context with 5 for the last two requests.
    assert shapes == [(2, len(context) + 1)]
    assert_same(found, [by_hand(dense, *request) for request in requests])


def test_batches_hold_their_budget_with_padding():
    dense = dense_of("llama")
    _, shapes = shapes_of(dense, lambda: score_continuations(dense, REQUESTS, batch_tokens=40))
    # what is read: 6, 11, 15, 2, 18 and 7 tokens, the longest first
    assert shapes == [(2, 18), (3, 11), (1, 2)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_longest_lose_tokens_on_the_left(policy):
    sparse, (context, continuation) = sparse_of("llama"), REQUESTS[4]
    cut = [(context[-(9 - len(continuation)) :], continuation)]  # 8 tokens are read, the ninth only predicted
    found = score_continuations(sparse, [(context, continuation)], policy, max_length=8)
    assert_same(found, score_continuations(sparse, cut, policy))
    small = tiny_model("llama", dtype=torch.float64, max_position_embeddings=8)
    assert_same(score_continuations(small, [REQUESTS[4]]), [by_hand(dense_of("llama"), *cut[0])])
    whole = score_continuations(dense_of("llama"), [REQUESTS[4]])[0][0]
    assert whole != pytest.approx(score_continuations(small, [REQUESTS[4]])[0][0], rel=1e-5)


def test_greedy_means_every_token():
    dense, context = dense_of("gemma2"), REQUESTS[0][0]
    read = torch.tensor([context])
    with torch.no_grad():
        for _ in range(3):
            read = torch.cat([read, dense(read, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    best = read[0, len(context) :].tolist()
    others = [[*best[:i], best[i] % 150 + 4, *best[i + 1 :]] for i in range(3)]
    found = score_continuations(dense, [(context, best), *((context, other) for other in others)])
    assert [greedy for _, greedy in found] == [True, False, False, False]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_meter_does_not_count_padding(policy):
    sparse = sparse_of("llama")
    with measuring(sparse) as meter:
        score_continuations(sparse, REQUESTS, policy)
    read = [(len(context), len(context) + len(continuation) - 1) for context, continuation in REQUESTS]
    assert meter.sparse_rows == sum(tokens - dense_rows(policy, context, tokens) for context, tokens in read)


@pytest.mark.parametrize(
    ("context", "continuation", "sizes"),
    [([], [5], "0 and 1"), ([5], [], "1 and 0"), ([5], list(range(4, 14)), "1 and 10 tokens in 9 positions")],
)
def test_what_cannot_be_scored(context, continuation, sizes):
    with pytest.raises(RSparseError, match=sizes):
        score_continuations(dense_of("llama"), [(context, continuation)], max_length=9)


def test_nothing_to_score():
    assert score_continuations(dense_of("llama"), []) == []
