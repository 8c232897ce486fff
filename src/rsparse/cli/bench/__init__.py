"""rsparse bench: one suite a file here."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

HELP = "benchmarks that run unattended and resume: quality, search, decode, kernels; and parity, a check of the decode step"


def configure(parser: argparse.ArgumentParser) -> None:
    suites = parser.add_subparsers(dest="suite", metavar="SUITE", required=True, parser_class=type(parser))
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = importlib.import_module(f"{__name__}.{name}")
        suite = suites.add_parser(name, help=module.HELP, description=module.HELP)
        suite.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.configure(suite)
        suite.set_defaults(run_suite=module.run)


def run(args: argparse.Namespace) -> None:
    args.run_suite(args)
