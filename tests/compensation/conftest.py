from __future__ import annotations

import pytest

from tests.compensation.fits import fitted


@pytest.fixture(scope="module")
def done():
    """A model and its fit: leave them as they are."""
    return fitted()
