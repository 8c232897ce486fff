"""rsparse analyze sensitivity."""

from __future__ import annotations

import argparse

from rsparse.cli import _options as options
from rsparse.cli.analyze import _kind

HELP = "KL to dense when one unit alone is sparse, by block, kind and level; resumes"


def configure(parser: argparse.ArgumentParser) -> None:
    # SmolLM2's first k_proj at 30 % costs 0.0016 nats in bfloat16, 0.000008 in float32.
    _kind.add_common(
        parser,
        dtype="float32",
        dtype_help="float32 (default, on a GPU too: bfloat16's rounding alone is 0.001 to 0.002 nats, more than a cheap unit "
        "costs), bfloat16, float16 or auto",
    )
    parser.add_argument("--data", default="allenai/c4:en", help=f"{options.DATA_HELP} (default %(default)s)")
    _kind.add_windows(parser, 256, 2048)
    parser.add_argument(
        "--levels", default="0.3,0.5,0.7", help="shares of a unit's channels, with commas (default %(default)s)"
    )
    parser.add_argument("--grouping", default="linear", choices=("linear", "group"), help="linear (default), or group")
    parser.add_argument(
        "--criterion", default="magnitude", help=f"what scores a channel: {options.files_of('criteria')} (default %(default)s)"
    )
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    from rsparse import criteria
    from rsparse.analysis.points import Points
    from rsparse.analysis.sensitivity import SensitivitySettings, lines, plot, sensitivity, summary, unit_sizes
    from rsparse.evaluation.describe import short
    from rsparse.records import Run

    timer = Run()
    criteria.check(args.criterion)
    settings = SensitivitySettings(
        tuple(_kind.numbers(args.levels, "--levels", 0, 1)), args.grouping, args.criterion, args.sink_tokens
    )
    _kind.check(args, [args.data])
    model, tokenizer = _kind.load_dense(args)
    windows = _kind.windows_of(args, tokenizer, args.data)
    config = {"data": short(args.data), "seq_len": args.seq_len, "levels": list(settings.levels)}
    config |= {"grouping": args.grouping, "criterion": args.criterion, "sink_tokens": args.sink_tokens}
    kl = sensitivity(model, windows, settings, Points(_kind.points_path(args), config | _kind.stamp(args, model, windows)))
    plot(
        kl,
        _kind.title(args, f"one unit sparse at a time, {windows.numel()} tokens of {short(args.data)}"),
        _kind.picture_path(args),
    )
    sizes = unit_sizes(model, args.grouping)
    metrics = {"tokens": windows.numel(), "summary": summary(kl, sizes), "kl_to_dense_by_unit": kl}
    _kind.end(args, timer, model, config, metrics, lines(kl, sizes))
