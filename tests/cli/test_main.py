"""Exit codes, interrupts, tracebacks, and the parser."""

from __future__ import annotations

import pytest
import torch

import rsparse
from rsparse.cli import main
from rsparse.cli._main import verbs
from rsparse.errors import RSparseError
from tests.cli.conftest import SIZE, bad, good, run

SPARSIFY = ["sparsify", "dense", "--sparsity", "0.5", "--calibration", "calibration", "-o", "new"]


def raising(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("rsparse.conversion.solve_threshold", SPARSIFY),
        ("rsparse.checkpoint.save.save_file", SPARSIFY),
        ("rsparse.calibration.observe.channel_histogram", ["calibrate", "dense", "--data", "text.txt", *SIZE, "-o", "new"]),
        ("rsparse.evaluation.perplexity.compare", ["eval", "sparse", "--perplexity", "test.txt", "--seq-len", "24"]),
        ("rsparse.runtime.generate", ["generate", "sparse", "--prompt", "the"]),
    ],
)
def test_ctrl_c(here, monkeypatch, target, line):
    monkeypatch.setattr(target, raising(KeyboardInterrupt()))
    before = sorted(path.name for path in here.iterdir())
    outcome = run(*line)
    assert outcome.code == 130
    last = outcome.err.splitlines()[-1]
    assert last.startswith("rsparse: interrupted")
    assert "Traceback" not in outcome.err
    assert sorted(path.name for path in here.iterdir()) == before


def test_debug_raises():
    with pytest.raises(RSparseError, match="nowhere"):
        main(["show", "./nowhere", "--debug"])


def test_debug_raises_an_interrupt_and_a_bug(monkeypatch):
    for error in (KeyboardInterrupt, ZeroDivisionError):
        monkeypatch.setattr("rsparse.cli.show.run", raising(error("stop")))
        with pytest.raises(error):
            main(["show", "x", "--debug"])


def test_a_bug_of_our_own_says_so(monkeypatch):
    monkeypatch.setattr("rsparse.cli.show.run", raising(ZeroDivisionError("two\nlines")))
    outcome = run("show", "x")
    assert outcome.code == 1
    assert outcome.err == "rsparse: internal error, ZeroDivisionError: two (--debug shows where)\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 1 TB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "a CPU", "the runtime", "the driver", "cuBLAS"],
)
def test_out_of_memory(error, monkeypatch):
    monkeypatch.setattr("rsparse.cli.show.run", raising(error))
    bad(f"error: out of memory ({error}); use a smaller model", "show", "x")


def test_an_illegal_access_is_no_lack_of_memory(monkeypatch):
    monkeypatch.setattr("rsparse.cli.show.run", raising(RuntimeError("an illegal memory access")))
    assert run("show", "x").code == 1


def test_a_full_disk(monkeypatch):
    monkeypatch.setattr("rsparse.cli.show.run", raising(OSError(28, "No space left on device", "there")))
    bad("no room to write there: the disk is full", "show", "x")


def test_a_message_of_several_lines_becomes_one(monkeypatch):
    monkeypatch.setattr("rsparse.cli.show.run", raising(RSparseError("first\n  second")))
    bad("first second", "show", "x")


def test_version_and_help():
    assert good("--version").out == f"rsparse {rsparse.__version__}\n"
    text = good("--help").out
    assert {"calibrate", "sparsify", "densify", "generate", "eval", "show", "env"} <= set(verbs())
    assert all(verb in text for verb in verbs())


@pytest.mark.parametrize("verb", verbs())
def test_help_of_each_verb(verb):
    assert f"rsparse {verb}" in good(verb, "--help").out


def test_import_of_the_package_is_light():
    import subprocess
    import sys

    code = "import sys, rsparse; print(sorted({'torch', 'transformers', 'triton'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
