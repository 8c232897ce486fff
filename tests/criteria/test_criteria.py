from __future__ import annotations

import pytest
import torch

from rsparse import criteria
from rsparse.errors import RSparseError

WEIGHT = torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, -1.0]])
RESIDUAL = torch.tensor([[0.0, 0.0, 5.0], [1.0, 0.0, -12.0]])


def scale(name, rank=1, weight=WEIGHT):
    return criteria.channel_scale(name, weight, RESIDUAL, rank)


def test_the_four_are_found_by_their_files():
    assert {"column_norm", "magnitude", "paper", "residual_norm"} <= set(criteria.names())


def test_magnitude_is_ones():
    assert scale("magnitude") is None


def test_column_norm():
    assert torch.allclose(scale("column_norm"), torch.tensor([5.0, 2.0, 2.0**0.5]), rtol=1e-7)


def test_residual_norm():
    assert scale("residual_norm").tolist() == [1.0, 0.0, 13.0]


def test_paper_is_column_norm_beside_a_low_rank_part_and_magnitude_alone():
    assert torch.equal(scale("paper", rank=1), scale("column_norm"))
    assert scale("paper", rank=0) is None


@pytest.mark.parametrize("name", ["column_norm", "residual_norm"])
def test_scales_are_fp32_sums_of_low_precision_weights(name):
    weight = torch.ones(1000, 2, dtype=torch.bfloat16)
    c = criteria.channel_scale(name, weight, weight, 0)
    assert c.dtype == torch.float32
    # √1000 is 31.62; bf16 would stop adding at 256 and has no such number
    assert torch.allclose(c, torch.full((2,), 1000.0).sqrt(), rtol=1e-6)


def test_an_unknown_criterion_is_refused_with_the_known_ones():
    for ask in (criteria.check, scale):
        with pytest.raises(RSparseError, match=r"'taste'.*column_norm, magnitude") as caught:
            ask("taste")
        assert "\n" not in str(caught.value)
    criteria.check("paper")
