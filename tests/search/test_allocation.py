"""What an allocation keeps: scores and low rank by kind of linear, and single units' levels."""

from __future__ import annotations

import numpy as np
import pytest

from tests.search.allocations import KINDS, allocated, kind, pulling, start_of
from tests.support.models import tiny_model


def product(**gains):
    """Fitness 1 times each kind's gain: `q_proj=(0.99, 1, 1)` by column norm, rho 0.97 and rho 0.94."""

    def value(units):
        result = 1.0
        for name, each in units.items():
            norm, first, second = gains.get(kind(name), (1, 1, 1))
            factor = (norm if each.criterion == "column_norm" else 1) * {1.0: 1, 0.97: first, 0.94: second}[each.rho]
            result *= factor**0.5  # two blocks
        return result

    return value


def test_a_score_is_taken_by_kind_where_it_gains_enough(judging):
    judging(product(q_proj=(0.9975, 1, 1), k_proj=(0.9985, 1, 1), v_proj=(1.01, 1, 1), down_proj=(0.9, 1, 1)))
    found = allocated(tiny_model("llama"), rounds=0)
    taken = {name for name, each in found.choices.items() if each.criterion == "column_norm"}
    assert taken == {name for name in found.choices if kind(name) in ("q_proj", "down_proj")}
    assert {each.criterion for each in found.choices.values()} == {"column_norm", "magnitude"}
    assert found.course["column_norm"] == pytest.approx(0.9975 * 0.9)
    assert allocated(tiny_model("llama"), rounds=0, criteria=()).course["rho 0.94"] == 1


def test_low_rank_is_taken_by_kind_and_more_of_it_where_the_first_share_gained(judging):
    gains = {
        "gate_proj": (1, 0.99, 0.98),
        "up_proj": (1, 0.99, 0.9895),  # the second share gains half a thousandth
        "down_proj": (1, 0.9985, 0.5),  # the first gains too little, so that the second is never asked for
        "q_proj": (1, 1.01, 1.02),
    }
    judged = judging(product(**gains))
    found = allocated(tiny_model("llama"), rounds=0)
    rhos = {kind(name): each.rho for name, each in found.choices.items()}
    assert rhos == dict.fromkeys(KINDS, 1.0) | {"gate_proj": 0.94, "up_proj": 0.97}
    assert len(judged) == 1 + 7 + 7 + 2
    none = allocated(tiny_model("llama"), rounds=0, lowrank=False)
    assert {each.rho for each in none.choices.values()} == {1.0}
    assert list(none.course) == ["start", "column_norm"]


def test_polish_keeps_only_what_is_better_and_is_a_function_of_the_seed(judging):
    model = tiny_model("llama")
    judged = judging(pulling())
    found = allocated(model, rounds=0, criteria=(), lowrank=False, polish=40)
    best = np.minimum.accumulate([pulling()(units) for units, _ in judged])
    assert found.course == {"start": best[0], "units": best[-1]}
    assert pulling()(judged[int(np.argmin([pulling()(units) for units, _ in judged]))][0]) == found.course["units"]
    assert 2 < len(set(best)) < 41  # some are kept, and not all
    again = allocated(model, rounds=0, criteria=(), lowrank=False, polish=40)
    other = allocated(model, rounds=0, criteria=(), lowrank=False, polish=40, seed=1)
    assert again == found
    assert other.choices != found.choices
    judging(lambda units: 1.0)
    assert allocated(model, polish=10).choices == start_of(model)  # equal is not better
