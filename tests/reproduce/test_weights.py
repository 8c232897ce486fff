"""Weights rounded to few bits."""

from __future__ import annotations

import contextlib

import torch

from rsparse.models.layout import sites
from rsparse.reproduce.weights import round_to_nearest, rounded_weights
from tests.support.models import tiny_model


def test_two_bits_by_hand():
    """Levels 0, 1, 2, 3 in the first group, −3, −1, 1, 3 in the second, and 5 alone."""
    weight = torch.tensor([[0.0, 0.4, 1.6, 3.0, -3.0, -1.9, 0.1, 3.0, 5.0]])
    assert round_to_nearest(weight, 2, 4).tolist() == [[0, 0, 2, 3, -3, -1, 1, 3, 5]]


def test_errors_are_half_a_step_at_most_and_levels_are_few():
    weight = torch.randn(6, 300, generator=torch.Generator().manual_seed(0))
    found = round_to_nearest(weight, 4)
    for part, mine in zip(weight.split(128, 1), found.split(128, 1), strict=True):
        step = (part.amax(1) - part.amin(1)) / 15
        assert bool(((part - mine).abs().amax(1) <= step / 2 + 1e-5).all())
        assert max(len(row.unique()) for row in (mine - part.amin(1, keepdim=True)).round(decimals=4)) <= 16
    assert not torch.equal(found, weight)
    assert torch.equal(round_to_nearest(torch.ones(2, 3, dtype=torch.bfloat16), 4), torch.ones(2, 3, dtype=torch.bfloat16))


def test_a_model_has_its_weights_back_even_after_an_error():
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linears = {f"{name}.weight" for block in sites(model) for site in block for name in site.linears}

    def changed():
        return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}

    with contextlib.suppress(ValueError), rounded_weights(model, 4):
        assert changed() == linears
        raise ValueError
    assert changed() == set()
