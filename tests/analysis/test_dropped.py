"""What low rank could stand in for, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rsparse.analysis.dropped import (
    DroppedRank,
    _output_values,
    drop,
    dropped_lines,
    dropped_of,
    dropped_ranks,
    dropped_summary,
    threshold,
)
from rsparse.analysis.rank import rank_of
from rsparse.calibration import calibrate
from rsparse.models.layout import sites
from tests.support.models import text_file, tiny_model, tiny_tokenizer


def hand_made():
    """20 inputs: eight of 10, two of 2 with signs of their own, ten of 1 that share one sign; each row twice, a half each."""
    signs = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    rows = torch.cat([torch.full((4, 8), 10), 2 * signs[:, :2], signs[:, 2:].expand(4, 10)], 1).float()
    weight = torch.eye(20)
    weight[0, 0] = 5  # W's leading component is an input that is always kept
    return weight, rows.repeat_interleave(2, 0)


def test_a_rank_against_the_two_channels_that_it_costs():
    found = dropped_of(*hand_made(), 0.5, 0.8)  # half of the inputs are kept, or eight and a rank of 40 in 400 numbers
    assert found.output90 == 1 / 20
    assert found.weighted90 == 9 / 20
    assert found.ratio == pytest.approx(8 / 10, rel=1e-4)  # the shared sign's 10 are held, two times 4 are lost
    assert found.svd_ratio == pytest.approx(18 / 10, rel=1e-4)


def test_bytes_that_buy_no_rank_change_nothing():
    found = dropped_of(*hand_made(), 0.5, 0.9)
    assert (found.ratio, found.svd_ratio) == (1, 1)


def test_threshold_and_what_it_drops():
    rows = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    assert threshold(rows, 0.5) == 2
    assert drop(rows, 2).tolist() == [[1, -2], [0, 0]]
    assert drop(rows, threshold(rows, 0)).count_nonzero() == 0


@pytest.mark.parametrize("shape", [(6, 3), (3, 6)])
def test_spectrum_of_outputs(shape):
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(shape, generator=generator), torch.randn(9, shape[1], generator=generator)
    expected = torch.linalg.svdvals(rows @ weight.T)
    assert torch.allclose(_output_values(weight, rows).float(), expected[:3], rtol=1e-4)


def test_each_linear_on_its_own_input(tmp_path):
    model = tiny_model("llama")
    calibration = calibrate(model, tiny_tokenizer(), str(text_file(tmp_path, 200)), tokens=240, seq_len=24, rows=60)
    found = dropped_ranks(model, calibration, 0.5, 0.6)
    linears = {name: (site, linear) for block in sites(model) for site in block for name, linear in site.linears.items()}
    assert list(found) == list(linears)
    for name, (site, linear) in linears.items():
        block = int(name.split(".")[2])
        assert found[name] == dropped_of(linear.weight.detach(), calibration.block(block)[site.name].rows, 0.5, 0.6)


def test_summary_by_kind():
    base = DroppedRank(0.5, 0.5, 1.0, 1.5)
    ratios = {"layers.0.o_proj": 0.8, "layers.1.o_proj": 1.0, "layers.0.up_proj": 1.1, "layers.1.up_proj": 1.2}
    found = {name: replace(base, ratio=ratio, output90=ratio / 2) for name, ratio in ratios.items()}
    weights = {name: replace(rank_of(torch.eye(2)), rank90=-ratio) for name, ratio in ratios.items()}
    told = dropped_summary(found, weights)
    assert told["ratio"] == pytest.approx({"o_proj": 0.9, "up_proj": 1.15})
    assert told["pays"] == {"o_proj": 0.5, "up_proj": 0}
    assert told["svd_ratio"] == {"o_proj": 1.5, "up_proj": 1.5}
    assert told["ratio_rank_correlation"] == pytest.approx({"rank90": -1, "weighted90": None, "output90": 1})
    lines = dropped_lines(told, 0.5, 0.95)
    assert "0.90 (o_proj) to 1.15 (up_proj)" in lines[0]
    assert lines[0].endswith("it pays in o_proj (50% of the blocks)")
    assert "rank90 -1.00, weighted90 cannot be told, output90 +1.00" in lines[1]
