"""rsparse bench quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.cli import _protocol as protocol
from rsparse.errors import RSparseError

HELP = "perplexity and tasks of models × methods × levels: a record a cell, a table and a plot"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help=options.MODEL_HELP)
    options.add_machine(parser)
    parser.add_argument(
        "--method", action="append", metavar="NAME[:OPTION=VALUE,...][+compensate]",
        help="or a preset: fast, balanced, best; repeat for several (default: every method; searched and joint take longest)",
    )  # fmt: skip
    parser.add_argument("--levels", default="0.4,0.5", help="sparsities, with commas (default %(default)s)")
    parser.add_argument("--data", action="append", default=[], metavar="TEXT", help=f"{options.DATA_HELP}; repeat for several")
    options.add_tasks(parser)
    parser.add_argument("--task-levels", help="run the tasks at these levels alone (default: all)")
    parser.add_argument("--token-policy", default="all", help="policies, with commas (default %(default)s)")
    parser.add_argument("--text-policy", help="policies for the texts, where they are others than for the tasks")
    protocol.add(parser)
    parser.add_argument(
        "--fit-tokens", type=int, default=262_144, help="tokens of the calibration text for +compensate (default %(default)s)"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of records; run again to resume")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.pareto import plot
    from rsparse.analysis.quality_table import load_records, markdown
    from rsparse.atomic import check_writable, write_text
    from rsparse.benchmark.quality import QualityBench
    from rsparse.calibration.text import TextSource

    grid = _grid(args)
    if args.out.exists() and not args.out.is_dir():
        raise RSparseError(f"{args.out} is a file; name a folder to write to")
    check_writable(args.out / "settings.json")
    for text in [*args.data, args.calibration_data]:
        TextSource(text).check()
    settings = protocol.settings(args, protocol.task_stamps(args), fit_tokens=args.fit_tokens)
    _check_fits(grid, settings)
    tasks: list[Any] = []
    if grid.tasks:
        from rsparse.evaluation.tasks import load_tasks

        tasks = load_tasks(options.task_names(args), args.task_dir)

    def load(model: str) -> tuple[Any, Any]:
        return options.load(argparse.Namespace(**vars(args) | {"model": model}))

    failed: list[str] = []
    try:
        failed = QualityBench(grid, settings, args.out, load, tasks).run()
    finally:  # after Ctrl-C too
        if records := load_records(args.out):
            write_text(args.out / "table.md", markdown(records))
            plot(records, args.out / "pareto.png")
            print(f"{args.out}: {len(records)} records, table.md and pareto.png")
    if failed:
        raise RSparseError(f"{len(failed)} of the cells failed, the first with: {failed[0]}")


def _grid(args: argparse.Namespace) -> Any:
    from rsparse.benchmark.grid import Grid
    from rsparse.methods import MethodSpec, names

    wants_tasks = args.tasks is not None or args.task_dir is not None
    if not (args.data or wants_tasks):
        raise RSparseError("say what to measure: --data TEXT, --tasks NAMES or --task-dir DIR")
    levels, policies = protocol.numbers(args.levels, "--levels"), protocol.policies(args, args.token_policy)
    specs = [MethodSpec.parse(text) for text in args.method or names()]
    task_levels = None if args.task_levels is None else protocol.numbers(args.task_levels, "--task-levels")
    if task_levels is not None and not set(task_levels) <= set(levels):
        raise RSparseError(f"--task-levels {args.task_levels} must be among --levels {args.levels}")
    text_policies = None if args.text_policy is None else protocol.policies(args, args.text_policy)
    return Grid(args.models, specs, levels, policies, args.data, text_policies, wants_tasks, task_levels)


def _check_fits(grid: Any, settings: Any) -> None:
    from rsparse.compensation import FitSettings

    for method in grid.methods:
        if method.fit is not None:
            FitSettings.parse(dict(method.fit), settings.device).check_window(settings.seq_len)
