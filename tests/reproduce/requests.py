"""Requests on tiny files, and records written by hand."""

from __future__ import annotations

import json

from rsparse.benchmark.settings import Settings
from rsparse.reproduce.request import Request, folder_of
from rsparse.reproduce.table import Choice, Row, Table
from rsparse.token_policy import TokenPolicy

ALL, LAST = TokenPolicy("all"), TokenPolicy("last_fraction", 0.1)
CHOICE = Choice((2, 3), (1, 2), (("generations", "1"), ("population", "2"), ("samples", "2")))


def request(**changes) -> Request:
    given = {"model": "tiny", "policies": (LAST, ALL), "texts": ("one.txt",), "generated": {}, "choice": CHOICE}
    given |= {"settings": Settings("calibration.txt", 480, seq_len=24, tasks={"piqa": "x"})}
    return Request(**(given | changes))


def table(*rows: Row, **changes) -> Table:
    return Table("Mine: a table", lambda choice: list(rows), **changes)


def write_tasks(folder, asked, line, policy, achieved=None, config=None, **rows):
    """The record of a line's tasks: each a string of 0 and 1. `config`: what it has beside a record's usual."""
    metrics = {"tasks": {name: {"chance": 0.5, "rows": {"acc": scores}} for name, scores in rows.items()}}
    _write(folder, asked, line, policy, None, metrics, achieved, config)


def write_text(folder, asked, line, policy, text, window_nll, achieved=None, **more):
    _write(folder, asked, line, policy, text, {"perplexity": 9.0, "window_nll": window_nll, **more}, achieved)


def _write(folder, asked, line, policy, text, metrics, achieved, more=None):
    path = asked.cell(line, policy, text).path(folder_of(folder, line.variant))
    path.parent.mkdir(parents=True, exist_ok=True)
    metrics |= {} if achieved is None else {"achieved_sparsity": achieved}
    config = {"suite": "quality", "model": "tiny", "weights_sha": "abc", "dtype": "float32", **(more or {})}
    path.write_text(json.dumps({"schema": 1, "env": {"gpu": None, "cpu": "a CPU"}, "config": config, "metrics": metrics}))
