"""The check after sparsify: it warns where a level is too high, names a lower one, and changes nothing."""

from __future__ import annotations

import pytest
import torch

from rsparse import sparsify
from rsparse.evaluation import check as check_module
from rsparse.evaluation.check import LIMIT, quick_check
from rsparse.evaluation.perplexity import evaluate
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import state
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import calibration_of, uniform

IDS = token_ids(2, 16)


def learned(model, windows, steps=25):
    """A model that knows its text: only then does dropping channels cost perplexity."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            model(windows, labels=windows).loss.backward()
            optimiser.step()
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def trained():
    calibration = calibration_of("llama")
    return learned(tiny_model("llama"), torch.cat([calibration.windows[:32], calibration.heldout])).state_dict()


def made(trained, sparsity, rho=1.0, **layout):
    model = tiny_model("llama")
    model.load_state_dict(trained)
    return sparsify(model, uniform(model, sparsity, rho, **layout), calibration_of("llama"))


def everything(model):
    with torch.no_grad():
        logits = model(IDS).logits
    thresholds = {name: float(m.threshold) for name, m in model.named_modules() if isinstance(m, RSparseLinear)}
    return logits, thresholds, state(model).recipe, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    after = everything(model)
    assert torch.equal(after[0], before[0])
    assert after[1:3] == before[1:3]
    assert all(torch.equal(tensor, after[3][name]) for name, tensor in before[3].items())


def test_a_mild_level_passes(trained):
    model = made(trained, 0.02)
    before = everything(model)
    found = quick_check(model, calibration_of("llama"))
    assert found.passed
    assert found.suggestion is None
    assert found.ratio == pytest.approx(found.result.perplexity / found.result.dense_perplexity)
    assert found.line(0.02).startswith("check: perplexity ")
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("rho", "layout"), [(1.0, {}), (0.6, {"grouping": "group", "stacked": True, "criterion": "column_norm"})]
)
def test_a_level_too_high(trained, rho, layout):
    model = made(trained, 0.9, rho, **layout)
    before = everything(model)
    found = quick_check(model, calibration_of("llama"))
    assert not found.passed
    assert found.ratio > LIMIT
    assert 0 <= found.suggestion < 0.9
    line = found.line(0.9)
    assert line.startswith("warning: sparsity 0.9 is too high for this model")
    assert f"about {found.suggestion:g} stays within it" in line
    assert "\n" not in line
    assert_unchanged(model, before)


def test_the_suggestion_holds(trained):
    calibration = calibration_of("llama")
    found = quick_check(made(trained, 0.9), calibration)
    assert found.suggestion > 0
    lower = evaluate(made(trained, found.suggestion), calibration.heldout)
    assert lower.perplexity / lower.dense_perplexity < LIMIT * 1.05  # looked up there, solved here
    higher = evaluate(made(trained, round(found.suggestion + 0.1, 2)), calibration.heldout)
    assert higher.perplexity / higher.dense_perplexity > LIMIT * 0.95


def test_an_interrupt_leaves_the_model_as_it_was(trained, monkeypatch):
    model = made(trained, 0.9)
    before = everything(model)
    real, calls = check_module.evaluate, []

    def stop(*arguments, **options):
        calls.append(options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(check_module, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        quick_check(model, calibration_of("llama"))
    assert_unchanged(model, before)


def test_it_looks_at_held_out_text_alone(trained, monkeypatch):
    seen = []
    real = check_module.evaluate
    monkeypatch.setattr(
        check_module, "evaluate", lambda model, windows, *a, **o: seen.append(windows) or real(model, windows, *a, **o)
    )
    found = quick_check(made(trained, 0.02), calibration_of("llama"))
    assert torch.equal(seen[0], calibration_of("llama").heldout)
    assert found.result.tokens == calibration_of("llama").heldout[:, 1:].numel()
