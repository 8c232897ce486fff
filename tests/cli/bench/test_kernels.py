"""rsparse bench kernels, as a shell without a GPU sees it."""

from __future__ import annotations

import pytest

from tests.cli.conftest import bad


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "bench kernels measures Triton kernels: it needs a CUDA GPU, not cpu"),
        (["--models", "llama-9"], "--models 'llama-9' is unknown; choose from llama-2-7b, "),
        (["--units", "head"], "--units 'head' is unknown; choose from qkv, o, gate_up, down, mlp"),
        (["--levels", "half"], "--levels 'half' must be numbers with commas, as 0.4,0.5"),
        (["--levels", "0.99"], "--levels must be from 0 to 0.95, got 0.99"),
        (["--batch", "0"], "--batch must be from 1 to 8, got 0"),
        (["--dtype", "int4"], "dtype 'int4' is unknown"),
    ],
)
def test_bad_input(words, says, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    bad(says, "bench", "kernels", "--device", "cpu", *words, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()
