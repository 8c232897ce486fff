"""Keep other libraries' notes and bars off stderr where rsparse says itself what matters."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Without a note for each try to reach the Hub; a dozen of them come before the error that says the same."""
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without what transformers and the Hub say while a model loads; errors still raise."""
    from transformers import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_hub(), _no_gguf_bar():
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def quiet_saving() -> Iterator[None]:
    """Without transformers' bar over shards in a log; a terminal still gets it."""
    from transformers import logging

    hide = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if hide:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _no_gguf_bar() -> Iterator[None]:
    """Dequantising has a tqdm of its own, which heeds no setting and writes hundreds of lines into a log."""
    try:
        module: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
        bar = module.tqdm
    except (ImportError, AttributeError):  # a private place: other versions may have no such bar
        yield
        return
    module.tqdm = functools.partial(bar, disable=None)  # a terminal still gets it
    try:
        yield
    finally:
        module.tqdm = bar
