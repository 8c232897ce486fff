"""Tokens that are given go on in place of the model's own."""

from __future__ import annotations

import torch

from rsparse.benchmark.decode.forced import Forced


def test_given_tokens_are_what_the_model_reads():
    sampler = Forced(torch.tensor([[5, 6], [7, 8]]), 10)
    for _ in range(2):
        sampler.begin(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), 0)
        assert sampler.choose(torch.rand(2, 10)).tolist() == [5, 7]
        assert sampler.choose(torch.rand(2, 10)).tolist() == [6, 8]
