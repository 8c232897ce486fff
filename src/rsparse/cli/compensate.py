"""rsparse compensate."""

from __future__ import annotations

import argparse
from typing import Any

from rsparse.cli import _fit
from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "fit a sparse checkpoint's free parts to its dense form: better at the same bytes; resumes where it stopped"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--data", help=f"{options.DATA_HELP}; to fit on (default allenai/c4:en)")
    parser.add_argument("--tokens", type=int, default=262_144, help="how many tokens of it (default %(default)s)")
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")
    _fit.add_fit(parser)
    options.add_seed(parser)
    options.add_json(parser)
    options.add_output(parser, "folder for the compensated checkpoint")


def run(args: argparse.Namespace) -> None:
    from rsparse.calibration.text import DEFAULT
    from rsparse.checkpoint import save_pretrained
    from rsparse.compensation import fit_windows
    from rsparse.models.layout import check_positions
    from rsparse.records import Run
    from rsparse.sparse_model import is_sparse, recipe_state

    timer = Run()
    settings = _fit.settings_of(args)
    options.check_out(args)
    options.check_json(args)
    options.check_data(args)
    _fit.check_size(settings, args.seq_len, args.tokens, "--tokens")
    model, tokenizer = options.load(args)
    if not is_sparse(model):
        raise RSparseError(f"{args.model} is dense; `rsparse sparsify` it first")
    check_positions(model, args.seq_len, f"windows of {args.seq_len} tokens")
    data = args.data or DEFAULT
    texts = fit_windows(data, tokenizer, args.seq_len, args.tokens)
    metrics = _fit.run_fit(args, model, data, texts, settings, sink_tokens=args.sink_tokens)
    save_pretrained(model, args.out, tokenizer, overwrite=args.overwrite)
    _fit.state_file(args).unlink(missing_ok=True)
    config: dict[str, Any] = {"token_policy": "all", "sink_tokens": args.sink_tokens, "seq_len": args.seq_len}
    options.write_record(args, timer, model, config | _fit.config_of(settings), metrics)
    options.say(
        f"{args.out}: {recipe_state(model).recipe.method}, compensated; `rsparse eval {args.out}` compares it with dense"
    )
