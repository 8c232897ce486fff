"""Options that several verbs share, and what they stand for."""

from __future__ import annotations

import argparse
import pkgutil
import sys
from pathlib import Path
from typing import Any

import rsparse
from rsparse.atomic import check_target, check_writable
from rsparse.errors import RSparseError

MODEL_HELP = "Hub id, local folder, .gguf file, or smollm2-135m (the embedded default)"
DATA_HELP = "text: a .txt or .jsonl file, `bundled`, or a Hub data set as owner/name[:config[:split]]"
DTYPE_HELP = "float32, bfloat16, float16 or auto: float32 on a CPU, else bfloat16"


def add_model(parser: argparse.ArgumentParser, *, dtype: str = "auto", dtype_help: str = DTYPE_HELP) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_machine(parser, dtype=dtype, dtype_help=dtype_help)


def add_machine(parser: argparse.ArgumentParser, *, dtype: str = "auto", dtype_help: str = DTYPE_HELP) -> None:
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--dtype", default=dtype, help=dtype_help)
    parser.add_argument("--backend", default="auto", help="what runs the sparse linears: auto (default), reference, triton")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the result record here")


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0)


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help=what)
    parser.add_argument("--overwrite", action="store_true", help="replace DIR where it exists")


def add_calibration_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=int, default=32768, help="calibration tokens (default %(default)s)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")
    parser.add_argument("--rows", type=int, default=4096, help="activation rows kept at each input (default %(default)s)")


def add_token_policy(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--token-policy", default=default, metavar="POLICY",
        help="which tokens are sparse: all, decode, last_fraction:F or dense (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")


def files_of(package: str) -> str:
    """Names of the files in `package`, for a help text: read without importing them, which would load torch."""
    found = pkgutil.iter_modules([str(Path(rsparse.__file__).parent / package)])
    return ", ".join(sorted(module.name for module in found if not module.name.startswith("_")))


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """(model, tokenizer) as the options say."""
    from rsparse.checkpoint import from_pretrained

    return from_pretrained(args.model, dtype=args.dtype, device=args.device, backend=args.backend)


def calibrate(args: argparse.Namespace, model: Any, tokenizer: Any, data: str, out: Path | None) -> Any:
    """Run the calibration that the options describe, after saying what it takes."""
    from rsparse.calibration import calibrate as run
    from rsparse.calibration.observe import disk_bytes
    from rsparse.models.layout import sites

    rows = min(args.rows, args.tokens)
    size = disk_bytes({site.name: site.in_features for block in sites(model) for site in block}, rows)
    if size > 1e9:
        say(f"the calibration's statistics take {size / 1e9:.1f} GB on disk; fewer --rows take less")
    return run(
        model, tokenizer, data, out=out, tokens=args.tokens, seq_len=args.seq_len, rows=args.rows,
        sink_tokens=args.sink_tokens, seed=args.seed, name=args.model,
        overwrite=getattr(args, "overwrite", False) and out is not None,
    )  # fmt: skip


def write_record(args: argparse.Namespace, run: Any, model: Any, config: dict[str, Any], metrics: dict[str, Any]) -> None:
    """With --json, write the record of `run`: what `model` is, what else was set, and what came out."""
    if args.json is not None:
        from rsparse.evaluation.describe import backend, model_config
        from rsparse.records import write

        write(args.json, run.record(model_config(model, args.model) | config, metrics, backend=backend(model)))


def check_out(args: argparse.Namespace) -> None:
    """Refuse an output folder before the work: one that cannot be made, that exists, or that --overwrite would not know."""
    check_target(args.out, overwrite=args.overwrite)
    known = ("config.json", "calibration.json")
    if args.out.is_dir() and any(args.out.iterdir()) and not any((args.out / name).is_file() for name in known):
        raise RSparseError(f"{args.out} holds neither a model nor a calibration; --overwrite does not delete other folders")


def check_data(args: argparse.Namespace) -> None:
    """Refuse a text that cannot be read before the model is loaded; what is on the Hub is not asked for."""
    if args.data is not None:
        from rsparse.calibration.text import TextSource

        TextSource(args.data).check()


def check_json(args: argparse.Namespace) -> None:
    """Refuse a record path that cannot be written before the work, not after it."""
    if args.json is None:
        return
    if args.json.is_dir():
        raise RSparseError(f"--json {args.json} is a folder; name a file")
    check_writable(args.json)


def say(line: str) -> None:
    """A note for the person at the terminal, above a progress bar; results go to stdout, notes to stderr."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def add_tasks(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tasks", metavar="A,B", help="tasks of lm-evaluation-harness, from the Hub; with --task-dir, some of its files"
    )
    parser.add_argument("--task-dir", type=Path, metavar="DIR", help="tasks from a folder of .jsonl files, without the Hub")
    parser.add_argument("--limit", type=int, help="only the first rows of each task")
    parser.add_argument("--num-fewshot", type=int, help="worked examples before each question (default: the task's own)")
    parser.add_argument("--chat-template", action="store_true", help="ask through the model's chat template")


def task_names(args: argparse.Namespace) -> tuple[str, ...] | None:
    """Names given with --tasks, or None. Raises RSparseError for an empty list."""
    if args.tasks is None:
        return None
    names = tuple(words(args.tasks))
    if not names:
        raise RSparseError("--tasks names no task")
    return names


def words(text: str) -> list[str]:
    """What stands between commas, less the empty."""
    return [word.strip() for word in text.split(",") if word.strip()]
