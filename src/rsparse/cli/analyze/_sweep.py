"""What the three sweeps have in common."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.cli.analyze import _kind
from rsparse.errors import RSparseError


def add_common(parser: argparse.ArgumentParser, *, calibrated: bool) -> None:
    _kind.add_common(parser)
    parser.add_argument("--data", required=True, metavar="TEXT", help=f"the test text; {options.DATA_HELP}")
    parser.add_argument(
        "--calibration", type=Path, required=calibrated, metavar="DIR", help="statistics of MODEL from `rsparse calibrate`"
    )
    _kind.add_windows(parser, 512, 16384)
    if calibrated:
        options.add_token_policy(parser, "all")
    else:
        parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")
    parser.add_argument(
        "--settle-tokens", type=int, default=8192, help="tokens that solve the thresholds (default %(default)s)"
    )
    options.add_seed(parser)


def check(args: argparse.Namespace) -> Any:
    """The calibration, or None without one; what else can be refused early is."""
    from rsparse.calibration import Calibration

    if args.settle_tokens < 0:
        raise RSparseError(f"--settle-tokens must be 0 (look thresholds up) or more, got {args.settle_tokens}")
    policy_of(args)
    _kind.check(args, [args.data])
    return None if args.calibration is None else Calibration.load(args.calibration)


def policy_of(args: argparse.Namespace) -> Any:
    """Under which the sweep's points run; `token-policy`, which has several, gives each point its own."""
    from rsparse.token_policy import TokenPolicy

    policy = TokenPolicy.parse(getattr(args, "token_policy", "all"), args.sink_tokens)
    if policy.kind == "dense":
        raise RSparseError("--token-policy dense leaves nothing sparse to measure")
    return policy


def start(
    args: argparse.Namespace, model: Any, tokenizer: Any, calibration: Any, extra: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """(sweep, config): `extra` are a kind's own settings, equal for all of its points."""
    from rsparse.analysis.points import Points
    from rsparse.analysis.sweep import Sweep
    from rsparse.evaluation.describe import short

    windows = _kind.windows_of(args, tokenizer, args.data)
    config = {"data": short(args.data), "seq_len": args.seq_len, "sink_tokens": args.sink_tokens, "seed": args.seed}
    config["token_policy"] = str(policy_of(args))
    config |= {
        "settle_tokens": args.settle_tokens,
        "calibration": None if calibration is None else calibration.meta.label,
    } | extra
    stamp = _kind.stamp(args, model, windows)
    stamp["calibrated"] = (
        None if calibration is None else [calibration.meta.weights_sha, calibration.meta.data, calibration.meta.seed]
    )
    points = Points(_kind.points_path(args), config | stamp)
    sweep = Sweep(model, windows, points, policy=policy_of(args), settle_tokens=args.settle_tokens, seed=args.seed)
    return sweep, config


def load(args: argparse.Namespace, calibration: Any) -> tuple[Any, Any]:
    """(dense model, tokenizer) that the calibration is of."""
    from rsparse.fingerprint import weights_sha

    model, tokenizer = _kind.load_dense(args)
    calibration.check_model(model)
    if calibration.meta.weights_sha != weights_sha(model):
        options.say("note: the calibration is of other weights, or of these in another dtype")
    return model, tokenizer
