"""The course of an allocation: the windows that judge, and what its progress bar promises."""

from __future__ import annotations

import pytest
import torch

from rsparse.search import allocation as module
from rsparse.search.candidate import CandidateModel
from tests.search.allocations import allocated, pulling
from tests.support.models import tiny_model
from tests.support.recipes import SEQ_LEN, calibration_of


@pytest.mark.parametrize(("tokens", "windows"), [(1, 1), (4 * SEQ_LEN, 4), (1 << 20, None)])
def test_the_windows_that_judge_are_from_all_over_the_text(monkeypatch, tokens, windows):
    seen, real = [], CandidateModel.evaluate

    def evaluate(self, recipe, worst=float("inf")):
        seen.append(self.windows)
        return real(self, recipe, worst)

    monkeypatch.setattr(CandidateModel, "evaluate", evaluate)
    allocated(tiny_model("llama"), tokens=tokens, rounds=0, criteria=(), lowrank=False)
    every = calibration_of("llama").windows
    picked = {1: [0], 4: [0, 21, 42, 63], None: range(len(every))}[windows]
    assert torch.equal(seen[0], every[list(picked)])


class Bar:
    def __init__(self, total, done):
        self.total, self.done = total, done

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, count=1):
        self.done += count


@pytest.mark.parametrize("lowrank", [True, False])
@pytest.mark.parametrize("welcome", [True, False])
def test_the_bar_counts_evaluations_and_promises_enough(judging, monkeypatch, lowrank, welcome):
    bars = []
    monkeypatch.setattr(module, "progress", lambda total, label, unit, done: bars.append(Bar(total, done)) or bars[-1])
    judging(pulling() if welcome else lambda units: 1.0)
    found = allocated(tiny_model("llama"), lowrank=lowrank, polish=5)
    (bar,) = bars
    assert found.evaluations == bar.done <= bar.total
    assert (bar.done == bar.total) == (welcome or not lowrank)
