"""Tokens and logits of the fused step against transformers' loop over the model's own modules."""

from __future__ import annotations

import pytest
import torch

from rsparse import densify
from rsparse.runtime.fused import FusedModel, Sampling
from rsparse.sparse_model import state
from rsparse.token_policy import TokenPolicy
from tests.runtime.fused.cases import ALL_TYPES, NEW, PROMPTS, by_modules, dense, sparse, uneven
from tests.support.models import token_ids
from tests.support.recipes import LAYOUTS

MAKE = {"dense": dense, **{f"{grouping}-{stacked}": (grouping, stacked) for grouping, stacked in LAYOUTS}}


def made(model_type, kind):
    how = MAKE[kind]
    return how(model_type) if callable(how) else sparse(model_type, *how)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("model_type", ALL_TYPES)
def test_greedy_tokens(model_type, kind, by_steps):
    """The longest prompt and all new tokens pass the sliding window of 6; the batch is padded on the left."""
    model = made(model_type, kind)
    expected = [by_modules(model, PROMPTS[1:2]), by_modules(model, PROMPTS)]
    found = [by_steps(model, PROMPTS[1:2]), by_steps(model, PROMPTS)]
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.texts == other.texts
    assert len(set(found[1].token_ids.flatten().tolist())) > 10  # else it would not matter what a step computes
    # The model goes on working on the packed storage.
    assert by_modules(model, PROMPTS).token_ids.tolist() == expected[1].token_ids.tolist()
    if kind != "dense":
        assert expected[1].token_ids.tolist() != by_modules(densify(model), PROMPTS).token_ids.tolist()


def test_units_that_differ_side_by_side(by_steps):
    model = uneven()
    assert by_steps(model, PROMPTS).token_ids.tolist() == by_modules(model, PROMPTS).token_ids.tolist()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dense", "group-True", "linear-False"])
@pytest.mark.parametrize("model_type", ALL_TYPES)
def test_logits(model_type, kind):
    """Of one row, token by token, against one call in which the prompt is dense and the rest sparse."""
    model, ids, prompt = made(model_type, kind), token_ids(1, 20), 9
    if kind == "dense":
        expected = model(ids).logits
    else:
        with state(model).policy.using(TokenPolicy("decode"), torch.tensor([prompt])):
            expected = model(ids).logits
    session = FusedModel(model, "reference").session(model, 1, 20, Sampling())
    session.begin(model, ids[:, :prompt], torch.ones(1, prompt, dtype=torch.long))
    found = []
    for column in ids[:, prompt:].unbind(1):
        session.step.token.copy_(column)
        found.append(session.step.logits())
    error = torch.stack(found, 1) - expected[:, prompt:]
    assert error.norm() <= 1e-5 * expected[:, prompt:].norm()


def test_a_session_serves_call_after_call(by_steps):
    """Shorter and longer prompts, fewer and more rows, and the first ones again."""
    model = sparse("gemma3_text")
    for prompts in (PROMPTS[1:2], PROMPTS[:1], PROMPTS, PROMPTS[:2], PROMPTS[1:2]):
        for _ in range(2):
            assert by_steps(model, prompts).token_ids.tolist() == by_modules(model, prompts).token_ids.tolist()


def test_other_settings_make_another_session(by_steps):
    """On one model with as many rows, each after the other."""
    model = dense("llama")
    stop = int(by_modules(model, PROMPTS).token_ids[0, 4])
    for options in ({}, {"temperature": 1.5, "seed": 3}, {"ignore_eos": False}, {"temperature": 1.5, "top_p": 0.5}, {}):
        model.generation_config.eos_token_id = stop
        found, expected = (run(model, PROMPTS, **options).token_ids.tolist() for run in (by_steps, by_modules))
        assert found == expected


@pytest.mark.parametrize("count", [1, 2, 8, 9, 10, 17, 18])
def test_any_number_of_tokens(count, by_steps):
    """Around the pieces in which they are fetched."""
    model = dense("llama")
    expected = by_modules(model, PROMPTS[:1]).token_ids[0, :count].tolist()
    found = by_steps(model, PROMPTS[:1], max_new_tokens=count)
    assert found.token_ids[0].tolist() == expected
    assert found.new_tokens == count
    assert found.prefill_seconds > 0
    assert (found.decode_tokens_per_second is None) == (count == 1)


def test_the_longest_that_fits(by_steps):
    model = sparse("llama")
    prompt = token_ids(1, 250)[0].tolist()
    expected = by_modules(model, [prompt], max_new_tokens=6)
    assert by_steps(model, [prompt], max_new_tokens=6).token_ids.tolist() == expected.token_ids.tolist()


def test_streamed_pieces_make_the_text(by_steps):
    pieces = []
    result = by_steps(sparse("llama"), PROMPTS[:1], on_text=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == result.texts[0]
    pieces.clear()
    by_steps(sparse("llama"), PROMPTS[:2], on_text=pieces.append)
    assert pieces == []


def test_rows_end_at_eos(by_steps):
    model = sparse("llama")
    free = by_modules(model, PROMPTS).token_ids
    model.generation_config.eos_token_id = [int(free[0, 5]), int(free[1, 3])]
    for prompts in (PROMPTS, PROMPTS[:1], PROMPTS[:2]):
        expected, found = (run(model, prompts, ignore_eos=False) for run in (by_modules, by_steps))
        assert found.token_ids.tolist() == expected.token_ids.tolist()
        assert found.texts == expected.texts
        assert found.new_tokens == expected.new_tokens < NEW * len(prompts)
    assert by_steps(model, PROMPTS).token_ids.tolist() == free.tolist()


def test_rows_end_with_strings(by_steps):
    model = sparse("qwen2")
    free = by_modules(model, PROMPTS)
    stops = [free.texts[0][7:9], free.texts[1][10], "no such text"]
    for prompts in (PROMPTS, PROMPTS[:1]):
        expected, found = (run(model, prompts, stop=stops) for run in (by_modules, by_steps))
        assert found.texts == expected.texts
        assert found.new_tokens == expected.new_tokens < NEW * len(prompts)
        assert found.token_ids.shape == expected.token_ids.shape
    across = "r" + free.texts[0][0]
    assert by_steps(model, PROMPTS[:1], stop=[across]).texts == free.texts[:1]


def test_a_repetition_penalty_of_the_models_own(by_steps):
    model = sparse("llama")
    free = by_modules(model, PROMPTS).token_ids.tolist()
    model.generation_config.repetition_penalty = 1.7
    expected = by_modules(model, PROMPTS).token_ids.tolist()
    assert expected != free
    assert by_steps(model, PROMPTS).token_ids.tolist() == expected
