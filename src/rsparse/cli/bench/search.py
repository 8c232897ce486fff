"""rsparse bench search."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options
from rsparse.errors import RSparseError

SETTINGS = ("sparsity", "generations", "samples", "objective", "criterion", "fit", "grouping", "seed")
HELP = "the search over populations and generations, and what it costs: a record a population, a table and a plot"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help=options.MODEL_HELP)
    parser.add_argument("--shape", metavar="NAME", help="in place of MODEL: random weights of its shape, as llama-3-8b")
    options.add_machine(parser)
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="statistics of MODEL from `rsparse calibrate`")
    parser.add_argument("--seq-len", type=int, help="tokens in a window of a --shape's random calibration (default 2048)")
    parser.add_argument("--sparsity", type=float, required=True, help="share of the blocks' weights not to read, in (0, 1)")
    parser.add_argument("--populations", default="8,16,32,128", help="with commas (default %(default)s)")
    parser.add_argument("--generations", type=int, default=10, help="the random first one included (default %(default)s)")
    parser.add_argument("--samples", type=int, default=16, help="calibration windows that judge one (default %(default)s)")
    parser.add_argument("--objective", default="perplexity", help="perplexity (default), or kl: distance from the dense model")
    parser.add_argument("--criterion", default="paper", help=f"what scores a channel: {options.files_of('criteria')}")
    parser.add_argument("--fit", default="svd", help="low-rank factors: svd of the weight (default), or dropped")
    parser.add_argument("--grouping", default="linear", help="linear (default), or group: one rho for linears of one input")
    options.add_seed(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder of records; run again to resume")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.search_ablation import load_records, markdown, plot
    from rsparse.atomic import check_writable, write_text
    from rsparse.benchmark.search import SearchBench, storage_of
    from rsparse.benchmark.settings import keeping
    from rsparse.search import SearchSettings, check_study

    _check_source(args)
    populations = _populations(args.populations)
    settings = SearchSettings(population=min(populations), **{name: getattr(args, name) for name in SETTINGS})
    if args.out.exists() and not args.out.is_dir():
        raise RSparseError(f"{args.out} is a file; name a folder to write to")
    check_writable(args.out / "settings.json")
    source: Any = _Shape(args, settings) if args.shape else _Trained(args, settings)
    bench = SearchBench(populations, settings, args.out, source.load, source.config, report=_report)
    with keeping(args.out, {"settings": settings.of_a_folder() | source.stamp()}):
        if source.calibration is not None:
            for each in bench.missing():
                check_study(source.calibration, each, storage_of(args.out, each.population))
        try:
            bench.run()
        finally:  # after Ctrl-C too
            if records := load_records(args.out):
                write_text(args.out / "table.md", markdown(records))
                plot(records, args.out / "search.png")
                print(f"{args.out}: {len(records)} records, table.md and search.png")


class _Trained:
    """MODEL and its calibration."""

    def __init__(self, args: argparse.Namespace, settings: Any) -> None:
        from rsparse.calibration import Calibration
        from rsparse.evaluation.describe import short

        self.args, self.settings = args, settings
        self.calibration: Any = Calibration.load(args.calibration)
        settings.check_calibration(self.calibration)
        self.config = {"model": short(args.model)}

    def stamp(self) -> dict[str, Any]:
        """What else a folder's searches have in common."""
        from rsparse.benchmark.grid import model_label
        from rsparse.benchmark.settings import model_stamp
        from rsparse.search.run import known_settings

        model = f"{model_label(self.args.model)}, {model_stamp(self.args.model)}"
        return {
            "model": model,
            "calibration": known_settings(self.calibration, self.settings)["windows"],
            **_machine(self.args),
        }

    def load(self) -> tuple[Any, Any]:
        return options.load(self.args)[0], self.calibration


class _Shape:
    """Random weights, and a calibration on random tokens, which is kept in the folder of records."""

    def __init__(self, args: argparse.Namespace, settings: Any) -> None:
        from rsparse.benchmark.shapes import check_shape

        self.args, self.settings, self.seq_len = args, settings, 2048 if args.seq_len is None else args.seq_len
        check_shape(args.shape, self.seq_len)
        self.calibration = None  # nothing is known before the model is made
        self.config: dict[str, Any] = {"model": args.shape, "weights": "random"}

    def stamp(self) -> dict[str, Any]:
        """What else a folder's searches have in common."""
        tokens = f"random tokens, {self.settings.samples} windows of {self.seq_len}"
        return {"model": f"{self.args.shape}, random weights", "calibration": tokens, **_machine(self.args)}

    def load(self) -> tuple[Any, Any]:
        import time

        from rsparse.benchmark.shapes import random_model
        from rsparse.checkpoint.load import pick_device, pick_dtype

        start, device = time.perf_counter(), pick_device(self.args.device)
        model = random_model(self.args.shape, device, pick_dtype(self.args.dtype, device), self.args.seed)
        made = time.perf_counter()
        calibration = self._calibrated(model)
        options.say(f"{self.args.shape}: model in {made - start:.1f} s, calibration in {time.perf_counter() - made:.1f} s")
        return model, calibration

    def _calibrated(self, model: Any) -> Any:
        from rsparse.benchmark.shapes import random_windows
        from rsparse.calibration import Calibration
        from rsparse.calibration.observe import calibrate_windows

        folder = self.args.out / "calibration"
        if folder.exists():
            return Calibration.load(folder)
        windows = random_windows(self.args.shape, self.settings.samples + 1, self.seq_len, self.args.seed)
        rows = 4096 if self.settings.fit == "dropped" else 1  # plain SVD reads none of them
        return calibrate_windows(
            model, windows[:-1], windows[-1:], data="random tokens", out=folder, rows=rows, seed=self.args.seed
        )


def _machine(args: argparse.Namespace) -> dict[str, str]:
    from rsparse.checkpoint.load import pick_device, pick_dtype

    device = pick_device(args.device)
    return {"suite": "search", "device": device.type, "dtype": str(pick_dtype(args.dtype, device)).removeprefix("torch.")}


def _check_source(args: argparse.Namespace) -> None:
    if bool(args.model) == bool(args.shape):
        raise RSparseError("name a MODEL, or a --shape in its place")
    if args.shape and args.calibration:
        raise RSparseError("--shape has random weights and makes its own calibration: leave --calibration out")
    if args.model and not args.calibration:
        raise RSparseError("MODEL needs its --calibration DIR, from `rsparse calibrate`")
    if args.model and args.seq_len is not None:
        raise RSparseError("--seq-len is for a --shape: MODEL's windows are its calibration's")


def _populations(text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = []
    if not found:
        raise RSparseError(f"--populations {text!r} must be whole numbers with commas, as 8,16,32")
    return found


def _report(population: int, progress: Any) -> None:
    options.say(
        f"population {population} [{progress.done}/{progress.total}] generation {progress.generation}: "
        f"best {progress.best:.4f}, {progress.per_minute:.1f} a minute, about {progress.seconds_left / 60:.0f} min left"
    )
