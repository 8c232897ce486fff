"""Figures, looked into before they are closed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def drawn(monkeypatch):
    """A function that gives the last figure, which is left open."""
    monkeypatch.setattr(plt, "close", lambda figure: None)
    yield lambda: plt.figure(plt.get_fignums()[-1])
    monkeypatch.undo()
    plt.close("all")
