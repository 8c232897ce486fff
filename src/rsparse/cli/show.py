"""rsparse show."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rsparse.errors import RSparseError
from rsparse.recipe import Recipe

HELP = "print a checkpoint's, recipe's or calibration's contents; --plot draws the recipe"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="checkpoint folder, recipe .json, or calibration folder")
    parser.add_argument("--units", action="store_true", help="a line for each unit instead of one for each kind")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="heat map of sparsity, rho and threshold by block and unit")
    parser.add_argument("--save", type=Path, metavar="R.json", help="write the recipe, for `rsparse sparsify --recipe`")


def run(args: argparse.Namespace) -> None:
    path = Path(args.path)
    if args.plot:
        from rsparse.analysis.recipe_plot import check_plot

        check_plot(args.plot)
    if (path / "calibration.json").is_file():
        if args.plot:
            raise RSparseError("--plot draws recipes; this is a calibration")
        _show_calibration(path)
        return
    recipe = read_recipe(path)
    if path.is_dir():
        _check_weights(path)
    print(f"{recipe.method} for {recipe.model or recipe.model_type}, grouping {recipe.grouping}, low-rank fit {recipe.fit}")
    print(f"asked sparsity {recipe.sparsity:.4f} over {len(recipe.units)} units, thresholds {_settled(recipe)}")
    if compensated := sum(unit.compensated for unit in recipe.units.values()):
        print(f"compensated in {compensated} of them, fitted on {recipe.compensation or 'a text that it does not name'}")
    print()
    from rsparse.analysis.recipe_table import kind_rows, unit_rows

    for row in unit_rows(recipe) if args.units else kind_rows(recipe):
        print(row)
    if args.plot:
        from rsparse.analysis.recipe_plot import plot_recipe

        plot_recipe(recipe, args.plot)
        print(f"\nplot: {args.plot}")
    if args.save:
        recipe.save(args.save)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a checkpoint folder or a JSON file. Raises RSparseError where there is none."""
    if not path.exists():
        raise RSparseError(f"{path} does not exist")
    if not path.is_dir():
        return Recipe.load(path)
    try:
        config = dict(json.loads((path / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise RSparseError(f"{path} holds neither a readable config.json nor a calibration.json") from None
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") != "rsparse":
        raise RSparseError(f"{path} is a dense model: its config.json has no rsparse recipe")
    return Recipe.from_dict(quantization.get("recipe"), where=f"recipe in {path / 'config.json'}")


def _check_weights(folder: Path) -> None:
    """A recipe whose weights are gone or cut short is no checkpoint; reads headers alone."""
    from rsparse.shards import check_shards

    if not check_shards(folder):
        raise RSparseError(f"checkpoint {folder} has neither model.safetensors nor its index; copy or make it again")


def _settled(recipe: Recipe) -> str:
    if not recipe.settled:
        return "not solved yet"
    return f"solved on {recipe.calibration}" if recipe.calibration else "none needed"


def _show_calibration(path: Path) -> None:
    from rsparse.calibration import Calibration

    calibration = Calibration.load(path)
    for name, value in vars(calibration.meta).items():
        print(f"{name:<12} {len(value) if name == 'sites' else value}")
    print(f"{'heldout':<12} {calibration.heldout.numel()} tokens")
