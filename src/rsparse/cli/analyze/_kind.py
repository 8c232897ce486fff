"""Options that several kinds share, and how a kind ends: a picture, a record, and what to see in it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError


def add_common(parser: argparse.ArgumentParser, *, dtype: str = "auto", dtype_help: str = options.DTYPE_HELP) -> None:
    options.add_model(parser, dtype=dtype, dtype_help=dtype_help)
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder for KIND.png and KIND.json; kinds may share one"
    )


def add_windows(parser: argparse.ArgumentParser, seq_len: int, max_tokens: int) -> None:
    parser.add_argument("--seq-len", type=int, default=seq_len, help="tokens in a window (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=max_tokens, help="tokens of the text (default %(default)s)")


def picture_path(args: argparse.Namespace) -> Path:
    return Path(args.out) / f"{args.kind}.png"


def record_path(args: argparse.Namespace) -> Path:
    return Path(args.out) / f"{args.kind}.json"


def points_path(args: argparse.Namespace) -> Path:
    """The folder of the points of a kind that resumes."""
    return Path(args.out) / args.kind


def check(args: argparse.Namespace, texts: Sequence[str] = ()) -> None:
    """Refuse before the model is loaded: a folder that cannot be written, one of another model, texts that cannot be read."""
    from rsparse.atomic import check_writable
    from rsparse.calibration.text import TextSource
    from rsparse.evaluation.describe import short

    if args.out.exists() and not args.out.is_dir():
        raise RSparseError(f"{args.out} is a file; name a folder to write to")
    path = record_path(args)
    check_writable(path)
    if path.is_dir():
        raise RSparseError(f"{path} is a folder; choose another -o")
    if path.exists():
        try:
            model = json.loads(path.read_text(encoding="utf-8"))["config"]["model"]
        except (ValueError, KeyError, TypeError):
            raise RSparseError(f"{path} is not a record; move it away") from None
        if model != short(args.model):
            raise RSparseError(f"{path} is of {model}; choose another -o for {short(args.model)}")
    if hasattr(args, "seq_len"):
        check_windows(args)
    for text in texts:
        TextSource(text).check()


def check_windows(args: argparse.Namespace) -> None:
    if args.seq_len < 2:
        raise RSparseError(f"--seq-len must be 2 or more, got {args.seq_len}")
    if getattr(args, "sink_tokens", 0) < 0 or getattr(args, "sink_tokens", 0) >= args.seq_len:
        raise RSparseError(f"--sink-tokens must be from 0 to below the window's {args.seq_len}, got {args.sink_tokens}")
    if getattr(args, "max_tokens", args.seq_len) < args.seq_len:
        raise RSparseError(f"--max-tokens {args.max_tokens} is less than one window of --seq-len {args.seq_len}")


def load_dense(args: argparse.Namespace) -> tuple[Any, Any]:
    """(model, tokenizer); raises RSparseError for a sparse model."""
    from rsparse.analysis.walk import check_dense
    from rsparse.models.layout import sites

    model, tokenizer = options.load(args)
    check_dense(model)
    sites(model)
    return model, tokenizer


def windows_of(args: argparse.Namespace, tokenizer: Any, text: str) -> Any:
    from rsparse.evaluation.measure import text_windows

    return text_windows(text, tokenizer, args.seq_len, args.max_tokens)


def stamp(args: argparse.Namespace, model: Any, windows: Any) -> dict[str, Any]:
    """What the points of a folder must have in common beside their settings: the model, and the tokens of --data."""
    from rsparse.benchmark.settings import model_stamp, text_stamp

    return {
        "model": model_stamp(args.model),
        "text": text_stamp(args.data),
        "dtype": str(model.dtype),
        "tokens": windows.numel(),
    }


def numbers(text: str, option: str, low: float, high: float, *, ends: bool = False) -> list[float]:
    """Numbers with commas, each between `low` and `high`, those two with `ends`; ascending, without repetition."""
    try:
        found = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        found = []
    if not found or not all(low <= each <= high if ends else low < each < high for each in found):
        span = f"from {low:g} to {high:g}" if ends else f"between {low:g} and {high:g}"
        raise RSparseError(f"{option} {text!r} must be numbers {span} with commas")
    return found


def whole(text: str, option: str) -> list[int]:
    """Whole numbers from 1 on, with commas; ascending."""
    found = numbers(text, option, 1, 1e9, ends=True)
    if any(each != int(each) for each in found):
        raise RSparseError(f"{option} {text!r} must be whole numbers with commas")
    return [int(each) for each in found]


def title(args: argparse.Namespace, what: str) -> str:
    """For the picture."""
    from rsparse.evaluation.describe import short

    return f"{short(args.model).removesuffix('.gguf')}: {what}"


def end(
    args: argparse.Namespace, run: Any, model: Any, config: dict[str, Any], metrics: dict[str, Any], lines: Sequence[str]
) -> None:
    """Write the record beside the picture, and say what is to be seen."""
    from rsparse.evaluation.describe import backend, model_config
    from rsparse.records import write

    config = model_config(model, args.model) | {"suite": "analyze", "kind": args.kind} | config
    metrics = rounded(metrics) | {"lines": list(lines)}  # what was to be seen, for who reads the record
    write(record_path(args), run.record(config, metrics, backend=backend(model)))
    for line in lines:
        print(line)
    options.say(f"{picture_path(args)}, {record_path(args).name}")


def rounded(value: Any) -> Any:
    """Six significant digits: more than the measurement bears."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
