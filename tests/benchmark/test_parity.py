"""The decode step against the modules: equal on tiny models in fp32, and far apart once either is altered."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from rsparse.benchmark.parity import imposed
from rsparse.benchmark.parity.compared import Compared
from rsparse.benchmark.parity.figures import Parity, headline
from rsparse.benchmark.parity.measure import Plan, check, measure
from rsparse.errors import RSparseError
from rsparse.models.layout import blocks
from rsparse.runtime import fused
from rsparse.sparse_model import is_sparse, state
from rsparse.token_policy import TokenPolicy
from tests.runtime.fused.cases import dense, sparse, uneven
from tests.support.models import token_ids

PROMPT = 6
WINDOWS = token_ids(3, 18)
SCORED = 18 - PROMPT - 1

MODELS = {
    "dense": lambda: dense("qwen2"),
    "stacked factors, compensated": lambda: sparse("qwen2"),
    "factors of each linear under one mask": lambda: sparse("llama", "group", False),
    "a mask for each linear": lambda: sparse("gemma3_text", "linear", False),
    "masks beside dense linears": uneven,
}


def nll_of(model):
    """−log p of each scored token, [windows, tokens], in one call for all windows."""
    lengths = torch.full((len(WINDOWS),), PROMPT)
    if is_sparse(model):
        with state(model).policy.using(TokenPolicy("decode"), lengths):
            logits = model(WINDOWS).logits
    else:
        logits = model(WINDOWS).logits
    return F.cross_entropy(logits[:, PROMPT:-1].transpose(1, 2), WINDOWS[:, PROMPT + 1 :], reduction="none")


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_step_is_the_modules(name):
    model = MODELS[name]()
    expected = nll_of(model)
    found = measure(model, WINDOWS, PROMPT, "reference")
    assert list(found.steps) == (["own_masks"] if name == "dense" else ["own_masks", "imposed_masks"])
    for nll, kl, apart in [(found.modules, *found.steps["own_masks"][1:]), *found.steps.values()]:
        assert nll.shape == (3, SCORED)
        assert torch.allclose(nll, expected, rtol=0, atol=1e-4)
        assert float(kl.mean().abs()) < 1e-6
        assert 0 < float(apart.max()) < 1e-4
    metrics = found.metrics()
    assert metrics["tokens"] == 3 * SCORED
    assert metrics["perplexity_modules"] == pytest.approx(math.exp(expected.mean()), rel=1e-4)
    for name in found.steps:
        assert metrics[name]["perplexity_ratio"]["value"] == pytest.approx(1, abs=1e-5)


def kl_of(model):
    """By the step's masks, on less text: what is altered shows at once."""
    found = measure(model, WINDOWS[:2, :12], PROMPT, "reference")
    return {name: float(notes[1].mean()) for name, notes in found.steps.items()}


@pytest.mark.parametrize("shift", [1, -1])
def test_masks_of_another_token_show(monkeypatch, shift):
    right = imposed.keep_mask
    monkeypatch.setattr(imposed, "keep_mask", lambda *inputs: right(*inputs).roll(shift, 0))
    found = kl_of(sparse("llama"))
    assert found["imposed_masks"] > 1e-2
    assert found["own_masks"] < 1e-6


def test_masks_in_another_order_show(monkeypatch):
    right = imposed._leaders
    monkeypatch.setattr(imposed, "_leaders", lambda linears: right(linears)[::-1])
    assert kl_of(sparse("llama", "linear", False))["imposed_masks"] > 1e-2


def test_dense_linears_of_a_group_share_a_mask():
    """As in a packed group; else the places of all masks behind them would be others."""
    q, k, v = (getattr(blocks(uneven())[0].self_attn, name) for name in ("q_proj", "k_proj", "v_proj"))
    assert imposed._leaders([k, q, torch.nn.Linear(48, 8), v]) == [k, q, v]


@pytest.mark.parametrize("part", ["weight", "U", "V", "bias", "threshold"])
def test_an_altered_step_shows(monkeypatch, part):
    """In one group of the packed form alone: the modules stay as they are. A threshold is of no account to imposed masks."""

    class Altered(fused.FusedModel):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            first, *others = self.layers.layers
            qkv = dataclasses.replace(first.qkv, **{part: 1.3 * getattr(first.qkv, part)})
            self.layers = dataclasses.replace(self.layers, layers=(dataclasses.replace(first, qkv=qkv), *others))

    monkeypatch.setattr(fused, "FusedModel", Altered)
    found = kl_of(sparse("qwen2"))
    assert found["own_masks"] > 1e-4
    assert found["imposed_masks"] < 1e-6 if part == "threshold" else found["imposed_masks"] > 1e-4


def test_notes_of_one_token_after_the_other():
    """Logits (ln 3, 0) are 3/4 and 1/4; expected are a half each at first, then 1/4 and 3/4."""
    tokens, expected = torch.tensor([[1, 0]]), torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    sampler = Compared(tokens, expected)
    for _ in range(2):
        sampler.begin(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), 0)
        sampler.notes.zero_()
        chosen = [sampler.choose(torch.tensor([[math.log(3), 0.0]])).item() for _ in range(2)]
        assert chosen == [1, 0]
        first, second = sampler.notes.T.tolist()
        assert first == pytest.approx([math.log(4), math.log(2) - math.log(3) / 2, math.log(3)], abs=1e-6)
        assert second == pytest.approx([math.log(4 / 3), math.log(3) / 2, math.log(3)], abs=1e-6)


def parity(**steps):
    return Parity(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), {name: torch.tensor(notes) for name, notes in steps.items()})


OWN = [[[1.0, 2.5], [3.0, 2.5]], [[0.0, 0.1], [0.2, 0.1]], [[1.0, 2.0], [5.0, 3.0]]]
SAME = [[[1.0, 2.0], [3.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_figures():
    """Each window's mean −log p is 0.25 higher by the step; by token the difference is 0 or 0.5."""
    metrics = parity(own_masks=OWN, imposed_masks=SAME).metrics()
    own = metrics["own_masks"]
    assert metrics["tokens"] == 4
    assert metrics["perplexity_modules"] == pytest.approx(math.exp(2))
    assert own["perplexity"] == pytest.approx(math.exp(2.25))
    assert own["perplexity_ratio"] == dict.fromkeys(("value", "low", "high"), round(math.exp(0.25), 6))
    assert (own["kl"], own["max_logit_difference"]) == (pytest.approx(0.1), 5)
    assert own["nll_difference_sd"] == pytest.approx(math.sqrt(4 * 0.25**2 / 3))
    assert headline(metrics, "triton") == (
        "modules 7.389; triton steps with the modules' masks 7.389 (+0.00 % ± 0.00), KL 0; "
        "with their own 9.488 (+28.40 % ± 0.00), KL 0.1 over 4 tokens"
    )
    assert headline(parity(own_masks=OWN).metrics(), "triton") == (
        "modules 7.389; triton steps 9.488 (+28.40 % ± 0.00), KL 0.1 over 4 tokens"
    )


def test_the_interval_is_over_windows():
    notes = [[[1.1, 2.1], [3.0, 2.0]], *OWN[1:]]
    ratio = parity(own_masks=notes).metrics()["own_masks"]["perplexity_ratio"]
    assert ratio["value"] == pytest.approx(math.exp(0.05), abs=1e-6)
    assert ratio["high"] == pytest.approx(math.exp(0.05 + 1.959964 * 0.05), abs=1e-6)


def test_what_is_not_finite():
    bad = [[[1.0, math.nan], [3.0, 2.0]], *OWN[1:]]
    with pytest.raises(RSparseError, match="the decode step's output is not finite"):
        parity(own_masks=bad).metrics()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"windows": 1}, "--windows must be 2 or more, got 1"),
        ({"prompt_tokens": 0}, "--prompt-tokens must be 1 or more, got 0"),
        ({"prompt_tokens": 9, "window_tokens": 10}, "--window-tokens must be 11 or more behind a prompt of 9, got 10"),
    ],
)
def test_plans_that_make_no_sense(plan, says):
    with pytest.raises(RSparseError, match=says):
        Plan(**plan)


def test_models_without_a_step():
    plan = Plan(6, 18, 2)
    check(dense("llama"), plan, "reference")
    with pytest.raises(RSparseError, match="no decode step to compare: activation gelu has no kernel"):
        check(dense("llama", hidden_act="gelu"), plan, "reference")
    with pytest.raises(RSparseError, match="no decode step to compare: it needs a CUDA GPU"):
        check(dense("llama"), plan, "triton")
    with pytest.raises(RSparseError, match="windows of 257 tokens do not fit"):
        check(dense("llama"), Plan(6, 257, 2), "reference")
