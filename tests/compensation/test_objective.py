"""KL to the dense model and its gradient, by slices of the vocabulary's logits and whole."""

from __future__ import annotations

import pytest
import torch

from rsparse import losses
from rsparse.compensation.objective import kl_gradient
from tests.support.models import tiny_model
from tests.support.tolerance import assert_close_rms


def states(dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    dense = torch.randn(2, 6, 48, generator=generator)
    return (dense + 0.3 * torch.randn(2, 6, 48, generator=generator)).to(dtype), dense.to(dtype)


def directly(model, hidden, dense):
    """Σ p (log p − log q) over the vocabulary, mean over positions, from the head's weight."""
    W, cap = model.get_output_embeddings().weight.double(), getattr(model.config, "final_logit_softcapping", None)
    logs = []
    for each in (dense, hidden):
        logits = each.double() @ W.T
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        logs.append(logits - logits.exp().sum(-1, keepdim=True).log())
    return (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()


@pytest.mark.parametrize("slice_rows", [1, 5, 1000])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_value_and_gradient(monkeypatch, model_type, slice_rows):
    model = tiny_model(model_type)
    model.requires_grad_(False)
    monkeypatch.setattr(losses, "LOGIT_ELEMENTS", {"cpu": slice_rows * model.config.vocab_size})
    hidden, dense = states()
    given = hidden.clone().requires_grad_()
    expected = directly(model, given, dense)
    (gradient,) = torch.autograd.grad(expected, given)
    kl, found = kl_gradient(model, hidden, dense)
    assert kl == pytest.approx(float(expected.detach()), rel=1e-5)
    assert kl > 0.01
    assert found.shape == hidden.shape
    assert_close_rms(found, gradient, torch.float32)
    assert not found.requires_grad


def test_equal_states_have_none():
    model = tiny_model("gemma2").requires_grad_(False)
    _, dense = states()
    kl, gradient = kl_gradient(model, dense, dense)
    assert kl == pytest.approx(0, abs=1e-6)
    assert float(gradient.abs().max()) < 1e-6


def test_it_is_the_dense_models_kl_and_not_the_other():
    model = tiny_model("llama").requires_grad_(False)
    hidden, dense = states()
    assert kl_gradient(model, hidden, dense)[0] != pytest.approx(kl_gradient(model, dense, hidden)[0], rel=0.01)


def test_it_keeps_graph_dtype_and_weights_alone():
    """A gradient to hand to `hidden.backward`, without one in the head."""
    model = tiny_model("llama", dtype=torch.bfloat16)
    hidden, dense = states(torch.bfloat16)
    with torch.no_grad():
        kl, gradient = kl_gradient(model, hidden, dense)
    assert gradient.dtype == torch.bfloat16
    assert all(parameter.grad is None for parameter in model.parameters())
    leaf = hidden.clone().requires_grad_()
    given = leaf * 1
    kl_gradient(model, given, dense)
    assert leaf.grad is None
    given.backward(gradient)
    assert torch.equal(leaf.grad, gradient)
    assert kl == pytest.approx(float(directly(model, hidden, dense).detach()), rel=0.05)
