from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch

from rsparse import ops
from rsparse.errors import RSparseError
from rsparse.ops import dispatch, reference

CPU = torch.device("cpu")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Adds a backend file that refuses everything but fp16; its name sorts before any other."""
    (tmp_path / "aaa_kernel.py").write_text(
        "import torch\n\n\ndef refusal(device, dtype):\n"
        "    return None if dtype == torch.float16 else f'aaa has no {dtype} kernel'\n\n\n"
        "pack = mask_rows = select = gather_gemv = masked_gemm = refusal\nGATHER_ROWS = 8\n"
    )
    monkeypatch.setattr(ops, "__path__", [*ops.__path__, str(tmp_path)])
    yield "aaa"
    sys.modules.pop("rsparse.ops.aaa_kernel", None)
    ops.__dict__.pop("aaa_kernel", None)


def test_the_reference_always_runs():
    assert dispatch.backends()[0] == "reference"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert dispatch.refusal("reference", CPU, dtype) is None
        backend = dispatch.resolve("reference", CPU, dtype)
        assert (backend.name, backend.select) == ("reference", reference.select)


def test_a_backend_survives_copy_and_pickle():
    backend = dispatch.resolve("reference", CPU, torch.float32)
    assert pickle.loads(pickle.dumps(copy.deepcopy(backend))) == backend


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(RSparseError, match=r"'cuda-magic'.*reference") as caught:
        dispatch.resolve("cuda-magic", CPU, torch.float32)
    assert "\n" not in str(caught.value)


def test_a_new_file_is_a_new_backend(kernel):
    assert kernel in dispatch.backends()
    assert dispatch.resolve(kernel, CPU, torch.float16).name == kernel


def test_an_explicit_request_fails_loudly(kernel):
    with pytest.raises(RSparseError, match=r"backend aaa: aaa has no torch\.float32 kernel"):
        dispatch.resolve(kernel, CPU, torch.float32)


def test_auto_takes_the_first_that_does_not_refuse(kernel):
    assert dispatch.resolve("auto", CPU, torch.float16).name == kernel
    # float64 is refused by every kernel, so that the reference is what is left
    assert dispatch.resolve("auto", torch.device("meta"), torch.float64).name == "reference"
