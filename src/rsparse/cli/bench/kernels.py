"""rsparse bench kernels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

HELP = "µs and TB/s of a block's linears and MLP against cuBLAS, the best dense kernel and masked tiles: a record a shape"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", help="shapes, with commas (default: the five of 7 to 8 billion weights)")
    parser.add_argument("--units", help="of qkv, o, gate_up, down, mlp (default: all)")
    parser.add_argument("--levels", default="0,0.1,0.3,0.5,0.7,0.9", help="sparsities, with commas (default %(default)s)")
    parser.add_argument("--ranks", default="none,recipe", help="low-rank factors: none, recipe, or both (default)")
    parser.add_argument("--batch", type=int, default=1, help="rows at a time, 1 to 8 (default %(default)s)")
    parser.add_argument("--device", default="auto", help="cuda, cuda:N or auto (default)")
    parser.add_argument("--dtype", default="auto", help="bfloat16 (auto), float16 or float32")
    parser.add_argument("--repeats", type=int, default=7, help="medians are over so many (default %(default)s)")
    parser.add_argument("--seconds", type=float, help="begin no case later than this; run again to go on")
    parser.add_argument(
        "--tune-seconds", type=float, default=120, metavar="S",
        help="time at most for tile settings of shapes that have none; 0 takes the nearest shape's (default %(default)s)",
    )  # fmt: skip
    options.add_seed(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of records; run again to resume")
    parser.add_argument("--overwrite", action="store_true", help="measure rows again that DIR has already")
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    from rsparse import records
    from rsparse.analysis.kernel_plot import plot
    from rsparse.analysis.kernel_table import load_records, markdown, protocol
    from rsparse.atomic import check_writable, write_text
    from rsparse.benchmark.kernels.bench import KernelBench
    from rsparse.benchmark.settings import keeping

    plan, machine = _plan(args), _machine(args)
    options.check_json(args)
    if args.out.exists() and not args.out.is_dir():
        raise RSparseError(f"{args.out} is a file; name a folder to write to")
    check_writable(args.out / "settings.json")
    timer, failed = records.Run(), []
    bench = KernelBench(plan, machine, args.out, lambda line: print(line, flush=True), overwrite=args.overwrite)
    with keeping(args.out, {"settings": machine.settings}):
        try:
            failed = bench.run()
        finally:  # after Ctrl-C too
            if found := load_records(args.out):
                write_text(args.out / "table.md", f"{protocol(found)}\n\n{markdown(found)}")
                plot(found, args.out / "kernels.png")
                print(f"{args.out}: {len(found)} records, table.md and kernels.png")
    if args.json is not None:
        made = [record for record in found if record["config"]["model"] in plan.models]
        rows = [{"model": record["config"]["model"], **row} for record in made for row in record["metrics"]["rows"]]
        config = {"suite": "kernels", "models": list(plan.models), "dtype": machine.dtype_name, "batch": plan.batch}
        records.write(args.json, timer.record(config, {"rows": rows}, backend="triton"))
    if failed:
        raise RSparseError(f"{len(failed)} failed, the last one {failed[-1]}")


def _plan(args: argparse.Namespace) -> Any:
    from rsparse.benchmark.kernels.cases import MODELS, UNITS, Plan

    return Plan(
        models=MODELS if args.models is None else options.words(args.models),
        units=tuple(UNITS) if args.units is None else options.words(args.units),
        levels=_numbers(args.levels),
        ranks=options.words(args.ranks),
        batch=args.batch,
    )


def _machine(args: argparse.Namespace) -> Any:
    """Raises RSparseError where no kernel runs. Triton's interpreter stands in for a GPU, for tests: its times mean nothing."""
    import os

    from rsparse.benchmark.kernels.bench import Machine
    from rsparse.checkpoint.load import pick_device, pick_dtype
    from rsparse.ops.dispatch import refusal

    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if not interpreted and (why := refusal("triton", device, dtype)) is not None:
        raise RSparseError(f"bench kernels measures Triton kernels: {why}")
    return Machine(device, dtype, args.seed, args.repeats, args.seconds, args.tune_seconds)


def _numbers(text: str) -> list[float]:
    try:
        return [float(word) for word in options.words(text)]
    except ValueError:
        raise RSparseError(f"--levels {text!r} must be numbers with commas, as 0.4,0.5") from None
