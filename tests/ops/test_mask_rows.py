"""The fast mask of many rows, bit for bit that of the specification."""

from __future__ import annotations

import sys

import pytest
import torch

from rsparse.ops import compiled, mask_rows, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def problem(dtype):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 50, 37, generator=generator) * torch.exp(torch.randn(37, generator=generator))).to(dtype)
    x[0, 0, :5] = torch.tensor([0.0, -0.0, 0.75, -0.75, 1e-6], dtype=dtype)
    return x, torch.rand(37, generator=generator) + 0.5


def on_cpu(x, c, t, row_mask=None):
    return mask_rows.mask_rows(x, c, t, row_mask, rank=8)


def on_gpu_without_triton(x, c, t, row_mask=None):
    found = mask_rows._plain(x, c, t, row_mask, 8)
    without = mask_rows._plain(x, c, t, row_mask, 0)
    assert without.dropped is None
    assert torch.equal(without.kept, found.kept)
    assert torch.equal(without.counts, found.counts)
    return found


@pytest.mark.parametrize("form", [on_cpu, on_gpu_without_triton])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 0.7500001, 1e9])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_keep_mask(dtype, scaled, t, form):
    x, c = problem(dtype)
    c, threshold = (c if scaled else None), torch.tensor(t)
    m = reference.keep_mask(x, c, threshold)
    kept, dropped, counts, joined = form(x, c, threshold)
    assert joined is None
    assert kept.dtype == dropped.dtype == x.dtype
    assert torch.equal(dropped, torch.where(m, 0, x))
    assert torch.equal(kept, torch.where(m, x, 0))
    assert counts.shape == x.shape[:-1]
    assert torch.equal(counts.long(), m.sum(-1))


@pytest.mark.parametrize("form", [on_cpu, on_gpu_without_triton])
def test_dense_rows_come_back_whole(form):
    x, c = problem(torch.float32)
    row_mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) > 0.5
    kept, dropped, counts, _ = form(x, c, torch.tensor(0.8), row_mask)
    assert not dropped[~row_mask].any()
    assert torch.equal(dropped[row_mask], (x - kept)[row_mask])
    m = reference.keep_mask(x, c, 0.8)
    assert torch.equal(kept[~row_mask], x[~row_mask])
    assert torch.equal(kept[row_mask], torch.where(m, x, 0)[row_mask])
    assert counts[~row_mask].long().eq(37).all()
    assert torch.equal(counts[row_mask].long(), m.sum(-1)[row_mask])


def test_a_threshold_between_two_values_of_the_dtype_is_not_rounded():
    x = torch.tensor([[1.0, 1.0078125]], dtype=torch.bfloat16)
    for t, expected in ((0.999, 2), (1.007, 1), (1.0086, 0)):
        kept, dropped, counts, _ = mask_rows.mask_rows(x, None, torch.tensor(t))
        assert dropped is None
        assert counts.tolist() == [expected]
        assert int(kept.count_nonzero()) == expected


def test_a_nan_is_not_hidden():
    x = torch.tensor([[float("nan"), 1.0, float("inf")]])
    kept, _, _, _ = mask_rows.mask_rows(x, None, torch.tensor(0.5))
    assert kept[0, 0].isnan()
    assert kept[0, 1:].tolist() == [1.0, float("inf")]


class OnGpu(torch.Tensor):
    """Says that it is on a GPU, where there is none."""

    @property
    def is_cuda(self):
        return True


def test_where_compiling_fails_the_plain_function_goes_on_and_says_so_once(monkeypatch):
    def broken(function, dynamic):
        raise RuntimeError("no compiler here\nmany more lines")

    monkeypatch.setattr(torch, "compile", broken)
    double = compiled.Compiled(lambda x: x * 2)
    with pytest.warns(UserWarning, match="no compiler here") as caught:
        assert double(torch.ones(1).as_subclass(OnGpu)).tolist() == [2]
    assert "many more" not in str(caught[0].message)
    assert double(torch.ones(1).as_subclass(OnGpu)).tolist() == [2]
    assert len(caught) == 1


def test_a_gpu_tensor_runs_what_compile_returns(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: lambda x: x * 3)
    assert compiled.Compiled(lambda x: x * 2)(torch.ones(1).as_subclass(OnGpu)).tolist() == [3]
    assert compiled.Compiled(lambda x: x * 2)(torch.ones(1)).tolist() == [2]


@pytest.fixture
def without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "rsparse.ops.mask_triton", raising=False)
    mask_rows._kernel.cache_clear()
    yield
    mask_rows._kernel.cache_clear()


def test_without_triton_plain_torch_does_it_and_says_so_once(without_triton):
    x, c = problem(torch.float32)
    with pytest.warns(UserWarning, match=r"Triton failed \(.*triton.*\)") as caught:
        twice = [mask_rows.mask_rows(x.as_subclass(OnGpu), c, torch.tensor(0.75), rank=5) for _ in range(2)]
    assert len(caught) == 1
    found = twice[1]
    m = reference.keep_mask(x, c, torch.tensor(0.75))
    assert torch.equal(found.kept, torch.where(m, x, 0))
    assert torch.equal(found.dropped, torch.where(m, 0, x))
    assert found.joined is None


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("full"), RuntimeError("CUDA error: out of memory")], ids=str)
def test_running_out_of_memory_is_not_taken_for_a_kernel_that_fails(monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setitem(sys.modules, "rsparse.ops.mask_triton", type(sys)("mask_triton"))
    sys.modules["rsparse.ops.mask_triton"].split = full
    mask_rows._kernel.cache_clear()
    with pytest.raises(type(error), match=str(error)):
        mask_rows.mask_rows(torch.ones(2, 8).as_subclass(OnGpu), None, torch.tensor(0.5))
    mask_rows._kernel.cache_clear()


def test_a_cpu_never_asks_for_triton(monkeypatch):
    monkeypatch.setattr(mask_rows, "_kernel", lambda *args: pytest.fail("asked for the kernel"))
    x, c = problem(torch.bfloat16)
    assert mask_rows.mask_rows(x, c, torch.tensor(0.75), rank=5).joined is None
