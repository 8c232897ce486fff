"""What a look decides, by hand."""

from __future__ import annotations

import pytest
import torch

from rsparse.compensation import looks


@pytest.mark.parametrize(("change", "worse"), [(0.11, False), (0.12, True), (-0.12, False)])
def test_worse_is_more_than_two_standard_errors_above(change, worse):
    """Four windows that change by 0.1 and -0.1 in turn: a standard deviation of 0.1155, an error of the mean of half that."""
    best = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert looks.worse(best + change + torch.tensor([0.1, -0.1, 0.1, -0.1]), best) is worse


def test_of_a_single_window_any_change_is_sure():
    assert looks.worse(torch.tensor([1.1]), torch.tensor([1.0]))
    assert not looks.worse(torch.tensor([1.0]), torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("kls", "patience", "end"),
    [([5, 4, 4.5], 2, False), ([5, 4, 4.5, 4], 2, True), ([5, 4, 4.5, 3], 2, False), ([5], 1, False)],
)
def test_waited_counts_looks_since_the_best(kls, patience, end):
    assert looks.waited([(20 * place, kl) for place, kl in enumerate(kls)], patience) is end
