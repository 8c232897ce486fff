"""The kernel bench's cases by Triton's interpreter, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.interpreted import run_interpreted, why_not


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_cases():
    run_interpreted(Path(__file__).with_name("interpreted_kernels.py"))
