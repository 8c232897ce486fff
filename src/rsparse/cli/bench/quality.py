"""rsparse bench quality."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
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
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")
    parser.add_argument("--calibration-data", default="allenai/c4:en", help="text to calibrate on (default %(default)s)")
    parser.add_argument("--calibration-tokens", type=int, default=32768, help="how many tokens of it (default %(default)s)")
    parser.add_argument("--fit-tokens", type=int, default=262_144, help="tokens of it for +compensate (default %(default)s)")
    parser.add_argument("--settle-tokens", type=int, help="tokens that solve the thresholds (default: all of those)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="stop after so many tokens of each text (default: all)")
    options.add_seed(parser)
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
    settings = _settings(args)
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
    levels, policies = _numbers(args.levels, "--levels"), _policies(args.token_policy, args)
    specs = [MethodSpec.parse(text) for text in args.method or names()]
    task_levels = None if args.task_levels is None else _numbers(args.task_levels, "--task-levels")
    if task_levels is not None and not set(task_levels) <= set(levels):
        raise RSparseError(f"--task-levels {args.task_levels} must be among --levels {args.levels}")
    text_policies = None if args.text_policy is None else _policies(args.text_policy, args)
    return Grid(args.models, specs, levels, policies, args.data, text_policies, wants_tasks, task_levels)


def _check_fits(grid: Any, settings: Any) -> None:
    from rsparse.compensation import FitSettings

    for method in grid.methods:
        if method.fit is not None:
            FitSettings.parse(dict(method.fit), settings.device).check_window(settings.seq_len)


def _settings(args: argparse.Namespace) -> Any:
    from rsparse.benchmark.settings import Settings
    from rsparse.checkpoint.load import pick_device, pick_dtype
    from rsparse.evaluation.tasks import check_fewshot

    check_fewshot(args.num_fewshot, args.task_dir)
    device = pick_device(args.device)
    dtype = str(pick_dtype(args.dtype, device)).removeprefix("torch.")
    return Settings(
        args.calibration_data, args.calibration_tokens, fit_tokens=args.fit_tokens, seq_len=args.seq_len,
        max_tokens=args.max_tokens, settle_tokens=args.settle_tokens, sink_tokens=args.sink_tokens, limit=args.limit,
        num_fewshot=args.num_fewshot, chat_template=args.chat_template, seed=args.seed, dtype=dtype, device=device.type,
        tasks=_task_stamps(args),
    )  # fmt: skip


def _task_stamps(args: argparse.Namespace) -> dict[str, str]:
    """Each task's content, or that it is the harness's own."""
    from rsparse.benchmark.settings import text_stamp
    from rsparse.evaluation.task_files import task_files

    names = options.task_names(args)
    if args.task_dir is not None:
        return {name: text_stamp(str(path)) for name, path in task_files(args.task_dir, list(names) if names else None).items()}
    return dict.fromkeys(names or (), "lm-evaluation-harness")


def _numbers(text: str, option: str) -> list[float]:
    try:
        levels = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1 for level in levels):
        raise RSparseError(f"{option} {text!r} must be numbers between 0 and 1 with commas, as 0.4,0.5")
    return levels


def _policies(text: str, args: argparse.Namespace) -> list[Any]:
    from rsparse.token_policy import TokenPolicy

    return [TokenPolicy.parse(word.strip(), args.sink_tokens) for word in text.split(",") if word.strip()]
