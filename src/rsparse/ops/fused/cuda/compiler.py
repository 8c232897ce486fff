"""CUDA C++ to kernels of the device at hand, by NVRTC, which comes with PyTorch; what was compiled once is kept on disk."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rsparse.atomic import new_file
from rsparse.errors import RSparseError
from rsparse.ops.fused.settings import cache_folder

SOURCES = Path(__file__).parent


class CudaError(RuntimeError):
    """The compiler or the driver refused."""


@functools.cache
def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    try:
        from cuda.bindings import nvrtc

        _checked(nvrtc.nvrtcVersion())
    except (ImportError, RuntimeError) as error:  # a missing libnvrtc is a RuntimeError
        return f"cuda-bindings and NVRTC are missing ({str(error).splitlines()[0][:100]})"
    return None


@functools.cache
def refusal(device: torch.device) -> str | None:
    """Why nothing can be compiled for `device`, an Ampere or later, and run there; None where it can."""
    if device.type != "cuda":
        return f"it needs a CUDA GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs an Ampere GPU or a later one"
    if why := missing():
        return why
    try:  # NVRTC may be newer than the driver, or older than the GPU
        load(compiled('extern "C" __global__ void nothing() {}', {}, arch_of(device)), "nothing", 32, 0, device)
    except CudaError as error:
        return str(error).splitlines()[0][:200]
    return None


def arch_of(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def source(*files: str) -> str:
    """The files of this folder, one after another."""
    return "\n".join((SOURCES / name).read_text(encoding="utf-8") for name in files)


def compiled(code: str, constants: Mapping[str, int], arch: str) -> bytes:
    """`code` with the constants as macros, as machine code of `arch` (`sm_90`). CudaError with the compiler's log."""
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture={arch}", "--std=c++17", *(f"-D{name}={value}" for name, value in sorted(constants.items()))]
    version = "{}.{}".format(*_checked(nvrtc.nvrtcVersion()))
    key = hashlib.sha256("\n".join([code, version, *options]).encode()).hexdigest()
    kept = cache_folder().parent / "kernels" / f"{key[:32]}.cubin"
    with contextlib.suppress(OSError):
        return kept.read_bytes()
    cubin = _compile(nvrtc, code, options, f"NVRTC {version} for {arch}")
    with contextlib.suppress(OSError, RSparseError):  # a cache: the next process compiles again
        kept.parent.mkdir(parents=True, exist_ok=True)
        with new_file(kept) as file:
            file.write_bytes(cubin)
    return cubin


def _compile(nvrtc: Any, code: str, options: Sequence[str], named: str) -> bytes:
    (program,) = _checked(nvrtc.nvrtcCreateProgram(code.encode(), b"kernel.cu", 0, [], []))
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _filled(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            text = log.decode().rstrip("\0").strip()
            raise CudaError(f"{named}: {text}")
        return _filled(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _filled(size: Any, fill: Any, program: Any) -> bytes:
    """What `fill` writes. NVRTC writes into the bytes themselves, so they must be nobody else's: Python shares short ones."""
    (length,) = _checked(size(program))
    into = bytes(length + 2)
    _checked(fill(program, into))
    return into[:length]


@dataclass(frozen=True)
class Kernel:
    """A loaded function; `shared` bytes of dynamic shared memory and `threads` a block belong to it."""

    function: Any
    threads: int
    shared: int

    def launch(self, blocks: int, values: Sequence[Any], types: Sequence[Any], device: torch.device) -> None:
        """Launch on the current stream of `device`."""
        from cuda.bindings import driver

        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = self.threads, 1, 1
        config.sharedMemBytes = self.shared
        config.hStream = torch.cuda.current_stream(device).cuda_stream
        with torch.cuda.device(device):  # a thread's first CUDA call may be this one
            _checked(driver.cuLaunchKernelEx(config, self.function, (tuple(values), tuple(types)), 0))


def load(cubin: bytes, name: str, threads: int, shared: int, device: torch.device) -> Kernel:
    """The function `name` of `cubin` on `device`. CudaError where a block does not fit there."""
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream(device).synchronize()  # makes the device's context, if nothing else has
        (module,) = _checked(driver.cuModuleLoadData(cubin))
        (function,) = _checked(driver.cuModuleGetFunction(module, name.encode()))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _checked(driver.cuFuncSetAttribute(function, attribute, shared))
    return Kernel(function, threads, shared)


def pointer(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong, ctypes.c_float


def _checked(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of cuda.bindings returned after its error code. CudaError for any but success."""
    error, *values = result
    if int(error) != 0:
        raise CudaError(f"CUDA: {error.name}")
    return tuple(values)
