"""Tokens that are given go on in place of the model's own."""

from __future__ import annotations

import pytest
import torch

from rsparse.benchmark.decode.forced import Forced
from rsparse.runtime.fused.session import WARM_UP


def test_given_tokens_are_what_the_model_reads():
    sampler = Forced(torch.tensor([[5, 6], [7, 8]]), 10)
    for _ in range(2):
        sampler.begin(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), 0)
        assert sampler.choose(torch.rand(2, 10)).tolist() == [5, 7]
        assert sampler.choose(torch.rand(2, 10)).tolist() == [6, 8]


def test_there_is_a_token_for_each_step_that_warms_up():
    Forced(torch.zeros(1, WARM_UP, dtype=torch.long), 10)
    with pytest.raises(AssertionError, match="as it warms up"):
        Forced(torch.zeros(1, WARM_UP - 1, dtype=torch.long), 10)
