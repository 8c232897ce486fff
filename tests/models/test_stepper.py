"""Block by block is the model itself, bit for bit."""

from __future__ import annotations

import pytest
import torch

from rsparse.models import supported_model_types
from rsparse.models.stepper import BlockStepper
from tests.support.models import tiny_model, token_ids


@pytest.mark.parametrize("model_type", supported_model_types())
def test_block_by_block_equals_the_models_hidden_states(model_type):
    model = tiny_model(model_type)
    stepper = BlockStepper(model)
    ids = token_ids(3, 20)  # longer than the sliding windows
    with torch.no_grad():
        expected = model(ids, output_hidden_states=True, use_cache=False)
        *between, last = expected.hidden_states
        hidden = stepper.enter(ids)
        for index, states in enumerate(between):
            assert torch.equal(hidden, states), f"before block {index}"
            hidden = stepper.run(index, hidden)
        assert torch.equal(model.model.norm(hidden), last)


def test_each_block_is_called_with_its_own_arguments():
    """Gemma-3's sliding and full layers differ in mask and rotary table: swapped, the result is another."""
    model = tiny_model("gemma3_text")
    assert len(set(model.config.layer_types)) == 2
    stepper = BlockStepper(model)
    hidden = stepper.enter(token_ids(1, 20))
    one, two = stepper.run(0, hidden), stepper.run(1, hidden)
    stepper._arguments[1][:2] = reversed(stepper._arguments[1][:2])
    assert not torch.allclose(stepper.run(0, hidden), one, atol=1e-3)
    assert not torch.allclose(stepper.run(1, hidden), two, atol=1e-3)


def test_batch_sizes_may_alternate():
    model = tiny_model("gemma2")
    stepper = BlockStepper(model)
    ids = token_ids(5, 12)
    hidden = [stepper.enter(ids[:4]), stepper.enter(ids[4:])]  # a remainder, as at the end of a text
    for index in range(3):
        hidden = [stepper.run(index, states) for states in hidden]
    with torch.no_grad():
        for states, part in zip(hidden, (ids[:4], ids[4:]), strict=True):
            assert torch.equal(model.model.norm(states), model(part, output_hidden_states=True).hidden_states[-1])


def test_the_model_still_runs_after_an_error():
    model = tiny_model("llama")
    ids = token_ids(2, 8)
    with torch.no_grad():
        before = model(ids).logits
        with pytest.raises(IndexError):
            BlockStepper(model).enter(torch.full((1, 4), 10_000))
        BlockStepper(model).enter(ids)
        assert torch.equal(model(ids).logits, before)
    assert all("forward" not in vars(block) for block in model.model.layers)
