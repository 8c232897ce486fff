"""Options that make a bench's protocol, and its settings."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError


def add(parser: argparse.ArgumentParser) -> None:
    """All but what `add_tasks` and `add_machine` have."""
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")
    parser.add_argument("--calibration-data", default="allenai/c4:en", help="text to calibrate on (default %(default)s)")
    parser.add_argument("--calibration-tokens", type=int, default=32768, help="how many tokens of it (default %(default)s)")
    parser.add_argument("--settle-tokens", type=int, help="tokens that solve the thresholds (default: all of those)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="stop after so many tokens of each text (default: all)")
    options.add_seed(parser)


def settings(args: argparse.Namespace, tasks: Mapping[str, str], **changes: Any) -> Any:
    """What all cells of a folder have in common; `tasks` are stamps by name. Raises RSparseError for values out of range."""
    from rsparse.benchmark.settings import Settings
    from rsparse.checkpoint.load import pick_device, pick_dtype
    from rsparse.evaluation.tasks import check_fewshot

    check_fewshot(args.num_fewshot, args.task_dir)
    device = pick_device(args.device)
    dtype = str(pick_dtype(args.dtype, device)).removeprefix("torch.")
    return Settings(
        args.calibration_data, args.calibration_tokens, seq_len=args.seq_len, max_tokens=args.max_tokens,
        settle_tokens=args.settle_tokens, sink_tokens=args.sink_tokens, limit=args.limit, num_fewshot=args.num_fewshot,
        chat_template=args.chat_template, seed=args.seed, dtype=dtype, device=device.type, tasks=tasks, **changes,
    )  # fmt: skip


def task_stamps(args: argparse.Namespace) -> dict[str, str]:
    """Each task's content, or that it is the harness's own."""
    from rsparse.benchmark.settings import text_stamp
    from rsparse.evaluation.task_files import task_files

    names = options.task_names(args)
    if args.task_dir is not None:
        return {name: text_stamp(str(path)) for name, path in task_files(args.task_dir, list(names) if names else None).items()}
    return dict.fromkeys(names or (), "lm-evaluation-harness")


def numbers(text: str, option: str) -> list[float]:
    """Sparsities with commas."""
    try:
        levels = [float(word) for word in text.split(",") if word.strip()]
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1 for level in levels):
        raise RSparseError(f"{option} {text!r} must be numbers between 0 and 1 with commas, as 0.4,0.5")
    return levels


def whole_numbers(text: str, option: str, least: int) -> list[int]:
    """Whole numbers from `least` on, with commas, each once."""
    try:
        found = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = []
    if not found or min(found) < least or len(set(found)) < len(found):
        raise RSparseError(f"{option} {text!r} must be whole numbers from {least} on, with commas, each once")
    return found


def policies(args: argparse.Namespace, text: str) -> list[Any]:
    """Token policies with commas."""
    from rsparse.token_policy import TokenPolicy

    return [TokenPolicy.parse(word.strip(), args.sink_tokens) for word in text.split(",") if word.strip()]
