"""rsparse analyze rho."""

from __future__ import annotations

import argparse

from rsparse.cli import _options as options
from rsparse.cli.analyze import _kind, _sweep

HELP = "perplexity over one rho for all units, from low-rank-only to sparse-only; resumes"


def configure(parser: argparse.ArgumentParser) -> None:
    _sweep.add_common(parser, calibrated=True)
    parser.add_argument("--sparsity", type=float, default=0.5, help="of all points (default %(default)s)")
    parser.add_argument("--rhos", default="0,0.25,0.5,0.75,0.9,0.95,0.98,1", help="with commas (default %(default)s)")
    parser.add_argument(
        "--criterion", default="paper", help=f"what scores a channel: {options.files_of('criteria')} (default paper)"
    )
    parser.add_argument("--fit", default="svd", help="low-rank factors: svd of the weight (default), or dropped")
    parser.add_argument("--grouping", default="linear", choices=("linear", "group"), help="linear (default), or group")


def run(args: argparse.Namespace) -> None:
    from rsparse import methods
    from rsparse.analysis.sweep import rho_method
    from rsparse.analysis.sweep_views import plot_rho, rho_lines
    from rsparse.errors import RSparseError
    from rsparse.evaluation.describe import short
    from rsparse.progress import progress
    from rsparse.records import Run

    timer = Run()
    rhos = _kind.numbers(args.rhos, "--rhos", 0, 1, ends=True)
    if not 0 < args.sparsity < 1:
        raise RSparseError(f"--sparsity must be between 0 and 1, got {args.sparsity}")
    chosen = {"criterion": args.criterion, "fit": args.fit, "grouping": args.grouping}
    methods.check("rsparse", args.sparsity, chosen)
    calibration = _sweep.check(args)
    model, tokenizer = _sweep.load(args, calibration)
    # The level is of the settings, and in the record; the model itself is dense.
    sweep, config = _sweep.start(args, model, tokenizer, calibration, {"sparsity": args.sparsity, **chosen})
    dense = sweep.dense()
    points = {}
    with progress(len(rhos), "analyze", unit="point") as bar:
        for rho in rhos:
            points[rho] = sweep.method(rho_method(rho, args.criterion, args.fit, args.grouping), args.sparsity, calibration)
            bar.update()
    what = f"one rho for all units at {args.sparsity:.0%}, {sweep.windows.numel()} tokens of {short(args.data)}"
    plot_rho(points, dense, _kind.title(args, what), _kind.picture_path(args))
    metrics = {"tokens": dense["tokens"], "dense": dense, "points": {f"{rho:g}": point for rho, point in points.items()}}
    _kind.end(args, timer, model, config | {"method": "rsparse", "rho": rhos}, metrics, rho_lines(points, dense, args.sparsity))
