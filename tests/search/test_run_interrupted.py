"""Searches that are killed, fail or lose their storage: what was finished stays, and the result is the same."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsparse.errors import RSparseError
from rsparse.search import run as module
from rsparse.search.candidate import CandidateModel, Fitness
from rsparse.sparse_model import is_sparse
from tests.search.searches import TOTAL, done, outcome, searched
from tests.support.models import tiny_model

pytestmark = pytest.mark.usefixtures("small_batches")


KILLED = """
import sys, time
from rsparse.search.candidate import CandidateModel
from tests.search.searches import searched
import rsparse.losses as losses
losses.batch_tokens = lambda model: 48
real, calls = CandidateModel.evaluate, []
def evaluate(self, *arguments):
    calls.append(None)
    if len(calls) > 6:
        print("stuck", flush=True)
        time.sleep(600)
    return real(self, *arguments)
CandidateModel.evaluate = evaluate
searched(sys.argv[1])
"""


def test_after_a_kill_only_what_was_in_flight_is_lost(expected, tmp_path, evaluating):
    storage = f"sqlite:///{tmp_path}/study"
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", KILLED, storage], stdout=subprocess.PIPE, cwd=root, text=True)
    try:
        assert process.stdout.readline() == "stuck\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(done(storage)[1]) == 6  # one and a half generations
    calls, start = evaluating(lambda number: None), time.perf_counter()
    result = searched(storage)
    assert len(calls) == result.evaluations == TOTAL - 6
    assert outcome(result) == outcome(expected[1])
    assert time.perf_counter() - start < 20  # it waited for nobody


def test_a_fitness_that_is_not_finite_leaves_the_study_intact(expected, storage, evaluating):
    bad = [3]
    calls = evaluating(lambda number: Fitness(math.nan, 1) if number in bad else None)
    model = tiny_model("llama")
    with pytest.raises(RSparseError, match="fitness of candidate"):
        searched(storage, model=model)
    assert not is_sparse(model)
    assert len(done(storage)[1]) == 2
    bad.clear()
    assert outcome(searched(storage)) == outcome(expected[1])
    assert len(calls) == TOTAL + 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_worker_leaves_its_slot_to_others(expected, journal, evaluating, error):
    def before(number):
        if number == 6:
            raise error

    evaluating(before)
    model = tiny_model("llama")
    with pytest.raises(error):
        searched(journal, model=model)
    assert not is_sparse(model)
    start = time.perf_counter()
    result = searched(journal, model=model)  # the process lives on: nothing but FAIL frees its slot at once
    assert time.perf_counter() - start < 20
    assert result.evaluations == TOTAL - 5
    assert outcome(result) == outcome(expected[1])


def test_a_worker_that_fails_before_its_first_candidate_leaves_its_slot_too(journal, monkeypatch):
    def failing(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(module, "CandidateModel", failing)
        with pytest.raises(MemoryError):
            searched(journal)
    assert searched(journal).evaluations == TOTAL


def test_a_slot_is_signed_while_the_factors_are_made(journal, monkeypatch):
    """Factors of an 8B model may take longer than a lease."""
    monkeypatch.setattr("rsparse.search.study.SIGN_SECONDS", 0.02)
    signed, real = [], CandidateModel.__init__

    def slow(self, *arguments):
        for _ in range(2):
            time.sleep(0.15)
            signed.append(done(journal)[0].study._trials()[0].user_attrs["signed"])
        real(self, *arguments)

    monkeypatch.setattr(CandidateModel, "__init__", slow)
    searched(journal)
    assert signed[1] > signed[0]


def test_a_storage_that_goes_in_the_middle(expected, storage, tmp_path, evaluating, monkeypatch):
    file, kept = tmp_path / "study", []

    def before(number):
        if number == 6 and not kept:
            kept.append(file.read_bytes())
            file.unlink()

    evaluating(before)
    model = tiny_model("llama")
    with pytest.raises(RSparseError, match="storage"):
        searched(storage, model=model)
    assert not is_sparse(model)
    file.write_bytes(kept[0])
    monkeypatch.setattr("rsparse.search.study.LEASE_SECONDS", 0.0)  # this process lives, and the file says that it works
    result = searched(storage)
    assert result.evaluations == TOTAL - 5
    assert outcome(result) == outcome(expected[1])
