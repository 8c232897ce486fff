"""Intervals against numbers worked out by hand, and a plain bootstrap."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rsparse.errors import RSparseError
from rsparse.evaluation.paired import (
    above_chance_share,
    compare_tasks,
    mean_accuracy_difference,
    mean_difference,
    perplexity_ratio,
)
from rsparse.evaluation.tasks import TaskScore

A, B = [1, 1, 0, 1], [1, 0, 0, 0]


def score(acc, chance=0.5, name="x", metric="acc"):
    return {name: TaskScore(name, {metric: list(map(float, acc))}, chance)}


def values(interval):
    return (interval.value, interval.low, interval.high)


def test_mean_difference():
    # differences 0, 1, 0, 1: mean 1/2, variance 1/3, error √(1/12) = 0.288675; 1.959964 of it is 0.565793
    assert values(mean_difference(A, B)) == pytest.approx((0.5, -0.065793, 1.065793), abs=1e-6)
    assert values(mean_difference(B, A)) == pytest.approx((-0.5, -1.065793, 0.065793), abs=1e-6)
    # Pairs, not two samples: the same values in another order are further from certain.
    assert values(mean_difference([5.0, 9.0], [4.0, 8.0])) == (1, 1, 1)
    assert mean_difference([5.0, 9.0], [8.0, 4.0]).low < 0


def test_perplexity_ratio():
    # differences 0.1, 0.2, 0, 0.1: mean 0.1, variance 0.02/3, error 0.0408248; 1.959964 of it is 0.0800152
    found = perplexity_ratio([2.0, 2.2, 1.9, 2.1], [1.9, 2.0, 1.9, 2.0])
    assert values(found) == pytest.approx((1.105171, 1.020186, 1.197236), abs=2e-6)
    assert 1e300 < perplexity_ratio([5000.0, 5001.0], [1.0, 1.0]).value < math.inf


def test_mean_accuracy_difference():
    # x as above; y: differences 1, 0, mean 1/2, variance 1/2, error 1/2. Mean error: √(1/12 + 1/4) / 2 = 0.288675
    a, b = score(A) | score([1, 1], name="y"), score(B) | score([0, 1], name="y")
    assert values(mean_accuracy_difference(a, b)) == pytest.approx((0.5, -0.065793, 1.065793), abs=1e-6)


def test_above_chance_share():
    a = score([1, 1, 1, 0], 0.5) | score([1, 0, 1, 0], 0.25, "y") | score([9, 9], None, "z")
    b = score([1, 1, 1, 1], 0.5) | score([1, 1, 1, 0], 0.25, "y") | score([1, 1], None, "z")
    # (0.75 − 0.5 + 0.5 − 0.25) / (1 − 0.5 + 0.75 − 0.25); z has no chance level
    assert above_chance_share(a, b).value == pytest.approx(0.5)


def test_above_chance_shares_interval_is_the_bootstraps():
    rng = np.random.default_rng(7)
    sizes, chances = {"x": 80, "y": 120}, {"x": 0.5, "y": 0.25}
    a, b = {}, {}
    for name, n in sizes.items():
        right = rng.random(n) < 0.8
        b |= score(right, chances[name], name)
        a |= score(np.where(rng.random(n) < 0.25, rng.random(n) < 0.5, right), chances[name], name)
    shares = []
    for _ in range(4000):
        totals = [0.0, 0.0]
        for name, n in sizes.items():
            drawn = rng.integers(0, n, n)
            for side, scores in enumerate((a, b)):
                totals[side] += np.array(scores[name].rows["acc"])[drawn].mean() - chances[name]
        shares.append(totals[0] / totals[1])
    found = above_chance_share(a, b)
    low, high = np.percentile(shares, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert found.low < found.value < found.high
    assert values(above_chance_share(a, b)) == values(found)  # the same seed, the same interval


def test_the_same_model_twice():
    rng = np.random.default_rng(3)
    scores = score(rng.random(50) < 0.7) | score(rng.random(30) < 0.6, 0.25, "y")
    found = compare_tasks(scores, scores)
    for entry in (*found["difference"].values(), found["mean_difference"]):
        assert (entry["value"], entry["low"], entry["high"]) == (0, 0, 0)
    assert found["above_chance_share"] == {"value": 1, "low": 1, "high": 1}
    nll = [2.0, 2.5, 1.0]
    assert values(perplexity_ratio(nll, nll)) == (1, 1, 1)


def test_the_records_entry():
    found = compare_tasks(
        score(A) | score([0.5, 0.1], None, "z", "rougeL"), score([1, 1, 1, 0]) | score([0.1, 0.1], None, "z", "rougeL")
    )
    assert found["difference"]["x"] == {
        "metric": "acc",
        "value": 0,
        "low": pytest.approx(-0.80015, abs=1e-5),
        "high": pytest.approx(0.80015, abs=1e-5),
    }
    assert found["difference"]["z"]["metric"] == "rougeL"
    assert found["difference"]["z"]["value"] == 0.2
    assert found["mean_difference"]["value"] == 0  # of the accuracies alone
    assert found["above_chance_share"]["value"] == 1
    assert "above_chance_note" not in found
    at_chance = compare_tasks(score(A), score(A, 0.75))
    assert at_chance["above_chance_share"] is None
    assert "not above chance" in at_chance["above_chance_note"]
    assert "no task here has choices" in compare_tasks(score(A, None), score(B, None))["above_chance_note"]


def test_what_does_not_pair():
    for a, b in ((A, B[:3]), ([1.0], [1.0]), ([], [])):
        with pytest.raises(RSparseError, match="cannot pair"):
            mean_difference(a, b)
    with pytest.raises(RSparseError, match="cannot pair 3 rows with 4"):
        compare_tasks(score(A[:3]), score(B))
    with pytest.raises(RSparseError, match="y on one side only"):
        compare_tasks(score(A), score(A) | score(A, name="y"))
    with pytest.raises(RSparseError, match="exact_match on one side"):
        compare_tasks(score(A, None, metric="exact_match"), score(A))
    with pytest.raises(RSparseError, match="not above chance"):
        above_chance_share(score(A), score([0, 0, 1, 1]))


def test_a_resample_at_chance_does_not_break_the_interval():
    # Of 8 rows, b is right in 5: many resamples are at chance or below it, where the share means nothing.
    found = above_chance_share(score([1, 1, 1, 1, 0, 0, 0, 0]), score([1, 1, 1, 1, 1, 0, 0, 0]))
    assert found.value == 0
    assert all(math.isfinite(each) for each in values(found))


def test_a_model_at_chance_but_for_rounding_has_nothing_to_keep():
    rows = {"acc": [1.0, 0.0, 0.0] * 4}
    guessing = {"t": TaskScore.from_dict("t", TaskScore("t", rows, 1 / 3).to_dict())}
    with pytest.raises(RSparseError, match="not above chance"):
        above_chance_share({"t": TaskScore("t", {"acc": [0.0] * 12}, 1 / 3)}, guessing)
