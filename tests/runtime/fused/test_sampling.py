"""Draws against transformers' own, and against the distribution that they are of."""

from __future__ import annotations

import pytest
import torch

from rsparse.runtime.fused.sampling import Sampler, Sampling
from tests.runtime.fused.cases import PROMPTS, by_modules, sparse


def sampler(rows=1, vocab=8, seed=0, **settings):
    made = Sampler(Sampling(**settings), rows, vocab, torch.device("cpu"))
    made.begin(torch.zeros(rows, 1, dtype=torch.long), torch.ones(rows, 1), seed)
    return made


@pytest.mark.parametrize("top_p", [1.0, 0.7])
def test_seeds(top_p, by_steps):
    """On a CPU torch.multinomial draws by the same race, so even the draws are transformers'."""
    model, options = sparse("llama"), {"temperature": 1.5, "top_p": top_p}
    first = by_steps(model, PROMPTS, seed=5, **options).token_ids.tolist()
    assert first == by_modules(model, PROMPTS, seed=5, **options).token_ids.tolist()
    assert by_steps(model, PROMPTS, seed=5, **options).token_ids.tolist() == first
    assert by_steps(model, PROMPTS, seed=6, **options).token_ids.tolist() != first


def test_draws_leave_the_callers_random_numbers_alone(by_steps):
    model = sparse("llama")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    by_steps(model, PROMPTS[:1], temperature=1.0)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        # squares over their sum, 0.365
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),
        # 0.5 and 0.3 are the fewest that reach 0.7
        ({"temperature": 1.0, "top_p": 0.7}, [0.625, 0.375, 0.0, 0.0]),
        ({"temperature": 1.0, "top_p": 0.1}, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_distribution(settings, expected):
    made, rows = sampler(rows=8, vocab=4, **settings), 8
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(rows, 4)
    counts = torch.zeros(4)
    for _ in range(2500):
        counts += torch.bincount(made.choose(logits), minlength=4)
    assert counts.sum() == 2500 * rows
    assert (counts / counts.sum() - torch.tensor(expected)).abs().max() < 0.012  # 3.4 standard deviations of a half


def test_finished_rows_get_the_pad():
    made = sampler(rows=2, vocab=8, eos=(3, 5), pad=7)

    def choose(*tokens):
        return made.choose(torch.nn.functional.one_hot(torch.tensor(tokens), 8).float()).tolist()

    assert choose(1, 5) == [1, 5]
    assert choose(2, 2) == [2, 7]
    assert choose(3, 4) == [3, 7]
    assert choose(1, 1) == [7, 7]
    made.begin(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), 0)
    assert choose(1, 5) == [1, 5]


def test_the_penalty_is_for_what_was_seen_and_not_for_padding():
    made = sampler(rows=2, vocab=4, penalty=2.0)
    made.begin(torch.tensor([[0, 1], [2, 1]]), torch.tensor([[0, 1], [1, 1]]), 0)
    logits = torch.tensor([[3.0, 5.0, 2.9, -1.0], [0.0, 5.0, 4.0, 2.4]])
    assert made.choose(logits).tolist() == [0, 1]  # 3, 2.5, 2.9 · 0, 2.5, 2, 2.4
    assert made.choose(logits).tolist() == [2, 1]
    negative = torch.tensor([[-1.0, -1.1, -1.2, -1.9], [-1.0, -4.0, -4.0, -0.9]])
    assert made.choose(negative).tolist() == [3, 3]
