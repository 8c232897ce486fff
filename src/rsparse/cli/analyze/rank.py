"""rsparse analyze rank."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rsparse.cli.analyze import _kind

HELP = "the intrinsic rank of each weight, beside a recipe's rho"


def configure(parser: argparse.ArgumentParser) -> None:
    _kind.add_common(parser)
    parser.add_argument("--recipe", type=Path, metavar="R.json", help="draw its rho beside, and correlate the two")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.rank import lines, plot, ranks, rho_of, summary
    from rsparse.recipe import Recipe
    from rsparse.records import Run
    from rsparse.sparse_model import check_recipe

    timer = Run()
    _kind.check(args)
    recipe = None if args.recipe is None else Recipe.load(args.recipe)
    model, _ = _kind.load_dense(args)
    if recipe is not None:
        check_recipe(model, recipe)
    rho = None if recipe is None else rho_of(recipe)
    found = ranks(model)
    plot(found, rho, _kind.title(args, "intrinsic rank of the weights"), _kind.picture_path(args))
    metrics = {"summary": summary(found, rho), "by_weight": {name: asdict(each) for name, each in found.items()}}
    config = {} if recipe is None else {"recipe_sha": recipe.sha(), "recipe_method": recipe.method}
    if rho is not None:
        metrics["rho_by_weight"] = rho
    _kind.end(args, timer, model, config, metrics, lines(found, rho))
