"""NVRTC on stream.cu, and what is kept of it: neither needs a GPU."""

from __future__ import annotations

import contextlib
import errno
import sys
import types
from pathlib import Path

import pytest
import torch

from rsparse.ops.fused.cuda import compiler
from rsparse.ops.fused.cuda.compiler import CudaError, Kernel, compiled, pointer, source

why_not = compiler.missing()
needs_nvrtc = pytest.mark.skipif(why_not is not None, reason=str(why_not))
EMPTY = 'extern "C" __global__ void nothing() {}'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@needs_nvrtc
@pytest.mark.parametrize(
    ("arch", "norm", "act", "half"),
    [("sm_80", 0, 0, False), ("sm_80", 2, 2, True), ("sm_90", 1, 0, True), ("sm_90", 1, 1, False)],
)
def test_stream_compiles(arch, norm, act, half):
    pytest.importorskip("triton")
    from rsparse.ops.fused.cuda.stream import FILES, constants
    from rsparse.ops.fused.settings import stream_form

    lists, sections = (2, 2) if act else (1, 3)
    macros = constants(512, stream_form(64, 8, 4), norm, act, lists, sections, scaled=True, low_rank=True, half=half)
    cubin = compiled(source(*FILES), macros, arch)
    assert cubin.startswith(b"\x7fELF")
    assert b".text.stream" in cubin


@needs_nvrtc
def test_an_error_has_the_compilers_log():
    with pytest.raises(CudaError, match=r"for sm_80: (.|\n)*kernel.cu\(2\): error: (.|\n)*missing_name"):
        compiled("int main(int)\n{ return missing_name; }", {}, "sm_80")


@needs_nvrtc
def test_what_was_compiled_is_kept(cache, monkeypatch):
    from cuda.bindings import nvrtc

    first = compiled(EMPTY, {"A": 1}, "sm_80")
    (kept,) = (cache / "rsparse" / "kernels").iterdir()
    assert kept.read_bytes() == first
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "nvrtcCompileProgram", None)
        assert compiled(EMPTY, {"A": 1}, "sm_80") == first
    for code, constants, arch in ((EMPTY + " ", {"A": 1}, "sm_80"), (EMPTY, {"A": 2}, "sm_80"), (EMPTY, {"A": 1}, "sm_90")):
        compiled(code, constants, arch)
    assert len(list(kept.parent.iterdir())) == 4, "code, constants and architecture each count"


@needs_nvrtc
@pytest.mark.parametrize("at", ["", "rsparse", "rsparse/kernels"])
def test_a_cache_that_takes_nothing_does_no_harm(cache, monkeypatch, at):
    blocked = cache / "file" / at
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert compiled(EMPTY, {}, "sm_80").startswith(b"\x7fELF")


@needs_nvrtc
def test_nor_does_a_full_disk(monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert compiled(EMPTY, {}, "sm_80").startswith(b"\x7fELF")


@pytest.fixture
def asked_anew():
    compiler.missing.cache_clear()
    yield
    compiler.missing.cache_clear()


def test_it_says_in_a_line_what_is_missing(asked_anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    why = compiler.missing()
    assert why.startswith("cuda-bindings and NVRTC are missing (")
    assert "cuda.bindings" in why
    assert "\n" not in why


def test_a_library_that_is_not_there_is_said_in_a_line(asked_anew, monkeypatch):
    """cuda-bindings without NVRTC: the first call looks for the library."""

    def version():
        raise RuntimeError("Failure finding libnvrtc.so\nsearched here\nand there")

    bindings = types.ModuleType("cuda.bindings")
    bindings.nvrtc = types.SimpleNamespace(nvrtcVersion=version)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    assert compiler.missing() == "cuda-bindings and NVRTC are missing (Failure finding libnvrtc.so)"


@needs_nvrtc
def test_a_launch(monkeypatch):
    from cuda.bindings import driver

    launched = []
    success = driver.CUresult.CUDA_SUCCESS
    monkeypatch.setattr(driver, "cuLaunchKernelEx", lambda *arguments: launched.append(arguments) or (success,))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=77))
    current = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: current.append(device) or contextlib.nullcontext())
    kernel = Kernel("a function", threads=64, shared=4096)
    kernel.launch(12, [1, 2.0], [compiler.INT, compiler.FLOAT], torch.device("cuda"))
    ((config, function, arguments, extra),) = launched
    assert current == [torch.device("cuda")], "another thread may have had another device"
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (12, 1, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (64, 1, 1)
    assert (config.sharedMemBytes, int(config.hStream), config.numAttrs) == (4096, 77, 0)
    assert (function, arguments, extra) == ("a function", ((1, 2.0), (compiler.INT, compiler.FLOAT)), 0)


@needs_nvrtc
def test_a_call_that_fails_is_named(monkeypatch):
    from cuda.bindings import driver

    monkeypatch.setattr(driver, "cuLaunchKernelEx", lambda *arguments: (driver.CUresult.CUDA_ERROR_INVALID_VALUE,))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_VALUE"):
        Kernel("a function", 64, 0).launch(1, [], [], torch.device("cuda"))


def test_an_address():
    tensor = torch.zeros(4)
    assert pointer(tensor[1:]) == tensor.data_ptr() + 4
    assert pointer(None) == 0


def test_a_gpu_that_refuses_what_is_compiled_for_it(monkeypatch):
    """As where NVRTC is newer than the driver: said once, before a model needs it."""

    def load(*arguments):
        raise CudaError("CUDA: CUDA_ERROR_UNSUPPORTED_PTX_VERSION")

    monkeypatch.setattr(compiler, "compiled", lambda code, constants, arch: arch.encode())
    monkeypatch.setattr(compiler, "missing", lambda: lacking)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    lacking, capability = None, (9, 0)
    loaded = []
    monkeypatch.setattr(compiler, "load", lambda *arguments: loaded.append(arguments))
    compiler.refusal.cache_clear()
    assert compiler.refusal(torch.device("cuda:1")) is None
    assert loaded == [(b"sm_90", "nothing", 32, 0, torch.device("cuda:1"))]
    monkeypatch.setattr(compiler, "load", load)
    compiler.refusal.cache_clear()
    assert compiler.refusal(torch.device("cuda:1")) == "CUDA: CUDA_ERROR_UNSUPPORTED_PTX_VERSION"
    compiler.refusal.cache_clear()
    lacking, capability = "NVRTC is missing", (8, 0)
    assert compiler.refusal(torch.device("cuda:1")) == "NVRTC is missing"
    capability = (7, 5)
    assert compiler.refusal(torch.device("cuda:2")) == "it needs an Ampere GPU or a later one"
    assert compiler.refusal(torch.device("cpu")) == "it needs a CUDA GPU, not cpu"
    compiler.refusal.cache_clear()
