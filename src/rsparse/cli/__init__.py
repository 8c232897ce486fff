"""The command line: one file a verb, found by its name."""

from rsparse.cli._main import main

__all__ = ["main"]
