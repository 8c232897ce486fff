"""What is timed, and the rates that follow."""

from __future__ import annotations

import torch

from rsparse.benchmark.decode.timing import Timing, measure


def test_rates_are_of_medians():
    found = Timing(2, [0.5, 0.1, 0.2], [[1.0, 2.0], [2.0, 2.0], [4.0, 5.0]])
    assert found.decode_seconds == 4.0
    assert found.prefill_seconds == 0.2
    assert found.tokens_per_second == 2 * 2 / 4.0
    metrics = found.metrics()
    assert metrics["ms_per_token"] == 2000
    assert metrics["repeats_spread"] == (9 - 3) / 4
    assert metrics["by_length"] == {}


def test_rates_by_length():
    steps = [[0.01] * 127 + [0.02] * 128] * 3
    found = Timing(1, [1.0] * 3, steps).metrics()["by_length"]
    assert list(found) == ["128", "256"]
    assert found["128"] == {"tokens_per_second": 100.0, "with_prefill": round(128 / 2.27, 2)}
    assert found["256"] == {"tokens_per_second": round(255 / 3.83, 2), "with_prefill": round(256 / 4.83, 2)}


class _Counting:
    name = "counting"

    def __init__(self):
        self.calls = []

    def begin(self, prompt):
        self.calls.append("begin")

    def advance(self):
        self.calls.append("advance")


def test_each_repeat_is_a_prompt_and_all_tokens():
    path = _Counting()
    found = measure(path, torch.zeros(3, 4, dtype=torch.long), new_tokens=6, repeats=2)
    assert path.calls == ["begin", *["advance"] * 5] * 3  # one of them to warm up
    assert [len(steps) for steps in found.steps] == [5, 5]
    assert len(found.prefill) == 2
    assert found.batch == 3
