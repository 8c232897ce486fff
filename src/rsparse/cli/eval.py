"""rsparse eval."""

from __future__ import annotations

import argparse

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "measure a model: perplexity, and a sparse model's distance from its dense form"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--perplexity", required=True, metavar="FILE", help=options.DATA_HELP)
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="stop after so many tokens of text (default: all)")
    parser.add_argument(
        "--wikitext-join", action="store_true", help="join the lines of a WikiText file as the usual protocol does"
    )
    parser.add_argument("--no-dense", action="store_true", help="skip the comparison with the dense form")
    options.add_token_policy(parser, "all")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    from rsparse.calibration.text import TextSource, wikitext_join
    from rsparse.calibration.windows import make_windows
    from rsparse.evaluation.describe import short
    from rsparse.evaluation.perplexity import evaluate
    from rsparse.records import Run
    from rsparse.sparse_model import is_sparse
    from rsparse.token_policy import TokenPolicy

    timer = Run()
    options.check_json(args)
    policy = TokenPolicy.parse(args.token_policy, args.sink_tokens)
    if args.max_tokens is not None and args.max_tokens < args.seq_len:
        raise RSparseError(f"--max-tokens {args.max_tokens} is less than one window of --seq-len {args.seq_len}")
    documents = TextSource(args.perplexity).documents()
    if args.wikitext_join:
        if not args.perplexity.endswith(".txt"):
            raise RSparseError("--wikitext-join is for a .txt file with WikiText's lines")
        documents = map(wikitext_join, documents)
    model, tokenizer = options.load(args)
    count = None if args.max_tokens is None else args.max_tokens // args.seq_len
    windows = make_windows(documents, tokenizer, args.seq_len, max_windows=count, source=args.perplexity)
    result = evaluate(model, windows, policy, against_dense=not args.no_dense)
    print(f"perplexity        {result.perplexity:.3f}   ({result.tokens} tokens of {short(args.perplexity)}, {policy})")
    if result.dense_perplexity is not None:
        print(f"dense             {result.dense_perplexity:.3f}   (the same weights, every token dense)")
        print(f"KL to dense       {result.kl_to_dense:.4f} nats   token agreement {result.token_agreement:.1%}")
    if is_sparse(model):
        share = result.bytes_per_token / result.dense_bytes_per_token
        rows = f"on {result.sparse_row_share:.1%} of tokens"
        print(f"achieved sparsity {result.achieved_sparsity:.4f} of the blocks' linears, {rows}")
        print(f"bytes per token   {result.bytes_per_token:,} of {result.dense_bytes_per_token:,} ({share:.1%}, head included)")
    config = {
        "data": short(args.perplexity),
        "seq_len": args.seq_len,
        "wikitext_join": args.wikitext_join,
        "token_policy": str(policy),
        "sink_tokens": policy.sink_tokens,
    }
    options.write_record(args, timer, model, config, result.metrics())
