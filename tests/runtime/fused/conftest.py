"""`generate` through the fused step on the CPU, by its reference ops."""

from __future__ import annotations

import pytest

from rsparse.runtime import generation, path
from tests.runtime.fused.cases import by_modules


@pytest.fixture
def by_steps(monkeypatch):
    """`by_modules`, through the fused step."""

    def run(model, prompts, **options):
        with monkeypatch.context() as patch:
            patch.setattr(generation, "session_for", lambda model, request, _: path.make_session(model, request, "reference"))
            result = by_modules(model, prompts, **options)
        assert result.backend == "reference"
        return result

    return run
