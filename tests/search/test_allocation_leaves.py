"""A real model gets better levels, and is the dense one that it was when an allocation has ended."""

from __future__ import annotations

import pytest
import torch

from rsparse.sparse_model import is_sparse
from tests.search.allocations import allocated, kind, sizes_of, total
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import SEQ_LEN


def snapshot(model):
    return {name: (type(module), module._forward_pre_hooks.copy()) for name, module in model.named_modules()}, {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    }


def assert_untouched(model, before):
    modules, tensors = before
    assert not is_sparse(model)
    assert {name: (type(module), module._forward_pre_hooks) for name, module in model.named_modules()} == modules
    now = model.state_dict()
    assert list(now) == list(tensors)
    assert all(torch.equal(now[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(("model_type", "grouping"), [("llama", "linear"), ("qwen2", "group"), ("gemma3_text", "group")])
def test_a_real_model(model_type, grouping):
    model, ids = tiny_model(model_type), token_ids(2, SEQ_LEN)
    before, logits = snapshot(model), model(ids).logits
    found = allocated(model, grouping=grouping, polish=3)
    assert_untouched(model, before)
    assert torch.equal(model(ids).logits, logits)
    course = list(found.course.values())
    assert list(found.course) == ["start", "groups 1", "groups 2", "column_norm", "rho 0.97", "rho 0.94", "units"]
    assert course == sorted(course, reverse=True)
    assert course[-1] < course[0]
    sizes = sizes_of(model, grouping)
    assert total(found.choices, sizes) == pytest.approx(0.5 * sum(sizes.values()), rel=1e-6)
    if grouping == "group":
        assert {kind(name) for name in found.choices} == {"qkv", "o", "gate_up", "down"}


@pytest.mark.parametrize("number", [1, 20])
def test_the_model_is_dense_again_after_an_exception(judging, number):
    model, ids = tiny_model("llama"), token_ids(2, SEQ_LEN)
    before, logits = snapshot(model), model(ids).logits
    judged = []

    def value(units):
        judged.append(units)
        if len(judged) == number:
            raise KeyboardInterrupt
        return 1.0

    judging(value)
    with pytest.raises(KeyboardInterrupt):
        allocated(model)
    assert_untouched(model, before)
    assert torch.equal(model(ids).logits, logits)
