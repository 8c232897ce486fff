"""rsparse eval."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "measure a model: perplexity, tasks, distance from its dense form, and the difference from another model"


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_model(parser)
    parser.add_argument("--perplexity", metavar="FILE", help=options.DATA_HELP)
    parser.add_argument("--seq-len", type=int, default=512, help="tokens in a window (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, help="stop after so many tokens of text (default: all)")
    parser.add_argument(
        "--wikitext-join", action="store_true", help="join the lines of a WikiText file as the usual protocol does"
    )
    parser.add_argument("--no-dense", action="store_true", help="skip the comparison with the dense form")
    options.add_tasks(parser)
    parser.add_argument(
        "--against", metavar="B",
        help="compare with B by pairs: a model, a record that --json wrote, or `dense` for MODEL's own dense form",
    )  # fmt: skip
    options.add_token_policy(parser, "all")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    from rsparse.calibration.text import TextSource
    from rsparse.evaluation.against import comparison
    from rsparse.evaluation.describe import short
    from rsparse.evaluation.measure import Plan, measure
    from rsparse.records import Run
    from rsparse.sparse_model import is_sparse
    from rsparse.token_policy import TokenPolicy

    timer = Run()
    options.check_json(args)
    if not (args.perplexity or args.tasks or args.task_dir):
        raise RSparseError("say what to measure: --perplexity FILE, --tasks NAMES or --task-dir DIR")
    policy = TokenPolicy.parse(args.token_policy, args.sink_tokens)
    plan = Plan(
        policy, text=args.perplexity, seq_len=args.seq_len, max_tokens=args.max_tokens, wikitext_join=args.wikitext_join,
        against_dense=not args.no_dense, tasks=options.task_names(args), task_dir=args.task_dir, limit=args.limit,
        num_fewshot=args.num_fewshot, chat=args.chat_template,
    )  # fmt: skip
    if plan.text is not None:
        TextSource(plan.text).check()
    tasks = plan.load_tasks()
    other = _recorded(args.against, plan, tasks)
    model, tokenizer = options.load(args)
    if args.against == "dense" and not is_sparse(model):
        raise RSparseError(f"{args.model} is dense already; --against dense is for a sparse model")
    found = measure(model, tokenizer, plan, tasks)
    for line in found.lines(plan):
        print(line)
    config, metrics = plan.config(), found.metrics()
    try:
        if args.against:
            other = other or _measured(args, model, tokenizer, plan, tasks)
            against: dict[str, Any] = comparison(found, other)
            print(f"\nagainst {short(args.against)}")
            for line in against.pop("lines"):
                print(line)
            config["against"], metrics["against"] = short(args.against), against
    finally:  # what was measured is kept, also where the other model fails
        options.write_record(args, timer, model, config, metrics)


def _recorded(against: str | None, plan: Any, tasks: list[Any]) -> Any:
    """The record that --against names, or None where it is a model, which must be there."""
    from rsparse.checkpoint.load import locate
    from rsparse.evaluation.against import recorded

    if against is None or against == "dense":
        return None
    if against.endswith(".json"):
        return recorded(Path(against), plan, tasks)
    locate(against)
    return None


def _measured(args: argparse.Namespace, model: Any, tokenizer: Any, plan: Any, tasks: list[Any]) -> Any:
    """The other model, measured by the same plan."""
    from rsparse.evaluation.measure import measure

    if args.against == "dense":
        return measure(model, tokenizer, plan.dense(), tasks)
    return measure(*options.load(argparse.Namespace(**vars(args) | {"model": args.against})), plan, tasks)
