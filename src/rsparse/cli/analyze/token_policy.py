"""rsparse analyze token-policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from rsparse.cli.analyze import _kind, _sweep

HELP = "one sparse model under several token policies: how much of the loss a policy shows; resumes"


def configure(parser: argparse.ArgumentParser) -> None:
    _sweep.add_common(parser, calibrated=False)
    parser.add_argument("--recipe", type=Path, metavar="R.json", help="makes MODEL sparse, where it is a dense one")
    parser.add_argument(
        "--policies", default="all,decode,last_fraction:0.5,last_fraction:0.25,last_fraction:0.1",
        help="with commas (default %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.sweep import apply_recipe
    from rsparse.analysis.sweep_views import plot_policies, policy_lines
    from rsparse.cli import _options as options
    from rsparse.conversion import needs_calibration
    from rsparse.errors import RSparseError
    from rsparse.evaluation.describe import short
    from rsparse.progress import progress
    from rsparse.recipe import Recipe
    from rsparse.records import Run
    from rsparse.sparse_model import is_sparse, state
    from rsparse.token_policy import TokenPolicy

    timer = Run()
    words = list(dict.fromkeys(word.strip() for word in args.policies.split(",") if word.strip()))
    policies = [TokenPolicy.parse(word, args.sink_tokens) for word in words]
    if not policies:
        raise RSparseError("--policies names no token policy")
    recipe = None if args.recipe is None else Recipe.load(args.recipe)
    calibration = _sweep.check(args)
    if recipe is not None and calibration is None and needs_calibration(recipe):
        raise RSparseError("this recipe's thresholds or factors come from a calibration; name it with --calibration")
    model, tokenizer = options.load(args)
    if recipe is not None:
        apply_recipe(model, recipe, calibration, args.settle_tokens, args.seed)
    if not is_sparse(model):
        raise RSparseError(f"{short(args.model)} is dense; name a sparse checkpoint, or make it sparse with --recipe")
    # A recipe file by its own: thresholds that are solved anew need not come out the same to the last digit.
    sha = state(model).config()["recipe_sha"] if recipe is None else recipe.sha()
    sweep, config = _sweep.start(args, model, tokenizer, calibration, {"recipe_sha": sha})
    config.pop("calibration")  # that of the checkpoint
    points = {}
    with progress(len(policies), "analyze", unit="point") as bar:
        for policy in policies:
            points[str(policy)] = sweep.under(policy)
            bar.update()
    what = f"token policies, {sweep.windows.numel()} tokens of {short(args.data)}"
    plot_policies(points, _kind.title(args, what), _kind.picture_path(args))
    config |= {"token_policy": [str(policy) for policy in policies]}
    _kind.end(args, timer, model, config, {"tokens": sweep.windows.numel(), "points": points}, policy_lines(points))
