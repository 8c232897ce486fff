"""Runs tests of Triton kernels on a CPU, in a process of their own: TRITON_INTERPRET counts where Triton is imported."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[2]


def why_not():
    """Why the interpreter cannot run here, or None. On CI it has to."""
    reason = _missing()
    assert reason is None or "CI" not in os.environ, reason
    return reason


def _missing():
    try:
        triton = importlib.metadata.version("triton")  # not imported: what runs beside this should not have it loaded
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    numpy = importlib.metadata.version("numpy")
    if Version(triton) < Version("3.7") and Version(numpy) >= Version("2.4"):
        return f"the interpreter of Triton {triton} cannot loop with NumPy {numpy}: a scalar of its is an array of one"
    return None


def run_interpreted(script: Path):
    """Fails with the other process's output where one of its tests fails."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=short", str(script)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
