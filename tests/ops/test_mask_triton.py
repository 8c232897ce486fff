"""The Triton kernel of mask_rows: interpreted on a CPU, in a process of its own, and compiled where there is a GPU."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from rsparse.ops import mask_rows, reference
from tests.support.interpreted import run_interpreted, why_not
from tests.support.tolerance import assert_close_rms

SCRIPT = Path(__file__).with_name("interpreted_mask.py")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_interpreted():
    run_interpreted(SCRIPT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    torch.manual_seed(0)
    assert mask_rows._kernel(torch.device("cuda", 0), dtype) is not None
    t = torch.tensor(0.7, device="cuda")
    for columns, rank, rows in itertools.product((37, 576, 1536), (0, 5, 16), (3, 2003)):
        W, U, V = (torch.randn(size, device="cuda", dtype=dtype) / 9 for size in ((40, columns), (40, rank), (columns, rank)))
        packed = reference.pack(W, U, V) if rank else reference.pack(W)
        x = torch.randn(rows, columns, device="cuda", dtype=dtype)
        c, row_mask = torch.rand(columns, device="cuda") + 0.5, torch.rand(rows, device="cuda") > 0.3
        for given in itertools.product((None, c), (t,), (None, row_mask)):
            found, plain = (form(x, *given, rank) for form in (mask_rows._on_gpu, mask_rows._plain))
            assert (found.joined is not None) == (rank > 0 and rows >= columns)
            assert torch.equal(found.kept, plain.kept)
            assert torch.equal(found.counts, plain.counts)
            assert rank == 0 or torch.equal(found.dropped, plain.dropped)
            y, expected = (reference.masked_gemm(packed, x, each) for each in (found, plain))
            assert_close_rms(y, expected, dtype)
