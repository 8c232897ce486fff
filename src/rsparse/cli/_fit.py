"""Options and course of a fit, for the verbs that compensate."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError


def add_fit(parser: argparse.ArgumentParser) -> None:
    """Settings of a fit; what is not given is the device's default."""
    parser.add_argument("--steps", type=int, help="optimiser steps at most (default: 200, on a CPU 60)")
    parser.add_argument("--batch-tokens", type=int, help="tokens of one step (default: 4096, on a CPU 1024)")
    parser.add_argument(
        "--learning-rate", type=float, help="in units of an output channel's spread (default: 0.0025, on a CPU 0.005)"
    )
    parser.add_argument("--factor-rate", type=float, help="that of low-rank factors, times the other (default: 4, on a CPU 1)")
    parser.add_argument("--levels", action=argparse.BooleanOptionalAction, help="also move bytes between units (default: yes)")
    parser.add_argument("--factors", action=argparse.BooleanOptionalAction, help="also fit low-rank factors (default: yes)")
    parser.add_argument("--check-every", type=int, help="steps between looks at the held-out text (default: 20)")
    parser.add_argument("--patience", type=int, help="checks without a better state before it ends (default: 5)")


def settings_of(args: argparse.Namespace) -> Any:
    """The FitSettings that the options describe."""
    from rsparse.checkpoint.load import pick_device
    from rsparse.compensation import FitSettings

    chosen = FitSettings.for_device(pick_device(args.device).type)
    names = [field.name for field in dataclasses.fields(FitSettings)]
    given = {name: value for name in names if (value := getattr(args, name, None)) is not None}
    return dataclasses.replace(chosen, **given)


def state_file(args: argparse.Namespace) -> Path:
    """Where a fit for the output folder keeps its state until it is done."""
    out: Path = args.out
    return out.with_name(out.name + ".fit")


def check_size(settings: Any, seq_len: int, tokens: int, option: str) -> None:
    """Refuse windows that are no fit's before the work: `tokens`, from `option`, are two of them or more."""
    settings.check_window(seq_len)
    if tokens < 2 * seq_len:
        raise RSparseError(f"{option} must be {2 * seq_len} or more, two windows of {seq_len}; got {tokens}")


def run_fit(
    args: argparse.Namespace, model: Any, data: str, texts: tuple[Any, Any], settings: Any, *, sink_tokens: int
) -> dict[str, Any]:
    """Compensate `model` in place on `texts`, windows and held-out ones of `data`, with its progress on stderr. Its metrics."""
    from rsparse.compensation import compensate
    from rsparse.evaluation.describe import short
    from rsparse.memory import peak_bytes, reset_peak

    windows, heldout = texts
    file = state_file(args)
    if file.exists():
        options.say(f"goes on with {file}")
    label = f"{short(data)}, {windows.numel()} tokens"
    reset_peak(model.device)
    result = compensate(
        model, windows, heldout, settings, sink_tokens=sink_tokens, label=label, state_file=file, report=_report
    )
    return {
        "heldout_kl_before": result.before,
        "heldout_kl": result.kl,
        "kept_step": result.step,
        "history": result.history,
        "fit_seconds": round(result.seconds, 2),
        "fit_peak_bytes": peak_bytes(model.device),
    }


def config_of(settings: Any) -> dict[str, Any]:
    return {"fit_settings": dataclasses.asdict(settings)}


def _report(progress: Any) -> None:
    options.say(
        f"[{progress.step}/{progress.steps}] KL {progress.batch_kl:.4f} on the batches, {progress.heldout_kl:.4f} held out, "
        f"about {progress.seconds_left / 60:.0f} min left"
    )
