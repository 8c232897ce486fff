"""rsparse reproduce."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rsparse import reproduce
from rsparse.cli import _options as options
from rsparse.cli import _protocol as protocol
from rsparse.errors import RSparseError

HELP = "the paper's tables on your model, beside the published figures; resumes"
ALL = "all"
TASKS = ("winogrande", "piqa", "sciq", "openbookqa", "hellaswag", "boolq", "arc_easy", "arc_challenge")
SUMMARIES = ("cnn_dailymail_abisee",)
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"


def configure(parser: argparse.ArgumentParser) -> None:
    known = "; ".join(f"{name}: {reproduce.load(name).title.partition(': ')[2]}" for name in reproduce.names())
    parser.add_argument("tables", metavar="TABLE", help=f"one, several with commas, or all. {known}".replace("%", "%%"))
    options.add_model(parser)
    parser.add_argument("--token-policy", default=reproduce.POLICIES, help="policies, with commas (default %(default)s)")
    options.add_tasks(parser)
    parser.add_argument(
        "--data", action="append", metavar="TEXT",
        help=f"for perplexity; {options.DATA_HELP}; repeat for several (default {WIKITEXT})",
    )  # fmt: skip
    protocol.add(parser)
    parser.add_argument(
        "--method", action="append", metavar="NAME", help="only these of the tables' methods; repeat for several"
    )
    parser.add_argument("--levels", help="only these of the tables' levels, with commas")
    parser.add_argument(
        "--searched", metavar="OPTION=VALUE,...",
        help="options of the paper's search, as population=8,generations=3 for a quick look",
    )  # fmt: skip
    populations, samples = (",".join(map(str, each)) for each in (reproduce.PAPER.populations, reproduce.PAPER.samples))
    parser.add_argument("--populations", default=populations, help="of search-size, with commas (default %(default)s)")
    parser.add_argument(
        "--samples", default=samples, help="windows of calibration text in samples, with commas (default %(default)s)"
    )  # fmt: skip
    parser.add_argument(
        "--show", action="store_true",
        help="run nothing: write the tables of what DIR holds, wherever it ran, on its own tasks and, without --data, texts",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR",
        help="folder of records, a bench's too; the tables go to DIR/MODEL/tables; run again to resume",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    from rsparse.atomic import check_writable
    from rsparse.reproduce.request import check_filters
    from rsparse.reproduce.run import Reproduction
    from rsparse.reproduce.searches import check_windows

    names = _names(args.tables)
    tables = {name: reproduce.load(name) for name in names}
    if args.out.exists() and not args.out.is_dir():
        raise RSparseError(f"{args.out} is a file; name a folder to write to")
    check_writable(args.out / "settings.json")
    if args.limit == 1:
        raise RSparseError("--limit must be 2 or more: tables compare methods over the same two rows or more")
    policies, choice = _policies(args), _choice(args)
    measured = (_shown if args.show else _asked)(args, list(tables.values()), choice)
    request = _request(args, policies, choice, measured)
    check_filters(request, list(tables.values()))
    tables = {name: table for name, table in tables.items() if request.lines(table)}

    def load(model: str) -> tuple[Any, Any]:
        return options.load(argparse.Namespace(**vars(args) | {"model": model}))

    if args.show:
        _write(args.out, request, tables)
        return
    check_windows(request, list(tables.values()))
    runner = Reproduction(list(tables.values()), request, args.out, load, measured.tasks)
    runner.check()
    runner.open()
    failed: list[str] = []
    try:
        failed = runner.run()
    finally:  # after Ctrl-C too
        _write(args.out, request, tables)
    if failed:
        raise RSparseError(f"{len(failed)} of the cells failed, the first with: {failed[0]}")


def _write(out: Path, request: Any, tables: dict[str, Any]) -> None:
    """Each table as Markdown and as a record; one table is shown whole, of several the line that says what to see."""
    from rsparse import records
    from rsparse.atomic import write_text
    from rsparse.benchmark.grid import model_label
    from rsparse.reproduce.results import Results
    from rsparse.reproduce.view import lines_of, markdown, record

    if not out.is_dir() or not any(out.iterdir()):  # stopped before the first cell
        return
    folder = out / model_label(request.model) / "tables"
    for name, table in tables.items():
        results = Results(table, request, out)
        text = markdown(results)
        write_text(folder / f"{name}.md", text)
        records.write(folder / f"{name}.json", record(name, results))
        print(text if len(tables) == 1 else f"{table.title}\n  {lines_of(results)[0]}")
    options.say(f"{folder}: {', '.join(f'{name}.md' for name in tables)}, and each as .json")


def _names(text: str) -> list[str]:
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise RSparseError(f"TABLE is empty; choose among {', '.join(reproduce.names())}, or {ALL}")
    return reproduce.names() if ALL in found else found


@dataclass(frozen=True)
class _Measured:
    """What the cells are on. `scored`, `generated`: stamps by name of tasks that score or generate; `tasks`: the harness's."""

    texts: list[str]
    scored: dict[str, str]
    generated: dict[str, str]
    tasks: list[Any] = field(default_factory=list)


def _policies(args: argparse.Namespace) -> list[Any]:
    policies = protocol.policies(args, args.token_policy)
    if not policies or len(set(policies)) < len(policies):
        raise RSparseError(f"--token-policy {args.token_policy!r} must name policies with commas, each once")
    if any(policy.kind == "dense" for policy in policies):
        raise RSparseError("--token-policy dense leaves nothing sparse to measure")
    return policies


def _request(args: argparse.Namespace, policies: list[Any], choice: Any, measured: _Measured) -> Any:
    from rsparse.reproduce.request import Request

    settings = protocol.settings(args, measured.scored)
    return Request(
        args.model, tuple(policies), tuple(measured.texts), settings, measured.generated, choice,
        None if args.method is None else tuple(args.method),
        None if args.levels is None else tuple(protocol.numbers(args.levels, "--levels")),
    )  # fmt: skip


def _shown(args: argparse.Namespace, tables: list[Any], choice: Any) -> _Measured:
    """What the folder's cells are on, whatever of it is still at hand."""
    from rsparse.reproduce.shown import check_holds, tasks_of, texts_of

    check_holds(args.out, args.model)
    return _Measured(args.data or texts_of(args.out, args.model), *tasks_of(args.out, tables, choice))


def _asked(args: argparse.Namespace, tables: list[Any], choice: Any) -> _Measured:
    """What to run on: the texts and tasks asked for, else what the tables need, of the harness's own."""
    from rsparse.calibration.text import TextSource
    from rsparse.evaluation.tasks import load_tasks

    texts = args.data or ([WIKITEXT] if any(table.texts for table in tables) else [])
    for text in [*texts, args.calibration_data]:
        TextSource(text).check()
    generates = any(variant.generates for table in tables for row in table.rows(choice) for variant in row.variants)
    scores = any(table.tasks for table in tables)
    if args.tasks is None and args.task_dir is None:
        args.tasks = ",".join([*(TASKS if scores else ()), *(SUMMARIES if generates else ())]) or None
    stamps = protocol.task_stamps(args)
    wanted = (scores or generates) and bool(stamps)
    tasks = load_tasks(options.task_names(args), args.task_dir) if wanted else []
    written = {task.task_name for task in tasks if task.OUTPUT_TYPE == "generate_until"}
    scored, generated = ({n: stamp for n, stamp in stamps.items() if (n in written) == which} for which in (False, True))
    return _Measured(texts, scored, generated, tasks)


def _choice(args: argparse.Namespace) -> Any:
    from rsparse.methods import check
    from rsparse.reproduce.table import PAPER_METHOD, Choice

    pairs = [tuple(part.strip() for part in word.split("=", 1)) for word in (args.searched or "").split(",") if word.strip()]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        raise RSparseError(f"--searched {args.searched!r} must be OPTION=VALUE,OPTION=VALUE")
    searched = tuple((name, value) for name, value in pairs)
    check(PAPER_METHOD, options=dict(searched))
    return Choice(
        tuple(protocol.whole_numbers(args.populations, "--populations", 2)),
        tuple(protocol.whole_numbers(args.samples, "--samples", 1)),
        searched,
    )
