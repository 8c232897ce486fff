"""rsparse analyze importance."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from rsparse.cli import _options as options
from rsparse.cli.analyze import _kind
from rsparse.errors import RSparseError

HELP = "importance of input channel × singular component: is it in one corner, and the same for other texts and samples?"


def configure(parser: argparse.ArgumentParser) -> None:
    _kind.add_common(parser)
    parser.add_argument(
        "--data", action="append", metavar="TEXT", help=f"{options.DATA_HELP}; repeat to compare (default allenai/c4:en)"
    )
    parser.add_argument(
        "--samples", default="16", help="windows of each text; several with commas to compare (default %(default)s)"
    )
    parser.add_argument("--seq-len", type=int, default=128, help="tokens in a window (default %(default)s)")
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that do not count (default %(default)s)")
    parser.add_argument("--block", type=int, help="the block whose maps are drawn (default: the middle one)")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.importance import Source, importance, summary
    from rsparse.analysis.importance_views import lines, plot
    from rsparse.evaluation.describe import short
    from rsparse.models.layout import sites
    from rsparse.records import Run

    timer = Run()
    texts = args.data or ["allenai/c4:en"]
    labels = [short(text) for text in texts]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise RSparseError(f"two --data are called {twice}; name each text once")
    samples = _kind.whole(args.samples, "--samples")
    _kind.check(args, texts)
    model, tokenizer = _kind.load_dense(args)
    count = len(sites(model))
    block = count // 2 if args.block is None else args.block
    if not 0 <= block < count:
        raise RSparseError(f"--block must be from 0 to {count - 1}, got {block}")
    args.max_tokens = samples[-1] * args.seq_len
    windows = {label: _kind.windows_of(args, tokenizer, text) for label, text in zip(labels, texts, strict=True)}
    for label, ids in windows.items():
        if len(ids) < samples[-1]:
            raise RSparseError(
                f"{label} fills {len(ids)} windows of {args.seq_len} tokens, and --samples asks for {samples[-1]}"
            )
    # The first text at the most samples leads: its maps are drawn.
    sources = [Source(label, number) for label in labels for number in reversed(samples)]
    found = importance(model, windows, sources, args.sink_tokens)
    what = f"importance of channel × component, {samples[-1]} × {args.seq_len} tokens of {labels[0]}"
    plot(found, sources, block, _kind.title(args, what), _kind.picture_path(args))
    tokens = sum(ids.numel() for ids in windows.values())
    config = {"data": labels, "samples": samples, "seq_len": args.seq_len, "sink_tokens": args.sink_tokens}
    metrics = {"tokens": tokens, "summary": summary(found, sources), "by_weight": {n: _entry(e) for n, e in found.items()}}
    _kind.end(args, timer, model, config, metrics, lines(found, sources))


def _entry(each: object) -> dict[str, object]:
    """A weight's part of the record: without its picture, pairs as text."""
    values = asdict(each)  # type: ignore[call-overload]
    values.pop("picture")
    values["overlaps"] = {f"{a}-{b}": value for (a, b), value in values["overlaps"].items()}
    return dict(values)
