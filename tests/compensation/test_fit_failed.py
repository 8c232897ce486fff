"""What no fit can be of is refused, and one that fails leaves the model as it was."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from rsparse.compensation import compensate
from rsparse.compensation import fit as module
from rsparse.errors import RSparseError
from rsparse.sparse_model import replace_units, state, unit_members
from tests.compensation.fits import (
    SETTINGS,
    StopError,
    contents,
    fitted,
    logits,
    model_of,
    same,
    stopping_at,
    text,
)
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import with_vectors


@pytest.mark.parametrize("start", ["plain", "compensated"])
@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("FittedVector", MemoryError),
        ("dense_states", KeyboardInterrupt),
        ("kl_gradient", ValueError),
        ("compare", KeyboardInterrupt),
        ("_mark_compensated", RSparseError),
    ],
)
def test_an_error_leaves_the_model_as_it_was(monkeypatch, target, error, start):
    model = model_of() if start == "plain" else with_vectors(model_of())
    model.lm_head.weight.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before, recipe, answer = contents(model), state(model).recipe, logits(model)
    real, calls = getattr(module, target), itertools.count(1)

    def failing(*arguments, **options):
        if target == "kl_gradient" and next(calls) < 4:
            return real(*arguments, **options)
        if target == "_mark_compensated":
            real(*arguments, **options)
        raise error("stop")

    monkeypatch.setattr(module, target, failing)
    with pytest.raises(error):
        fitted(model)
    assert same(contents(model), before)
    assert state(model).recipe == recipe
    assert torch.equal(logits(model), answer)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    for members in unit_members(model).values():
        for member in members:
            assert member.ops is state(model).ops
            assert not member._forward_hooks
            assert not member._forward_pre_hooks
            assert not any(buffer is not None and buffer.requires_grad for buffer in member._buffers.values())


def test_a_report_that_raises_leaves_the_model_as_it_was():
    model = model_of()
    before, recipe = contents(model), state(model).recipe
    with pytest.raises(StopError):
        fitted(model, report=stopping_at(4))
    assert same(contents(model), before)
    assert state(model).recipe == recipe
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_parameters_that_were_frozen_stay_so():
    model = model_of()
    model.model.requires_grad_(False)
    fitted(model, steps=3)
    assert {name for name, each in model.named_parameters() if each.requires_grad} <= {"lm_head.weight"}
    assert not any(each.requires_grad for each in model.model.parameters())


def refused(says, model, windows=None, heldout=None, settings=SETTINGS, **options):
    buffers = contents(model)
    with pytest.raises(RSparseError, match=says) as caught:
        compensate(
            model, *(text()[0] if windows is None else windows, text()[1] if heldout is None else heldout), settings, **options
        )
    assert "\n" not in str(caught.value)
    assert same(contents(model), buffers)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_dense_model():
    refused("no sparse linears to compensate; sparsify it first", tiny_model("llama"))
    refused("no sparse linears", model_of(rho=1.0, sparsity=0.0))


def test_windows_that_do_not_fit():
    refused("windows of 24 tokens, held-out ones of 12", model_of(), heldout=token_ids(4, 12))
    short = dataclasses.replace(SETTINGS, batch_tokens=23)
    refused("batch_tokens 23 is less than one window of 24 tokens", model_of(), settings=short)


@pytest.mark.parametrize("sinks", [-1, 24, 100])
def test_sinks_that_leave_no_token(sinks):
    refused("sink_tokens must be from 0 to below the window's 24 tokens", model_of(), sink_tokens=sinks)


def test_a_unit_without_room_for_a_vector():
    """A vector takes 1 of 48 channels, where a rank of 1 has left half a one of 2.5."""
    model = model_of(rho=1.0, grouping="linear", stacked=False)
    recipe, name = state(model).recipe, "model.layers.0.self_attn.o_proj"
    replace_units(
        model, {**recipe.units, name: dataclasses.replace(recipe.units[name], sparsity=1 - 2.5 / 48, rho=0.2, ranks=(1,))}
    )
    before = state(model).recipe
    refused(f"recipe unit {name}: .* costs more than sparsity", model)
    assert state(model).recipe == before


@pytest.mark.parametrize("where", ["head", "batch", "heldout"])
def test_a_kl_that_is_no_number(monkeypatch, where):
    model, says = model_of(), "the KL is not finite at step 3"
    if where == "head":
        with torch.no_grad():
            model.lm_head.weight[0] = math.nan
        says = "the KL is not finite at step 0"
    elif where == "batch":
        calls, real = itertools.count(1), module.kl_gradient
        monkeypatch.setattr(module, "kl_gradient", lambda *a: (math.inf, real(*a)[1]) if next(calls) == 3 else real(*a))
    else:
        calls, real = itertools.count(), module.compare
        monkeypatch.setattr(
            module,
            "compare",
            lambda *a: dataclasses.replace(found := real(*a), kl=found.kl * (math.nan if next(calls) == 1 else 1)),
        )
        says = "the KL is not finite at step 2"
    refused(f"{says}; try --dtype float32 or a lower learning rate", model)
