"""rsparse bench parity."""

from __future__ import annotations

import argparse

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "whether the decode step (on a GPU: its kernels) computes what the model's own modules compute"
WHY = (
    "Rounding decides masks: a score next to its threshold falls on the other side where the sums before it are rounded "
    "otherwise. So two correct evaluations of a sparse model in 16 bits are far apart token by token, and equal in the mean. "
    "The step runs twice: with the masks of the modules, where it must agree with them closely, and with its own."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = WHY
    options.add_model(parser)
    parser.add_argument("--text", required=True, metavar="TEXT", help=options.DATA_HELP)
    parser.add_argument("--prompt-tokens", type=int, default=64, help="dense, not scored (default %(default)s)")
    parser.add_argument("--window-tokens", type=int, default=384, help="prompt and what follows it (default %(default)s)")
    parser.add_argument("--windows", type=int, default=24, help="(default %(default)s)")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    from rsparse.benchmark.parity.figures import headline
    from rsparse.benchmark.parity.measure import Plan, check, measure
    from rsparse.calibration.text import TextSource
    from rsparse.checkpoint.load import pick_device, pick_dtype
    from rsparse.evaluation.describe import model_config, short
    from rsparse.evaluation.measure import text_windows
    from rsparse.ops import dispatch
    from rsparse.records import Run, write

    timer = Run()
    options.check_json(args)
    plan = Plan(args.prompt_tokens, args.window_tokens, args.windows)
    TextSource(args.text).check()
    device = pick_device(args.device)
    backend = dispatch.resolve(args.backend, device, pick_dtype(args.dtype, device)).name
    model, tokenizer = options.load(argparse.Namespace(**vars(args) | {"backend": "reference"}))
    check(model, plan, backend)
    windows = text_windows(args.text, tokenizer, plan.window_tokens, plan.window_tokens * plan.windows)
    if len(windows) < plan.windows:
        raise RSparseError(
            f"{short(args.text)} has {len(windows)} of {plan.windows} windows of {plan.window_tokens} tokens; "
            "give more text, or lower --windows or --window-tokens"
        )
    metrics = measure(model, windows, plan.prompt_tokens, backend).metrics()
    print(headline(metrics, backend))
    if args.json is not None:
        config = model_config(model, args.model) | {"suite": "parity", "data": short(args.text), "token_policy": "decode"}
        write(args.json, timer.record(config | vars(plan), metrics, backend=backend))
