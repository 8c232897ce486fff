"""rsparse report."""

from __future__ import annotations

import argparse
from pathlib import Path

from rsparse.errors import RSparseError

HELP = "one self-contained HTML page from a folder of result records: tables, plots, protocol, method cards"
SUFFIXES = (".html", ".htm")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of records, searched with all folders below it")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="HTML", help="the page; an older one is replaced")
    parser.add_argument("--title", default="Activation sparsity, measured", help="its heading (default %(default)r)")


def run(args: argparse.Namespace) -> None:
    from rsparse.report import write_report

    if args.out.suffix.lower() not in SUFFIXES:
        raise RSparseError(f"-o {args.out} must end in .html")
    shown, left = write_report(args.results, args.out, title=args.title)
    said = f"; {left} other file{' is' if left == 1 else 's are'} named at its end" if left else ""
    print(f"{args.out}: {shown} records, {args.out.stat().st_size / 1e6:.1f} MB{said}")
