"""One case: all its paths made, captured and timed in turn. What fails, out of memory too, leaves the others alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rsparse.benchmark.kernels.cases import ALONE, DENSE, Case
from rsparse.benchmark.kernels.measure import Chain, alternate, chain
from rsparse.benchmark.kernels.outcome import Outcome, caught
from rsparse.benchmark.kernels.problem import Problem
from rsparse.benchmark.kernels.reading import UnitPath


def run_case(case: Case, ranks: list[str], device: torch.device, dtype: torch.dtype, seed: int, repeats: int) -> Outcome:
    """Dense paths, masked tiles where they run, and the runtime's with each of `ranks`; times are of this one run."""
    problem, outcome = Problem(case, device, dtype, seed), Outcome()
    builders: dict[str, Callable[[], UnitPath]] = {}
    for name in (*DENSE, ALONE):
        builders[name] = lambda name=name: problem.dense(name)  # type: ignore[misc]
    if case.batch == 1 and case.sparsity > 0:
        builders["masked"] = problem.masked
    for name in ranks:
        builders[name] = lambda name=name: problem.sparse(name)  # type: ignore[misc]
    chains: dict[str, Chain] = {}
    for name, build in builders.items():
        with caught(outcome.failed, name):
            outcome.paths[name] = build()
            chains[name] = chain(outcome.paths[name].calls, device)
    outcome.timings = alternate(chains, device, repeats)
    return outcome
