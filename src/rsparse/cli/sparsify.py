"""rsparse sparsify."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from rsparse.cli import _fit
from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "make a sparse checkpoint of a dense model"
CHOICES = ("rho", "criterion", "grouping", "fit")


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--sparsity", type=float, help="share of the blocks' weights not to read, in [0, 1)")
    parser.add_argument(
        "--quality", choices=("fast", "balanced", "best"),
        help="fast: levels within each block; balanced: also between blocks, by the KL to dense; best: the column-norm score, "
        "then compensated, which takes gradients (docs/quality.md has gains and costs)",
    )  # fmt: skip
    parser.add_argument(
        "--method",
        metavar="NAME[:OPTION=VALUE,...][+compensate]",
        help=f"{options.files_of('methods')} (default rsparse); +compensate, with :steps=N and the like, fits the free parts "
        "to the dense model",
    )
    parser.add_argument("--rho", type=float, help="share of the bytes for whole channels; the rest is low-rank")
    parser.add_argument("--criterion", help=f"what scores a channel: {options.files_of('criteria')}")
    parser.add_argument("--grouping", help="linear: a mask for each linear; group: one for linears with the same input")
    parser.add_argument("--fit", help="low-rank factors: svd of the weight, or fitted to dropped inputs (default)")
    parser.add_argument("--recipe", type=Path, metavar="R.json", help="a recipe file instead of --method and its options")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--calibration", type=Path, metavar="DIR", help="statistics from `rsparse calibrate`")
    source.add_argument("--data", help=f"{options.DATA_HELP}; calibrates now (default allenai/c4:en)")
    options.add_calibration_size(parser)
    parser.add_argument(
        "--fit-data", metavar="TEXT", help="text for +compensate and --quality best (default: the calibration's)"
    )
    parser.add_argument("--fit-tokens", type=int, default=262_144, help="how many tokens of it (default %(default)s)")
    parser.add_argument(
        "--settle-tokens", type=int, default=8192, help="tokens that solve the thresholds (default %(default)s)"
    )
    parser.add_argument("--no-check", action="store_true", help="skip the short comparison with dense at the end")
    options.add_seed(parser)
    options.add_json(parser)
    options.add_output(parser, "folder for the checkpoint")


def run(args: argparse.Namespace) -> None:
    from rsparse.calibration import Calibration
    from rsparse.checkpoint import save_pretrained
    from rsparse.compensation import fit_windows
    from rsparse.conversion import sparsify
    from rsparse.fingerprint import weights_sha
    from rsparse.records import Run
    from rsparse.sparse_model import is_sparse

    timer = Run()
    options.check_out(args)
    options.check_json(args)
    recipe = _given_recipe(args)
    options.check_data(args)
    calibration = Calibration.load(args.calibration) if args.calibration else None
    fit = _given_fit(args, calibration)
    model, tokenizer = options.load(args)
    if is_sparse(model):
        raise RSparseError(f"{args.model} is sparse already; sparsify the dense model it came from, or `rsparse densify` it")
    if calibration is not None:
        calibration.check_model(model)
        if calibration.meta.weights_sha != weights_sha(model):
            options.say("note: the calibration is of other weights, or of these in another dtype")
    if fit is not None:
        texts = fit_windows(fit.data, tokenizer, fit.seq_len, args.fit_tokens)
    kept = _state_file(args)
    recipe, calibration = _recipe_and_calibration(args, model, tokenizer, recipe, calibration, kept)
    sparsify(model, recipe, calibration, settle_tokens=args.settle_tokens, backend=args.backend, seed=args.seed)
    config, metrics = {}, {}
    if fit is not None:
        config = _fit.config_of(fit.settings)
        metrics = _fit.run_fit(args, model, fit.data, texts, fit.settings, sink_tokens=fit.sink_tokens)
    if calibration is not None and not args.no_check:
        from rsparse.evaluation.check import quick_check

        check = quick_check(model, calibration)
        options.say(check.line(recipe.sparsity))
        metrics |= check.result.metrics()
    save_pretrained(model, args.out, tokenizer, overwrite=args.overwrite)
    if fit is not None:
        _fit.state_file(args).unlink(missing_ok=True)
    if kept is not None:
        kept.unlink(missing_ok=True)
    options.write_record(args, timer, model, {"token_policy": "all"} | config, metrics)
    options.say(f"{args.out}: {recipe.method} at sparsity {recipe.sparsity:g}; try `rsparse generate {args.out} --prompt ...`")


def _given_recipe(args: argparse.Namespace) -> Any:
    """The --recipe file, or None where the options describe one. Raises RSparseError for options that no model would take."""
    from rsparse import methods
    from rsparse.conversion import check_uncompensated
    from rsparse.recipe import Recipe

    if args.settle_tokens < 0:
        raise RSparseError(f"settle_tokens must be 0 (look thresholds up) or more, got {args.settle_tokens}")
    if args.recipe is not None:
        if extra := [name for name in ("sparsity", "method", "quality", *CHOICES) if getattr(args, name) is not None]:
            raise RSparseError(f"--recipe already says it all; leave out --{extra[0]}")
        recipe = Recipe.load(args.recipe)
        check_uncompensated(recipe)
        return recipe
    if args.sparsity is None:
        raise RSparseError("say how sparse with --sparsity, or give a --recipe")
    if args.quality and args.method:
        raise RSparseError("--quality chooses the method; leave out one of the two")
    method, chosen = _method(args)
    methods.check(method, args.sparsity, chosen)
    if not methods.makes_recipe(method):
        raise RSparseError(
            f"method {method} is no recipe for the model's linears, and makes no checkpoint; compare it with others in "
            "`rsparse bench quality`, or use it in Python (rsparse.make_recipe, rsparse.sparsify)"
        )
    return None


class _Fit(NamedTuple):
    """A compensation's settings, its text and the form of its windows."""

    settings: Any
    data: str
    seq_len: int
    sink_tokens: int


def _given_fit(args: argparse.Namespace, calibration: Any) -> _Fit | None:
    """What the method asks for, None where it asks for no compensation. Raises RSparseError for what no fit could use: all
    that comes before it takes long."""
    from rsparse.calibration.text import DEFAULT, TextSource
    from rsparse.checkpoint.load import pick_device
    from rsparse.compensation import FitSettings

    spec = None if args.recipe is not None else _spec(args)
    if spec is None or spec.fit is None:
        if args.fit_data is not None:
            raise RSparseError("--fit-data is for a compensation, and none is asked for; leave it out or add +compensate")
        return None
    if args.sparsity == 0:
        raise RSparseError("sparsity 0 leaves nothing to compensate")
    settings = FitSettings.parse({"seed": str(args.seed)} | dict(spec.fit), pick_device(args.device).type)
    of = args if calibration is None else calibration.meta
    _fit.check_size(settings, of.seq_len, args.fit_tokens, "--fit-tokens")
    data = args.fit_data or of.data or DEFAULT
    try:
        TextSource(data).check()
    except RSparseError as error:
        if args.fit_data is not None or calibration is None:
            raise
        raise RSparseError(f"{error}; the calibration was made on it, name a text to compensate on with --fit-data") from None
    return _Fit(settings, data, of.seq_len, of.sink_tokens)


def _spec(args: argparse.Namespace) -> Any:
    from rsparse.methods import MethodSpec

    return MethodSpec.parse(args.quality or args.method or "rsparse")


def _method(args: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Name and options: those of --method itself, --rho and the like, and --seed where it draws."""
    from rsparse.methods import seeded

    spec = _spec(args)
    chosen = {name: getattr(args, name) for name in CHOICES if getattr(args, name) is not None}
    if twice := sorted(set(chosen) & set(dict(spec.options))):
        raise RSparseError(f"{twice[0]} is given twice, in --method and as --{twice[0]}")
    return spec.name, seeded(spec.name, args.seed) | dict(spec.options) | chosen


def _state_file(args: argparse.Namespace) -> Path | None:
    """Where the method keeps what it has measured until the checkpoint is there; None where it keeps nothing."""
    from rsparse.methods import resumes

    if args.recipe is not None or not resumes(_spec(args).name):
        return None
    out: Path = args.out
    return out.with_name(out.name + ".allocation")


def _recipe_and_calibration(
    args: argparse.Namespace, model: Any, tokenizer: Any, recipe: Any, calibration: Any, kept: Path | None
) -> tuple[Any, Any]:
    """What is not given is made: the recipe first, unless its method looks at activations."""
    from rsparse.calibration.text import DEFAULT
    from rsparse.conversion import needs_calibration
    from rsparse.methods import make_recipe, observes
    from rsparse.sparse_model import check_recipe

    method, chosen = ("", {}) if recipe is not None else _method(args)
    if recipe is None and not observes(method):
        recipe = make_recipe(model, method, args.sparsity, **chosen)
    if recipe is not None:
        check_recipe(model, recipe)
    if calibration is None and (args.data or recipe is None or needs_calibration(recipe)):
        calibration = options.calibrate(args, model, tokenizer, args.data or DEFAULT, None)
    if recipe is None:
        there = kept is not None and kept.exists()
        recipe = make_recipe(model, method, args.sparsity, calibration=calibration, state_file=kept, **chosen)
        if there:  # not before, or a state that is refused had two lines
            options.say(f"went on with {kept}")
    return recipe, calibration
