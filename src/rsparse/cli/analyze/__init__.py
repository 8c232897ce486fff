"""rsparse analyze: one kind a file here."""

from __future__ import annotations

import argparse
import importlib
import pkgutil

HELP = "the paper's claims on your model, as pictures: importance, rank, activations, sensitivity, sweeps and more"


def configure(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=type(parser))
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")):
        module = importlib.import_module(f"{__name__}.{name}")
        kind = kinds.add_parser(name.replace("_", "-"), help=module.HELP, description=module.HELP)
        kind.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.configure(kind)
        kind.set_defaults(run_kind=module.run)


def run(args: argparse.Namespace) -> None:
    args.run_kind(args)
