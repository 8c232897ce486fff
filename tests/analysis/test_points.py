"""The points of a study."""

from __future__ import annotations

import pytest

from rsparse.analysis.points import Points
from rsparse.errors import RSparseError


def fail():
    pytest.fail("measured again")


def test_a_point_is_made_once(tmp_path):
    points = Points(tmp_path / "rho", {"seed": 0})
    assert points.get("a-0.5", lambda: {"kl": 0.25}) == {"kl": 0.25}
    again = Points(tmp_path / "rho", {"seed": 0})
    assert again.get("a-0.5", fail) == {"kl": 0.25}
    assert again.has("a-0.5")
    assert not again.has("b")


def test_a_killed_point_leaves_nothing(tmp_path):
    points = Points(tmp_path, {})

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        points.get("a", killed)
    assert not points.has("a")


def test_points_of_other_settings_and_damaged_ones(tmp_path):
    Points(tmp_path, {"seed": 0}).get("a", lambda: {"kl": 1})
    with pytest.raises(RSparseError, match="seed = 0, and this run has 1"):
        Points(tmp_path, {"seed": 1})
    (tmp_path / "a.json").write_text('{"kl":')
    with pytest.raises(RSparseError, match=r"a\.json is damaged"):
        Points(tmp_path, {"seed": 0}).get("a", fail)
