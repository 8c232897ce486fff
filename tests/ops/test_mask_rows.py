"""The fast mask of many rows, bit for bit that of the specification."""

from __future__ import annotations

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
    return mask_rows.mask_rows(x, c, t, row_mask, dropped=True)


def on_gpu(x, c, t, row_mask=None):
    found = mask_rows._on_gpu(x, c, t, row_mask, True)
    without = mask_rows._on_gpu(x, c, t, row_mask, False)
    assert without.dropped is None
    assert torch.equal(without.kept, found.kept)
    assert torch.equal(without.counts, found.counts)
    return found


@pytest.mark.parametrize("form", [on_cpu, on_gpu])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.75, 0.7500001, 1e9])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_keep_mask(dtype, scaled, t, form):
    x, c = problem(dtype)
    c, threshold = (c if scaled else None), torch.tensor(t)
    m = reference.keep_mask(x, c, threshold)
    kept, dropped, counts = form(x, c, threshold)
    assert kept.dtype == dropped.dtype == x.dtype
    assert torch.equal(dropped, torch.where(m, 0, x))
    assert torch.equal(kept, torch.where(m, x, 0))
    assert counts.shape == x.shape[:-1]
    assert torch.equal(counts.long(), m.sum(-1))


@pytest.mark.parametrize("form", [on_cpu, on_gpu])
def test_dense_rows_come_back_whole(form):
    x, c = problem(torch.float32)
    row_mask = torch.rand(2, 50, generator=torch.Generator().manual_seed(1)) > 0.5
    kept, dropped, counts = form(x, c, torch.tensor(0.8), row_mask)
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
        kept, dropped, counts = mask_rows.mask_rows(x, None, torch.tensor(t))
        assert dropped is None
        assert counts.tolist() == [expected]
        assert int(kept.count_nonzero()) == expected


def test_a_nan_is_not_hidden():
    x = torch.tensor([[float("nan"), 1.0, float("inf")]])
    kept, _, _ = mask_rows.mask_rows(x, None, torch.tensor(0.5))
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


def test_two_signatures_compile_whatever_is_none_or_of_one_row(monkeypatch):
    """Each mixture compiled by itself would meet torch.compile's limit of eight, and run uncompiled from then on."""
    seen = []

    def counting(function, dynamic):
        import torch._dynamo

        backend = lambda graph, inputs: seen.append(function.__name__) or graph.forward  # noqa: E731
        return torch._dynamo.optimize(backend, dynamic=dynamic)(function)

    monkeypatch.setattr(torch, "compile", counting)
    monkeypatch.setattr(mask_rows, "_keep", compiled.Compiled(mask_rows._keep.function))
    monkeypatch.setattr(mask_rows, "_split", compiled.Compiled(mask_rows._split.function))
    monkeypatch.setattr(mask_rows, "COMPILE_ROWS", 1)
    monkeypatch.setattr(compiled, "compiles_on", lambda x: True)
    for dropped in (False, True):
        for shape in ((2, 40, 16), (3, 50, 16), (4, 30, 24), (1, 20, 16)):
            for c in (None, torch.rand(shape[-1])):
                for row_mask in (None, torch.rand(shape[:2]) > 0.5):
                    mask_rows._on_gpu(torch.randn(shape), c, torch.tensor(0.5), row_mask, dropped)
    assert sorted(set(seen)) == ["_keep", "_split"]
    assert len(seen) <= 4  # a batch of one is another shape to torch.compile
