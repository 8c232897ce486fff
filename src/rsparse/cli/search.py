"""rsparse search."""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from rsparse.atomic import check_writable
from rsparse.cli import _options as options
from rsparse.errors import RSparseError

SETTINGS = ("sparsity", "population", "generations", "samples", "objective", "criterion", "fit", "grouping", "seed")
HELP = "find each unit's share between whole channels and low rank (Algorithm 1); resumes where it stopped"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--calibration", type=Path, metavar="DIR", required=True, help="statistics from `rsparse calibrate`")
    parser.add_argument("--sparsity", type=float, required=True, help="share of the blocks' weights not to read, in (0, 1)")
    parser.add_argument("--population", type=int, default=32, help="candidates in a generation (default %(default)s)")
    parser.add_argument("--generations", type=int, default=5, help="the random first one included (default %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="calibration windows that judge one (default %(default)s)")
    parser.add_argument("--objective", default="perplexity", help="perplexity (default), or kl: distance from the dense model")
    parser.add_argument("--criterion", default="paper", help=f"what scores a channel: {options.files_of('criteria')}")
    parser.add_argument("--fit", default="svd", help="low-rank factors: svd of the weight (default), or dropped")
    parser.add_argument("--grouping", default="linear", help="linear (default), or group: one rho for linears of one input")
    parser.add_argument("--storage", metavar="URL", help="database of the study, or journal:PATH (default: SQLite beside -o)")
    parser.add_argument("--study", default="search", help="its name there (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes on this machine; others may join by --storage")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="best by generation, and rho by block and unit")
    parser.add_argument("--overwrite", action="store_true", help="replace R.json where it exists")
    parser.add_argument("--join", action="store_true", help="only help with the study of another process: writes no recipe")
    parser.add_argument("-o", "--out", type=Path, metavar="R.json", help="recipe for `rsparse sparsify --recipe`")
    options.add_seed(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    from rsparse.calibration import Calibration
    from rsparse.records import Run
    from rsparse.search import SearchSettings, check_study, search

    timer = Run()
    options.check_json(args)
    _check_paths(args)
    settings = SearchSettings(**{name: getattr(args, name) for name in SETTINGS})
    calibration = Calibration.load(args.calibration)
    settings.check_calibration(calibration)
    storage = args.storage or f"sqlite:///{args.out.with_suffix('.db')}"
    check_study(calibration, settings, storage, args.study)
    helpers, over = _start_helpers(args, storage), threading.Event()
    watchers = [threading.Thread(target=_watch, args=(helper, over), daemon=True) for helper in helpers]
    for watcher in watchers:
        watcher.start()
    try:
        model, _ = options.load(args)
        result = search(model, calibration, settings, storage=storage, study=args.study, begin=_begin, report=_report)
    finally:
        over.set()
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()
        for watcher in watchers:
            watcher.join()
    if args.join:
        return
    _print(result, settings.objective)
    result.recipe.save(args.out)
    if args.plot:
        from rsparse.analysis.search_plot import plot

        plot(result.recipe, result.history, settings.objective, args.plot)
    config = {"preset": "searched", "recipe_sha": result.recipe.sha(), "calibration": calibration.meta.label}
    config |= settings.known() | {"workers": args.workers}
    metrics = {"fitness": result.fitness, "history": result.history, "sparse_only_fitness": result.sparse_only}
    metrics |= {"evaluations": result.evaluations, "search_seconds": round(result.seconds, 2)}
    options.write_record(args, timer, model, config, metrics)
    options.say(
        f"{args.out}: next, `rsparse sparsify {args.model} --recipe {args.out} --calibration {args.calibration} -o DIR`"
    )


def _check_paths(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise RSparseError(f"--workers must be 1 or more, got {args.workers}")
    if args.join:
        if args.out or not args.storage:
            raise RSparseError("--join takes part in the study of a --storage and writes no -o")
        return
    if args.out is None:
        raise RSparseError("name the recipe's file with -o")
    if args.out.is_dir():
        raise RSparseError(f"-o {args.out} is a folder; name a file")
    if args.out.exists() and not args.overwrite:
        raise RSparseError(f"{args.out} exists; --overwrite replaces it")
    check_writable(args.out)
    if not args.storage and args.out.suffix == ".db":
        raise RSparseError(f"-o {args.out}: the study is kept in this file; choose another ending or a --storage")
    if args.plot:
        from rsparse.analysis.recipe_plot import check_plot

        check_plot(args.plot)
        check_writable(args.plot)


def _start_helpers(args: argparse.Namespace, storage: str) -> list[subprocess.Popen[str]]:
    """Further workers, which join the same study. On several GPUs each takes its own."""
    import torch

    gpus = torch.cuda.device_count() if args.device in ("auto", "cuda") else 0
    helpers = []
    for number in range(1, args.workers):
        given = {name: getattr(args, name) for name in (*SETTINGS, "calibration", "study", "dtype", "backend")}
        given |= {"storage": storage, "device": f"cuda:{number % gpus}" if gpus else args.device}
        words = [f"--{name}={value}" for name, value in given.items()]
        command = [sys.executable, "-m", "rsparse.cli", "search", args.model, "--join", *words]
        helpers.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace"))
    return helpers


def _watch(helper: subprocess.Popen[str], over: threading.Event) -> None:
    """Read what a helper says, and pass on its last line where it fails before the search is `over`."""
    last = "it said nothing"
    for line in helper.stderr or ():
        last = line.strip() or last
    if helper.wait() and not over.is_set():
        options.say(f"a helper ended early (exit code {helper.returncode}: {last}); the search goes on without it")


def _begin(done: int, total: int) -> None:
    options.say(f"[{done}/{total}] candidates are judged")


def _report(progress: Any) -> None:
    options.say(
        f"[{progress.done}/{progress.total}] generation {progress.generation}: best {progress.best:.4f}, "
        f"{progress.per_minute:.1f} evaluations a minute, about {progress.seconds_left / 60:.0f} min left"
    )


def _print(result: Any, objective: str) -> None:
    import math

    def figure(value: float) -> str:
        return f"perplexity {math.exp(value):.3f}" if objective == "perplexity" else f"KL {value:.4f}"

    units = result.recipe.units.values()
    whole = sum(unit.rho == 1 for unit in units)
    print(f"best        {figure(result.fitness)}   (on the calibration windows that judged)")
    print(f"sparse-only {figure(result.sparse_only)}   (rho 1 everywhere, the same bytes)")
    print(f"rho is 1 in {whole} of {len(units)} units, {sum(unit.rho for unit in units) / len(units):.3f} in the mean")
