"""rsparse analyze rank."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsparse.cli.analyze import _kind
from rsparse.errors import RSparseError

HELP = "the intrinsic rank of each weight, beside a recipe's rho and importance; with a calibration, where low rank pays"
SPARSITY, RHO = 0.5, 0.95  # with --calibration


def configure(parser: argparse.ArgumentParser) -> None:
    _kind.add_common(parser)
    parser.add_argument("--recipe", type=Path, metavar="R.json", help="draw its rho beside, and correlate the two")
    parser.add_argument(
        "--importance", type=Path, metavar="IMPORTANCE.json", help="a record of `analyze importance`: the same with its corners"
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="what the inputs that are dropped would add, and where low rank pays"
    )
    parser.add_argument("--sparsity", type=float, help=f"at which --calibration's inputs are dropped (default {SPARSITY:g})")
    parser.add_argument("--rho", type=float, help=f"with --calibration, share of the kept bytes for channels (default {RHO:g})")
    parser.add_argument("--by-kind", action="store_true", help="keep means by kind of linear, and not each weight's figures")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.dropped import dropped_lines, dropped_ranks, dropped_summary
    from rsparse.analysis.importance import read_corners
    from rsparse.analysis.rank import lines, plot, ranks, rho_of, summary
    from rsparse.calibration import Calibration
    from rsparse.fingerprint import weights_sha
    from rsparse.recipe import Recipe
    from rsparse.records import Run
    from rsparse.sparse_model import check_recipe

    timer = Run()
    _kind.check(args)
    for name in ("sparsity", "rho"):
        if (value := getattr(args, name)) is None:
            continue
        if not 0 < value < 1:
            raise RSparseError(f"--{name} must be between 0 and 1, got {value:g}")
        if args.calibration is None:
            raise RSparseError(f"--{name} is of the inputs of a calibration; name it with --calibration")
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    recipe = None if args.recipe is None else Recipe.load(args.recipe)
    importance = None if args.importance is None else read_corners(args.importance)
    model, _ = _kind.load_dense(args)
    if importance is not None and importance.weights_sha != (mine := weights_sha(model)):
        raise RSparseError(f"{args.importance} is of weights {importance.weights_sha}, and {args.model} has {mine}")
    if recipe is not None:
        check_recipe(model, recipe)
    rho, corners = None if recipe is None else rho_of(recipe), None if importance is None else importance.mass
    found = ranks(model)
    plot(found, rho, _kind.title(args, "intrinsic rank of the weights"), _kind.picture_path(args), corners)
    told, said = summary(found, rho, corners), lines(found, rho, corners)
    config: dict[str, Any] = {} if recipe is None else {"recipe_sha": recipe.sha(), "recipe_method": recipe.method}
    config |= {} if importance is None else {"importance": importance.source}
    by_weight = {name: asdict(each) for name, each in found.items()}
    if calibration is not None:
        sparsity, share = args.sparsity or SPARSITY, args.rho or RHO
        dropped = dropped_ranks(model, calibration, sparsity, share)
        told["dropped"] = dropped_summary(dropped, found)
        said += dropped_lines(told["dropped"], sparsity, share)
        by_weight = {name: figures | asdict(dropped[name]) for name, figures in by_weight.items()}
        config |= {"calibration": calibration.meta.label, "sparsity": sparsity, "rho": share}
    metrics: dict[str, Any] = {"summary": told}
    if not args.by_kind:
        metrics["by_weight"] = by_weight
        metrics |= {} if rho is None else {"rho_by_weight": rho}
        metrics |= {} if corners is None else {"corner_by_weight": corners}
    _kind.end(args, timer, model, config, metrics, said)
