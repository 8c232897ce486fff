"""Measure uniform recipes (one sparsity and one rho for all units) on a model: a record a cell, resumable.

    python tools/measure_uniform.py MODEL --calibration-data c4-calibration.jsonl \\
        --data wikitext2-test.txt --data c4-short.jsonl -o results/uniform
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rsparse.calibration import TextSource, calibrate
from rsparse.calibration.windows import make_windows
from rsparse.checkpoint import from_pretrained
from rsparse.conversion import sparsify
from rsparse.evaluation.describe import backend, model_config, short
from rsparse.evaluation.perplexity import evaluate
from rsparse.methods import make_recipe
from rsparse.records import Run, write
from rsparse.sparse_model import densify, is_sparse
from rsparse.token_policy import TokenPolicy


def cells(levels: list[float]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(name, method, options) of each recipe; dense first."""
    yield "dense", "dense", {}
    for level in levels:
        at = {"sparsity": level}
        for criterion in ("magnitude", "column_norm"):
            yield f"s{level:g}-sparse_only-{criterion}", "sparse_only", at | {"criterion": criterion}
        for rho, fit, criterion in (
            (0.98, "dropped", "magnitude"),
            (0.95, "svd", "magnitude"),
            (0.95, "dropped", "magnitude"),
            (0.95, "svd", "column_norm"),
            (0.95, "dropped", "column_norm"),
            (0.95, "dropped", "residual_norm"),
            (0.9, "svd", "magnitude"),
            (0.9, "dropped", "magnitude"),
        ):
            options = at | {"rho": rho, "fit": fit, "criterion": criterion}
            yield f"s{level:g}-rho{rho:g}-{fit}-{criterion}", "rsparse", options
        for fit in ("svd", "dropped"):
            for stacked in (False, True):
                name = f"s{level:g}-rho0.95-{fit}-magnitude-group-{'stacked' if stacked else 'own'}"
                options = at | {"rho": 0.95, "fit": fit, "criterion": "magnitude", "grouping": "group", "stacked": stacked}
                yield name, "rsparse", options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration-data", required=True)
    parser.add_argument("--calibration-tokens", type=int, default=48 * 512)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--levels", type=float, nargs="+", default=[0.4, 0.5, 0.6])
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--settle-tokens", type=int, help="default: all calibration tokens; 0 looks thresholds up")
    parser.add_argument("--only", default="", help="only cells whose name contains this")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()

    model, tokenizer = from_pretrained(args.model, dtype=args.dtype, device=args.device)
    texts = {
        short(name): make_windows(TextSource(name).documents(), tokenizer, 512, max_windows=args.max_windows, source=name)
        for name in args.data
    }
    calibration = calibrate(model, tokenizer, args.calibration_data, tokens=args.calibration_tokens, name=args.model)
    for name, method, options in cells(args.levels):
        paths = {text: args.out / short(args.model).removesuffix(".gguf") / f"{name}-{Path(text).stem}.json" for text in texts}
        if args.only not in name or all(path.exists() for path in paths.values()):
            continue
        if method != "dense":
            settle = args.calibration_tokens if args.settle_tokens is None else args.settle_tokens
            sparsify(model, make_recipe(model, method, **options), calibration, settle_tokens=settle)
        for text, windows in texts.items():
            timer = Run()
            result = evaluate(model, windows, TokenPolicy("all"))
            config = {
                "data": text,
                "seq_len": 512,
                "token_policy": "all",
                "sink_tokens": 1,
                "stacked": options.get("stacked", False),
            }
            write(
                paths[text],
                timer.record(model_config(model, args.model) | config, _rounded(result.metrics()), backend=backend(model)),
            )
            print(f"{name:<48} {text:<20} {result.perplexity:8.3f} {result.achieved_sparsity:.4f}", flush=True)
        if is_sparse(model):
            densify(model)


def _rounded(metrics: dict[str, Any]) -> dict[str, Any]:
    """Six digits are more than the measurement bears, and keep the files small."""
    by_unit = metrics.pop("sparsity_by_unit", None)
    out = {name: round(value, 6) if isinstance(value, float) else value for name, value in metrics.items()}
    if by_unit is not None:
        out["sparsity_by_unit"] = {name: round(value, 4) for name, value in by_unit.items()}
    return out


if __name__ == "__main__":
    main()
