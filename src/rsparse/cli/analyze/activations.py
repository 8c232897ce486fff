"""rsparse analyze activations."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rsparse.cli import _options as options
from rsparse.cli.analyze import _kind

HELP = "histograms of |x| at every input, and the share of its mass in few channels"


def configure(parser: argparse.ArgumentParser) -> None:
    _kind.add_common(parser)
    parser.add_argument(
        "--calibration", type=Path, required=True, metavar="DIR", help="statistics of MODEL from `rsparse calibrate`"
    )


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.activations import activations, lines, plot, summary
    from rsparse.calibration import Calibration
    from rsparse.fingerprint import weights_sha
    from rsparse.records import Run

    timer = Run()
    _kind.check(args)
    calibration = Calibration.load(args.calibration)
    model, _ = _kind.load_dense(args)
    calibration.check_model(model)
    if calibration.meta.weights_sha != weights_sha(model):
        options.say("note: the calibration is of other weights, or of these in another dtype")
    found = activations(calibration)
    meta = calibration.meta
    plot(found, _kind.title(args, f"activations on {meta.label}"), _kind.picture_path(args))
    config = {"data": meta.label, "calibration": meta.label, "seq_len": meta.seq_len, "sink_tokens": meta.sink_tokens}
    metrics = {
        "tokens": meta.tokens,
        "summary": summary(found),
        "by_input": {name: asdict(each) for name, each in found.items()},
    }
    _kind.end(args, timer, model, config, metrics, lines(found))
