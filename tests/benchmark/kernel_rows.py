"""Rows and records of a kernel bench that nothing has measured."""

from __future__ import annotations

from rsparse.benchmark.kernels.cases import Case
from rsparse.benchmark.kernels.measure import Timing
from rsparse.benchmark.kernels.reading import UnitPath
from rsparse.benchmark.kernels.record import measured_row

US = {"cublas": 36.0, "rows": 32.0, "channels": 40.0, "cublas_alone": 30.0, "masked": 25.0}
COPY = 3e12


def path_of(case, ranks):
    """What the runtime's path reads of a case, exactly as its budget says."""
    budgets = [each.budget(case.sparsity, ranks) for each in case.linears]
    kept = tuple(float(budget.kept) for budget in budgets)
    dropped = [each.in_features - k for each, k in zip(case.linears, kept, strict=True)]
    return UnitPath([], 0.003, kept, tuple(zip(kept, dropped, strict=True)), tuple(budget.rank for budget in budgets))


def timings_of(us, ranks, *without):
    return {name: Timing(value, 0.01) for name, value in {**US, ranks: us}.items() if name not in without}


def row(unit, sparsity, us, ranks="none", *without, model="llama-2-7b", batch=1):
    case = Case(model, unit, sparsity, batch)
    return measured_row(case, ranks, path_of(case, ranks), timings_of(us, ranks, *without), 2, COPY) | {"commit": "abc"}


def record(rows, model="llama-2-7b"):
    config = {
        "suite": "kernels",
        "model": model,
        "dtype": "bfloat16",
        "masks": "random",
        "triton": "3",
        "repeats": 7,
        "tiles": {},
    }
    env = {"gpu": "H100", "cpu": "x", "torch": "2"}
    return {"schema": 1, "config": config, "env": env, "metrics": {"rows": rows}}
