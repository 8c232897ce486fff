"""rsparse densify."""

from __future__ import annotations

import argparse

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "write a sparse checkpoint's dense model back, bit for bit"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    options.add_output(parser, "folder for the dense model")


def run(args: argparse.Namespace) -> None:
    from rsparse.checkpoint import save_pretrained
    from rsparse.sparse_model import densify, is_sparse

    options.check_out(args)
    if args.dtype == "auto":
        args.dtype = "stored"  # a cast would change bits
    model, tokenizer = options.load(args)
    if not is_sparse(model):
        raise RSparseError(f"{args.model} is dense already")
    densify(model)
    save_pretrained(model, args.out, tokenizer, overwrite=args.overwrite)
    options.say(f"{args.out}: dense")
