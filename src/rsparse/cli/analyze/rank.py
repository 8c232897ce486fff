"""rsparse analyze rank."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsparse.cli.analyze import _kind
from rsparse.errors import RSparseError

HELP = "the intrinsic rank of each weight, beside a recipe's rho; with a calibration, where low rank pays"


def configure(parser: argparse.ArgumentParser) -> None:
    _kind.add_common(parser)
    parser.add_argument("--recipe", type=Path, metavar="R.json", help="draw its rho beside, and correlate the two")
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="what the inputs that are dropped would add, and where low rank pays"
    )
    parser.add_argument("--sparsity", type=float, default=0.5, help="at which inputs are dropped (default %(default)s)")
    parser.add_argument("--rho", type=float, default=0.95, help="share of the kept bytes for channels (default %(default)s)")
    parser.add_argument("--by-kind", action="store_true", help="keep means by kind of linear, and not each weight's figures")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.dropped import dropped_lines, dropped_ranks, dropped_summary
    from rsparse.analysis.rank import lines, plot, ranks, rho_of, summary
    from rsparse.calibration import Calibration
    from rsparse.recipe import Recipe
    from rsparse.records import Run
    from rsparse.sparse_model import check_recipe

    timer = Run()
    _kind.check(args)
    for name in ("sparsity", "rho"):
        if not 0 < getattr(args, name) < 1:
            raise RSparseError(f"--{name} must be between 0 and 1, got {getattr(args, name):g}")
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    recipe = None if args.recipe is None else Recipe.load(args.recipe)
    model, _ = _kind.load_dense(args)
    if recipe is not None:
        check_recipe(model, recipe)
    rho = None if recipe is None else rho_of(recipe)
    found = ranks(model)
    plot(found, rho, _kind.title(args, "intrinsic rank of the weights"), _kind.picture_path(args))
    told, said = summary(found, rho), lines(found, rho)
    config = {} if recipe is None else {"recipe_sha": recipe.sha(), "recipe_method": recipe.method}
    by_weight = {name: asdict(each) for name, each in found.items()}
    if calibration is not None:
        dropped = dropped_ranks(model, calibration, args.sparsity, args.rho)
        told["dropped"] = dropped_summary(dropped, found)
        said += dropped_lines(told["dropped"], args.sparsity, args.rho)
        by_weight = {name: figures | asdict(dropped[name]) for name, figures in by_weight.items()}
        config |= {"calibration": calibration.meta.label, "sparsity": args.sparsity, "rho": args.rho}
    metrics: dict[str, Any] = {"summary": told}
    if not args.by_kind:
        metrics |= {"by_weight": by_weight} | ({} if rho is None else {"rho_by_weight": rho})
    _kind.end(args, timer, model, config, metrics, said)
