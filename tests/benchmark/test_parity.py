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
from rsparse.records import write
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
    assert list(found.steps) == (["own_masks"] if name == "dense" else ["imposed_masks", "own_masks"])
    assert torch.allclose(found.modules, expected, rtol=0, atol=1e-4)
    for nll, kl, apart in found.steps.values():
        assert nll.shape == (3, SCORED)
        assert torch.allclose(nll, expected, rtol=0, atol=1e-4)
        assert float(kl.mean().abs()) < 1e-6
        assert 0 < float(apart.max()) < 1e-4
    metrics = found.metrics()
    assert metrics["tokens"] == 3 * SCORED
    assert metrics["perplexity_modules"] == pytest.approx(math.exp(expected.mean()), rel=1e-4)
    for name in found.steps:
        assert metrics[name]["perplexity_ratio"]["value"] == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_the_modules_logits_are_not_rounded():
    """In bf16 their head would put each on the nearest 0.03 or so."""
    model = dense("llama").to(torch.bfloat16)
    for index, found in enumerate(measure(model, WINDOWS[:2], PROMPT, "reference").modules):
        hidden = model.model(WINDOWS[index : index + 1]).last_hidden_state[0, PROMPT:-1]
        logits = hidden.float() @ model.lm_head.weight.float().T
        expected = F.cross_entropy(logits, WINDOWS[index, PROMPT + 1 :], reduction="none")
        assert torch.allclose(found, expected, rtol=0, atol=1e-4)


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
    right = imposed.sections_of
    monkeypatch.setattr(imposed, "sections_of", lambda linears: (None, right(linears)[1][::-1]))
    assert kl_of(sparse("llama", "linear", False))["imposed_masks"] > 1e-2


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


def with_note(kind, value):
    """SAME, but for one token's −log p, KL or largest difference."""
    notes = torch.tensor(SAME)
    notes[kind, 0, 1] = value
    return notes.tolist()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", range(3))
def test_what_is_not_finite(kind, value):
    bad = with_note(kind, value)
    for names, says in [
        (["imposed_masks"], "the decode steps with the modules' masks are broken"),
        (["own_masks"], "the decode steps with their own are broken"),
        (["imposed_masks", "own_masks"], "the decode steps with the modules' masks and with their own are broken"),
    ]:
        steps = {name: bad if name in names else SAME for name in ("imposed_masks", "own_masks")}
        with pytest.raises(RSparseError, match=says):
            parity(**steps).metrics()
    with pytest.raises(RSparseError, match="the decode steps are broken: their output is not finite where that of"):
        parity(own_masks=bad).metrics()
    with pytest.raises(RSparseError, match="the modules' output is not finite"):
        Parity(torch.tensor([[1.0, value], [3.0, 2.0]]), {"own_masks": torch.tensor(bad)}).metrics()


def test_what_is_far_apart_is_a_figure(tmp_path):
    """e^4999 is past what a float holds; a record takes no infinity."""
    metrics = parity(own_masks=[[[5000.0, 5000.0], [5000.0, 5000.0]], *OWN[1:]]).metrics()
    own = metrics["own_masks"]
    assert own["perplexity"] == own["perplexity_ratio"]["value"] == own["perplexity_ratio"]["high"] > 1e300
    assert headline(metrics, "triton") == "modules 7.389; triton steps 1.014e+304 (1.01e+304 times), KL 0.1 over 4 tokens"
    write(tmp_path / "record.json", metrics)


def test_a_kl_below_zero_is_shown_as_none():
    """Rounding alone can give one, and the record has it."""
    metrics = parity(own_masks=[SAME[0], [[-2e-8, 0.0], [0.0, 0.0]], SAME[2]]).metrics()
    assert metrics["own_masks"]["kl"] == pytest.approx(-5e-9)
    assert "), KL 0 over" in headline(metrics, "triton")


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


def test_a_plan_has_a_token_for_each_step_that_warms_up(monkeypatch):
    monkeypatch.setattr("rsparse.benchmark.parity.measure.WARM_UP", 5)
    Plan(9, 14)
    with pytest.raises(RSparseError, match="must be 14 or more"):
        Plan(9, 13)


def test_models_without_a_step():
    plan, model = Plan(6, 18, 2), dense("llama")
    model.generation_config.min_length = 5  # of no account where tokens are given
    check(model, plan, "reference")
    with pytest.raises(RSparseError, match="no decode step to compare: activation gelu has no kernel"):
        check(dense("llama", hidden_act="gelu"), plan, "reference")
    with pytest.raises(RSparseError, match="no decode step to compare: it needs a CUDA GPU"):
        check(dense("llama"), plan, "triton")
    with pytest.raises(RSparseError, match="windows of 257 tokens do not fit"):
        check(dense("llama"), Plan(6, 257, 2), "reference")
