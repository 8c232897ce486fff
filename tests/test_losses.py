from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rsparse import losses
from rsparse.models import supported_model_types
from tests.support.models import tiny_model, token_ids
from tests.support.tolerance import assert_close_rms


@pytest.mark.parametrize("slice_rows", [5, 1000])
@pytest.mark.parametrize("model_type", supported_model_types())
def test_nll_is_that_of_the_models_logits(monkeypatch, model_type, slice_rows):
    model, ids = tiny_model(model_type), token_ids(3, 12)
    monkeypatch.setattr(losses, "LOGIT_ELEMENTS", {"cpu": slice_rows * model.config.vocab_size})
    with torch.no_grad():
        logits = model(ids).logits  # Gemma-2's with its soft cap
        expected = -logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        found = losses.nll_of(model, ids, losses.hidden_states(model, ids))
    assert (found.shape, found.dtype) == ((3, 11), torch.float32)
    assert_close_rms(found, expected, torch.float32)


@pytest.mark.parametrize("slice_rows", [5, 1000])
def test_compare_against_whole_logits(monkeypatch, slice_rows):
    model, ids = tiny_model("gemma2"), token_ids(2, 12)
    monkeypatch.setattr(losses, "LOGIT_ELEMENTS", {"cpu": slice_rows * model.config.vocab_size})
    with torch.no_grad():
        dense = losses.hidden_states(model, ids)
        sparse = dense + 0.3 * torch.randn(dense.shape, generator=torch.Generator().manual_seed(0))
        found = losses.compare(model, ids, sparse, dense)
        p, q = (losses.logits_of(model, hidden)[:, :-1].log_softmax(-1) for hidden in (dense, sparse))
        same = losses.compare(model, ids, dense, dense)
    targets = ids[:, 1:]
    assert_close_rms(found.kl, F.kl_div(q, p, reduction="none", log_target=True).sum(-1), torch.float32)
    assert_close_rms(found.nll, F.cross_entropy(q.mT, targets, reduction="none"), torch.float32)
    assert_close_rms(found.dense_nll, F.cross_entropy(p.mT, targets, reduction="none"), torch.float32)
    assert torch.equal(found.agree, p.argmax(-1) == q.argmax(-1))
    assert 0 < float(found.agree.float().mean()) < 1
    assert float(same.kl.abs().max()) == 0
    assert same.agree.all()


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["gemma2", "llama"])
def test_logits_without_the_heads_rounding(model_type):
    model = tiny_model(model_type, dtype=torch.bfloat16)
    hidden = losses.hidden_states(model, token_ids(2, 6))
    logits = hidden.double() @ model.get_output_embeddings().weight.double().T
    expected = 6 * torch.tanh(logits / 6) if model_type == "gemma2" else logits
    found, rounded = losses.logits_of(model, hidden, unrounded=True), losses.logits_of(model, hidden)
    assert found.dtype == torch.float32
    assert_close_rms(found, expected.float(), torch.float32)
    assert float((rounded - found).abs().max()) > 1e-3


@pytest.mark.parametrize("model_type", supported_model_types())
def test_mean_nll_is_transformers_loss(model_type):
    model, ids = tiny_model(model_type), token_ids(3, 12, seed=4)
    with torch.no_grad():
        expected = model(ids, labels=ids).loss
        found = losses.nll_of(model, ids, losses.hidden_states(model, ids)).mean()
    assert_close_rms(found, expected, torch.float32)


def test_the_soft_cap_is_applied_once():
    model = tiny_model("gemma2")
    hidden = 40 * torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = hidden @ model.lm_head.weight.T
        found = losses.logits_of(model, hidden)
    assert float(raw.abs().max()) > 50
    assert 5.9 < float(found.abs().max()) <= 6.0
    assert_close_rms(found, 6.0 * torch.tanh(raw / 6.0), torch.float32)
