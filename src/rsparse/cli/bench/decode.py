"""rsparse bench decode."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "tokens a second while decoding, against the best dense path of the same run: a record a cell, a table and a plot"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help=options.MODEL_HELP)
    parser.add_argument("--shape", metavar="NAME", help="in place of MODEL: random weights of its shape, as llama-3-8b")
    options.add_machine(parser)
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="statistics of a dense MODEL from `rsparse calibrate`")
    parser.add_argument("--data", default="bundled", metavar="TEXT", help=f"prompts of MODEL: {options.DATA_HELP}")
    parser.add_argument("--sparsity", help="with commas (default 0.4,0.5,0.6,0.7); not for a checkpoint")
    parser.add_argument(
        "--ranks", help="low-rank factors: none (default), quarter (of the units), or both; not for a checkpoint"
    )
    parser.add_argument("--prompt-tokens", type=int, default=512, help="(default %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=512, help="(default %(default)s); 2048 for the whole curve")
    parser.add_argument("--batch", type=int, default=1, help="sequences at a time, 1 to 8 (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="medians are over so many (default %(default)s)")
    parser.add_argument(
        "--dense", default="steps,steps-cublas,compile", metavar="PATHS",
        help="what to compare with: steps, steps-cublas, compile-blocks, compile, compile-tuned (default %(default)s)",
    )  # fmt: skip
    options.add_seed(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of records; run again to resume")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.decode_plot import plot
    from rsparse.analysis.decode_table import load_records, markdown
    from rsparse.atomic import check_writable, write_text
    from rsparse.benchmark.decode.bench import Cell, DecodeBench, DecodeSettings, cells_of
    from rsparse.benchmark.settings import keeping
    from rsparse.benchmark.shapes import check_shape
    from rsparse.checkpoint.load import pick_device, pick_dtype
    from rsparse.ops import dispatch

    if bool(args.model) == bool(args.shape):
        raise RSparseError("name a MODEL, or a --shape in its place")
    if args.shape and args.calibration:
        raise RSparseError("--shape has random weights and needs no --calibration")
    settings = DecodeSettings(args.prompt_tokens, args.new_tokens, args.repeats, args.batch, tuple(options.words(args.dense)))
    levels = "0.4,0.5,0.6,0.7" if args.sparsity is None else args.sparsity
    cells = list(cells_of(_numbers(levels), options.words("none" if args.ranks is None else args.ranks)))
    if args.out.exists() and not args.out.is_dir():
        raise RSparseError(f"{args.out} is a file; name a folder to write to")
    check_writable(args.out / "table.md")
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    dispatch.resolve(args.backend, device, dtype)
    if args.shape:
        check_shape(args.shape, settings.prompt_tokens + settings.new_tokens)
    with keeping(args.out, {"settings": _common(args, settings, device, dtype)}):
        source: Any = _shape(args, settings, device, dtype) if args.shape else _real(args)
        if _is_checkpoint(source):
            cells = [Cell()]
        try:
            DecodeBench(source, cells, settings, args.out, args.backend, say=lambda line: print(line, flush=True)).run()
        finally:  # after Ctrl-C too
            if records := load_records(args.out):
                write_text(args.out / "table.md", markdown(records))
                plot(records, args.out / "decode.png")
                print(f"{args.out}: {len(records)} records, table.md and decode.png")


def _common(args: argparse.Namespace, settings: Any, device: Any, dtype: Any) -> dict[str, Any]:
    """What all records of a folder share; cells of other models, levels and lengths may join."""
    import torch

    from rsparse.records import cpu_name

    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return {
        "suite": "decode",
        "machine": machine,
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": settings.repeats,
        "dense": list(settings.dense),
        "seed": args.seed,
    }


def _shape(args: argparse.Namespace, settings: Any, device: Any, dtype: Any) -> Any:
    from rsparse.benchmark.decode.source import Shape

    return Shape(args.shape, settings.prompt_tokens + settings.new_tokens, device, dtype, args.seed)


def _real(args: argparse.Namespace) -> Any:
    from rsparse.benchmark.decode.source import Checkpoint, Real
    from rsparse.calibration import Calibration
    from rsparse.calibration.text import TextSource
    from rsparse.evaluation.measure import text_windows
    from rsparse.sparse_model import is_sparse

    TextSource(args.data).check()
    calibration = None if args.calibration is None else Calibration.load(args.calibration)
    model, tokenizer = options.load(args)

    def load() -> Any:
        return options.load(args)[0]

    def prompts(tokens: int) -> Any:
        return text_windows(args.data, tokenizer, tokens, tokens * args.batch)

    if is_sparse(model):
        if calibration is not None:
            raise RSparseError("a sparse checkpoint needs no --calibration")
        if args.sparsity is not None or args.ranks is not None:
            raise RSparseError("a sparse checkpoint has its own levels and ranks; leave --sparsity and --ranks out")
        return Checkpoint(args.model, load, prompts)
    if calibration is None:
        raise RSparseError("a dense MODEL needs its --calibration DIR, from `rsparse calibrate`")
    return Real(args.model, lambda: model, calibration, prompts)


def _is_checkpoint(source: Any) -> bool:
    from rsparse.benchmark.decode.source import Checkpoint

    return isinstance(source, Checkpoint)


def _numbers(text: str) -> list[float]:
    try:
        found = [float(word) for word in options.words(text)]
    except ValueError:
        found = []
    if not found:
        raise RSparseError(f"--sparsity {text!r} must be numbers with commas, as 0.4,0.5")
    return found
