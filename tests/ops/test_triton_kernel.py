"""The `triton` backend: what it refuses, how it stores weights, and its ops under the interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import rsparse
from rsparse.errors import RSparseError
from rsparse.ops import dispatch, triton_kernel
from rsparse.sparse_linear import RSparseLinear
from tests.support.folders import sparse_model, tensors_of
from tests.support.interpreted import run_interpreted, why_not

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_interpreted():
    run_interpreted(Path(__file__).with_name("interpreted_linear.py"))


@pytest.fixture
def path(tmp_path, monkeypatch):
    """An empty folder, the one that programs are looked for in; `install` puts one there."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path


def install(path, name):
    (path / name).touch(mode=0o755)


@pytest.fixture
def gpu(path, monkeypatch):
    install(path, "gcc")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An Old GPU")


def test_it_takes_a_gpu_of_8_0(gpu):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert triton_kernel.refusal(CUDA, dtype) is None
    assert dispatch.resolve("auto", CUDA, torch.bfloat16).prepare is triton_kernel.prepare


def test_it_says_why_not(gpu, monkeypatch):
    assert "not cpu" in triton_kernel.refusal(CPU, torch.float32)
    assert "float64" in triton_kernel.refusal(CUDA, torch.float64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "An Old GPU is older than" in triton_kernel.refusal(CUDA, torch.float16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA GPU" in triton_kernel.refusal(CUDA, torch.float16)

    def missing(name):
        raise triton_kernel.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(triton_kernel.importlib.metadata, "version", missing)
    assert "Triton is not installed" in triton_kernel.refusal(CUDA, torch.float16)


def test_it_needs_a_c_compiler(gpu, path, monkeypatch):
    """Triton's launcher is C: $CC where that is set, else gcc or clang, and nothing else."""

    def why():
        return triton_kernel.refusal(CUDA, torch.float16)

    assert why() is None
    (path / "gcc").rename(path / "cc")
    assert why() == "Triton needs a C compiler: install gcc or clang, or name one in $CC"
    assert dispatch.resolve("auto", CUDA, torch.float16).name != "triton"
    install(path, "clang")
    assert why() is None
    monkeypatch.setenv("CC", "tcc")
    assert why() == "Triton needs a C compiler, and there is no 'tcc', which $CC names: unset it, with gcc installed"
    (path / "clang").unlink()
    for there in ("cc", str(path / "cc")):
        monkeypatch.setenv("CC", there)
        assert why() is None


def test_auto_falls_back_and_an_explicit_request_fails():
    assert dispatch.resolve("auto", CPU, torch.float32).name != "triton"
    with pytest.raises(RSparseError, match="backend triton: it needs a CUDA GPU, not cpu"):
        dispatch.resolve("triton", CPU, torch.float32)


def test_prepare_turns_storage_and_nothing_else():
    linear = nn.Linear(6, 4)
    before, name = linear.weight.detach().clone(), linear.weight
    triton_kernel.prepare([linear])
    assert linear.weight is name
    assert torch.equal(linear.weight, before)
    assert triton_kernel.by_channel(linear.weight)
    memory = linear.weight.data_ptr()
    triton_kernel.prepare([linear])
    assert linear.weight.data_ptr() == memory
    beside = torch.zeros(6, 10)
    linear.weight.data = beside[:, 2:6].t()
    triton_kernel.prepare([linear])
    assert linear.weight.untyped_storage().data_ptr() == beside.data_ptr(), "a view of a wider memory is left alone"


def test_storage_by_output_is_told_from_storage_by_channel():
    assert not triton_kernel.by_channel(torch.zeros(4, 6))
    assert triton_kernel.by_channel(torch.zeros(6, 4).t())
    assert not triton_kernel.by_channel(torch.zeros(1, 6).expand(4, 6))


def test_there_is_no_deflated_form():
    with pytest.raises(ValueError, match="R = W"):
        triton_kernel.pack(torch.zeros(4, 6), deflated=True)


def test_a_checkpoint_has_the_usual_storage(tmp_path):
    model = sparse_model("llama")
    rsparse.save_pretrained(model, tmp_path / "before")
    triton_kernel.prepare(module for module in model.modules() if isinstance(module, RSparseLinear))
    rsparse.save_pretrained(model, tmp_path / "after")
    before, after = (tensors_of(tmp_path / name) for name in ("before", "after"))
    assert before.keys() == after.keys()
    for file, tensors in before.items():
        assert tensors.keys() == after[file].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, after[file][name])
            assert after[file][name].is_contiguous()
