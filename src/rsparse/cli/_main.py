"""Parse, run one verb, and turn what goes wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from rsparse import __version__, cli
from rsparse.errors import RSparseError, out_of_memory

BAD_INPUT, INTERRUPTED, INTERNAL = 2, 130, 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"rsparse: error: {message} (see {self.prog} --help)\n")


def verbs() -> list[str]:
    """Verbs that have a file here, in the order of a user's path."""
    order = ["demo", "calibrate", "search", "compensate", "sparsify", "densify", "generate", "eval"]
    found = {module.name for module in pkgutil.iter_modules(cli.__path__) if not module.name.startswith("_")}
    return [name for name in order if name in found] + sorted(found - set(order))


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="rsparse", description="Make Hugging Face decoders read fewer weights per token, without training.")
    parser.add_argument("--version", action="version", version=f"rsparse {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    for name in verbs():
        module = importlib.import_module(f"rsparse.cli.{name}")
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.configure(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns 0, 2 for bad input, 130 for Ctrl-C, 1 for a mistake of rsparse's own."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return _fail(args, "interrupted; nothing was left half-written", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `rsparse show … | head` is no error
        return 0
    except RSparseError as error:
        return _fail(args, f"error: {error}", BAD_INPUT)
    except OSError as error:
        return _fail(args, f"error: {_os_line(error)}", BAD_INPUT)
    except Exception as error:
        return _fail(args, *_explain(error))


def _os_line(error: OSError) -> str:
    name = error.filename or "file"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return f"no room to write {name}: the disk is full" if full else f"{name}: {error.strerror or error}"


def _explain(error: Exception) -> tuple[str, int]:
    first = (str(error).strip().splitlines() or [""])[0]
    if out_of_memory(error):
        return (
            f"error: out of memory ({first}); use a smaller model, fewer --tokens or --seq-len, or another --dtype",
            BAD_INPUT,
        )
    return f"internal error, {type(error).__name__}: {first} (--debug shows where)", INTERNAL


def _fail(args: argparse.Namespace, line: str, code: int) -> int:
    if args.debug:
        raise
    start = "\r" if sys.stderr.isatty() else ""  # over what is left of a progress bar
    print(f"{start}rsparse: {' '.join(line.split())}", file=sys.stderr)
    return code
