"""The Triton kernel of mask_rows: interpreted on a CPU, in a process of its own, and compiled where there is a GPU."""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from rsparse.ops import mask_rows, reference
from tests.support.tolerance import assert_close_rms

SCRIPT = Path(__file__).with_name("interpreted_mask.py")


def why_not():
    try:
        triton = importlib.metadata.version("triton")  # not imported: what runs beside this should not have it loaded
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    numpy = importlib.metadata.version("numpy")
    if Version(triton) < Version("3.7") and Version(numpy) >= Version("2.4"):
        return f"the interpreter of Triton {triton} cannot loop with NumPy {numpy}: a scalar of its is an array of one"
    return None


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_interpreted():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", str(SCRIPT)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=SCRIPT.parents[2], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


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
