"""rsparse calibrate."""

from __future__ import annotations

import argparse

from rsparse.cli import _options as options

HELP = "collect a dense model's activation statistics on text"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--data", default=None, help=f"{options.DATA_HELP} (default allenai/c4:en)")
    options.add_calibration_size(parser)
    options.add_seed(parser)
    options.add_output(parser, "folder for the statistics")


def run(args: argparse.Namespace) -> None:
    from rsparse.calibration.text import DEFAULT

    options.check_out(args)
    options.check_data(args)
    model, tokenizer = options.load(args)
    calibration = options.calibrate(args, model, tokenizer, args.data or DEFAULT, args.out)
    options.say(f"{args.out}: {calibration.meta.tokens} tokens at {len(calibration.meta.sites)} inputs")
