"""rsparse analyze sparsity."""

from __future__ import annotations

import argparse
from typing import Any

from rsparse.cli.analyze import _kind, _sweep

HELP = "perplexity over levels for chosen methods; resumes"


def configure(parser: argparse.ArgumentParser) -> None:
    _sweep.add_common(parser, calibrated=True)
    parser.add_argument(
        "--method", action="append", metavar="NAME[:OPTION=VALUE,...]",
        help="repeat for several (default: sparse_only, and rsparse:criterion=paper,fit=svd)",
    )  # fmt: skip
    parser.add_argument("--levels", default="0.2,0.3,0.4,0.5,0.6,0.7", help="sparsities, with commas (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.sweep import method_of
    from rsparse.analysis.sweep_views import plot_sparsity, sparsity_lines
    from rsparse.errors import RSparseError
    from rsparse.evaluation.describe import short
    from rsparse.progress import progress
    from rsparse.records import Run

    timer = Run()
    levels = _kind.numbers(args.levels, "--levels", 0, 1)
    methods = [method_of(text) for text in args.method or ["sparse_only", "rsparse:criterion=paper,fit=svd"]]
    labels = [method.label for method in methods]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise RSparseError(f"two --method are called {twice}; name each once")
    calibration = _sweep.check(args)
    model, tokenizer = _sweep.load(args, calibration)
    sweep, config = _sweep.start(args, model, tokenizer, calibration, {})
    dense = sweep.dense()
    rows: dict[str, dict[float, Any]] = {}
    with progress(len(levels) * len(methods), "analyze", unit="point") as bar:
        for method in methods:
            rows[method.label] = {}
            for level in levels:
                rows[method.label][level] = sweep.method(method, level, calibration)
                bar.update()
    what = f"perplexity over sparsity, {sweep.windows.numel()} tokens of {short(args.data)}"
    plot_sparsity(rows, dense, _kind.title(args, what), _kind.picture_path(args))
    points = {label: {f"{level:g}": point for level, point in row.items()} for label, row in rows.items()}
    metrics = {"tokens": dense["tokens"], "dense": dense, "points": points}
    _kind.end(args, timer, model, config | {"methods": labels, "levels": levels}, metrics, sparsity_lines(rows, dense))
