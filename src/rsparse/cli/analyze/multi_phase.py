"""rsparse analyze multi-phase."""

from __future__ import annotations

import argparse
from typing import Any

from rsparse.cli import _options as options
from rsparse.cli.analyze import _kind

HELP = "the MLP's small activations as a few constants: perplexity by sparsity and phases, rank of the bias terms; resumes"


def configure(parser: argparse.ArgumentParser) -> None:
    _kind.add_common(parser)
    parser.add_argument("--data", default="allenai/c4:en", help=f"{options.DATA_HELP} (default %(default)s)")
    _kind.add_windows(parser, 512, 8192)
    parser.add_argument("--levels", default="0.3,0.5,0.7", help="shares of H below T0, with commas (default %(default)s)")
    parser.add_argument("--phases", default="1,2,4,8,16,32", help="numbers of phases, with commas (default %(default)s)")
    parser.add_argument("--sink-tokens", type=int, default=1, help="first tokens that stay dense (default %(default)s)")


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.multi_phase import bias_terms, down_sites
    from rsparse.analysis.multi_phase_views import FEW, by_layer, lines, plot, summary
    from rsparse.analysis.points import Points
    from rsparse.evaluation.describe import short
    from rsparse.records import Run

    timer = Run()
    levels, phases = _kind.numbers(args.levels, "--levels", 0, 1), _kind.whole(args.phases, "--phases")
    _kind.check(args, [args.data])
    model, tokenizer = _kind.load_dense(args)
    down_sites(model)
    windows = _kind.windows_of(args, tokenizer, args.data)
    config: dict[str, Any] = {"data": short(args.data), "seq_len": args.seq_len, "sink_tokens": args.sink_tokens}
    points = Points(_kind.points_path(args), config | _kind.stamp(args, model, windows))
    rank_level = min(levels, key=lambda level: abs(level - 0.5))
    # A term a phase and token: more phases cost in proportion, and are of higher rank still.
    few = [count for count in phases if count <= FEW] or phases[:1]
    layers = bias_terms(model, windows, levels, rank_level, few, args.sink_tokens)
    dense, grid = _grid(args, model, windows, layers, levels, phases, points)
    title = _kind.title(args, f"multi-phase ReLU, {windows.numel()} tokens of {short(args.data)}")
    plot(grid, dense, layers, rank_level, title, _kind.picture_path(args))
    metrics: dict[str, Any] = {"tokens": windows.numel(), "summary": summary(grid, dense, layers), "by_block": by_layer(layers)}
    metrics["points"] = {f"{level:g}": {str(count): point for count, point in row.items()} for level, row in grid.items()}
    config |= {"levels": levels, "phases": phases, "rank_level": rank_level}
    _kind.end(args, timer, model, config, metrics, lines(grid, dense, layers, rank_level))


def _grid(
    args: argparse.Namespace, model: Any, windows: Any, layers: Any, levels: list[float], phases: list[int], points: Any
) -> tuple[float, dict[float, dict[int, dict[str, Any]]]]:
    """(dense perplexity, points by level and phases)."""
    from rsparse.analysis.multi_phase import phase_point
    from rsparse.evaluation.perplexity import evaluate
    from rsparse.progress import progress

    def point(level: float, count: int) -> dict[str, Any]:
        return phase_point(model, windows, [layer.t0[level] for layer in layers], count, args.sink_tokens)

    dense = points.get("dense", lambda: {"perplexity": evaluate(model, windows, label="dense").perplexity})["perplexity"]
    grid: dict[float, dict[int, dict[str, Any]]] = {level: {} for level in levels}
    with progress(len(levels) * len(phases), "analyze", unit="point") as bar:
        for level in levels:
            for count in phases:
                grid[level][count] = points.get(f"s{level:g}-p{count}", lambda level=level, count=count: point(level, count))
                bar.update()
    return dense, grid
