"""The row ops on a CPU. Run by test_rows.py: TRITON_INTERPRET counts where Triton is imported."""

from __future__ import annotations

import pytest
import torch

from rsparse.ops.fused.rows import RowOps
from rsparse.ops.fused.settings import Tiles
from rsparse.ops.fused.types import Group, Norm, Section
from tests.ops.fused.interpreted_kernels import CPU, DTYPES, REFERENCE, Poisoned
from tests.ops.fused.interpreted_kernels import as_on_a_gpu as as_on_a_gpu
from tests.support.tolerance import assert_close_rms


def row_ops():
    made = RowOps(CPU)
    made.workspace = Poisoned(CPU)
    made.tiles = lambda group: Tiles(16, 32, 1, 4, 2)
    return made


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kind_of_input(dtype, rows, biased):
    """Sizes that no tile divides."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    bias = torch.randn(70, generator=generator) if biased else None
    threshold = torch.full((1,), float("-inf"))
    group = Group(random(70, 300).T, bias, None, threshold, None, None, (Section(0, 70, 0),), dense=True)
    norm, plus_one = Norm(random(300), 1e-6), Norm(random(300), 1e-6, True)
    x, gate_up, ops = random(rows, 300), random(rows, 600), row_ops()
    for add in (None, random(rows, 70)):
        calls = [("project", x), ("norm_project", x, norm), ("norm_project", x, plus_one)]
        calls += [("act_project", gate_up, "silu"), ("act_project", gate_up, "gelu_tanh")]
        for name, *arguments in calls:
            found, expected = (getattr(each, name)(*arguments, group, add) for each in (ops, REFERENCE))
            assert_close_rms(found, expected, dtype)


def test_other_groups_are_refused():
    weight, sections = torch.randn(32, 16), (Section(0, 16, 0),)
    for threshold, stored, dense in ((float("-inf"), weight, True), (0.5, weight.T.contiguous().T, False)):
        group = Group(stored, None, None, torch.full((1,), threshold), None, None, sections, dense)
        with pytest.raises(ValueError, match="stored by output row"):
            row_ops().project(torch.randn(1, 32), group)
