"""rsparse demo: the whole path on a real model, in one command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rsparse.cli import _options as options

HELP = "calibrate, sparsify, compare and save the embedded model: the whole path in minutes"

# The 135M model keeps within 1.25x of its dense perplexity up to about here (results/uniform); larger
# models bear 0.5.
SPARSITY = 0.4
RHO = 0.95
CALIBRATION_TOKENS, SETTLE_TOKENS, TEST_TOKENS, SEQ_LEN, ROWS = 8192, 4096, 4096, 512, 2048
PROMPTS = ("The capital of France is", "To make a cup of tea, first")
NEW_TOKENS = 48
BEHIND = 1.005  # times sparse-only's perplexity: nearer, neither is ahead


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m", help=options.MODEL_HELP)
    parser.add_argument("--sparsity", type=float, default=SPARSITY, help="default %(default)s")
    parser.add_argument("-o", "--out", type=Path, default=Path("demo"), metavar="DIR", help="default %(default)s")
    options.add_machine(parser)
    options.add_seed(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> None:
    from rsparse.analysis.recipe_plot import plot_recipe
    from rsparse.atomic import check_target
    from rsparse.calibration import TextSource, calibrate
    from rsparse.calibration.windows import make_windows
    from rsparse.checkpoint import save_pretrained
    from rsparse.conversion import sparsify
    from rsparse.methods import make_recipe
    from rsparse.records import Run
    from rsparse.sparse_model import densify, recipe_state

    timer = Run()
    options.check_json(args)
    again = (args.out / "rsparse.safetensors").is_file()
    check_target(args.out, overwrite=again)  # an earlier demo is replaced, anything else is not
    model, tokenizer = options.load(args)
    recipes = {
        "sparse-only": make_recipe(model, "sparse_only", args.sparsity),
        "R-Sparse": make_recipe(model, "rsparse", args.sparsity, rho=RHO),
    }
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    options.say(f"model: {args.model} ({millions:.0f}M parameters, {model.dtype}, {model.device})")
    options.say(
        f"level: {args.sparsity:.0%} of the linears' bytes not read. The 135M model stays sane up to about 40 %; "
        "the paper reports 50 % for 7B models."
    )
    calibration = calibrate(
        model, tokenizer, "bundled", tokens=CALIBRATION_TOKENS, seq_len=SEQ_LEN, rows=ROWS, seed=args.seed, name=args.model
    )
    test = make_windows(
        TextSource("bundled:test").documents(), tokenizer, SEQ_LEN, max_windows=TEST_TOKENS // SEQ_LEN, source="bundled:test"
    )
    rows = {"dense": _measure(model, tokenizer, test, "dense")}
    for label, recipe in recipes.items():
        sparsify(model, recipe, calibration, settle_tokens=SETTLE_TOKENS, backend=args.backend, seed=args.seed)
        rows[label] = _measure(model, tokenizer, test, label)
        if label != "R-Sparse":
            densify(model)
    _print(rows, args.sparsity)
    save_pretrained(model, args.out, tokenizer, overwrite=again)
    plot_recipe(recipe_state(model).recipe, args.out / "recipe.png")
    print(f"\nsaved the R-Sparse checkpoint and recipe.png to {args.out}/; try\n  rsparse show {args.out}")
    print(f"  rsparse generate {args.out} --chat --prompt 'Why is the sky blue?'")
    config = {"data": "bundled:test", "token_policy": "all", "seq_len": SEQ_LEN}
    dense, sparse = rows["dense"]["tokens_per_second"], rows["R-Sparse"]["tokens_per_second"]
    metrics = rows["R-Sparse"] | {"dense_tokens_per_second": dense, "speedup": sparse / dense, "rows": rows}
    options.write_record(args, timer, model, config, metrics)


def _measure(model: Any, tokenizer: Any, windows: Any, label: str) -> dict[str, Any]:
    """Quality on the test text, and the speed and text of a short generation."""
    from rsparse.evaluation.perplexity import evaluate
    from rsparse.runtime import generate

    metrics = evaluate(model, windows, against_dense=False, label=label).metrics()
    metrics.pop("sparsity_by_unit", None)
    generate(model, tokenizer, PROMPTS[:1], max_new_tokens=4, ignore_eos=True)  # warm-up
    results = [generate(model, tokenizer, [prompt], max_new_tokens=NEW_TOKENS, ignore_eos=True) for prompt in PROMPTS]
    speeds = [result.decode_tokens_per_second for result in results]
    return metrics | {"tokens_per_second": max(speed for speed in speeds if speed), "texts": [r.texts[0] for r in results]}


def _print(rows: dict[str, dict[str, Any]], sparsity: float) -> None:
    print(f"\n{'':<12} {'perplexity':>10} {'achieved sparsity':>18} {'MB per token':>13} {'tokens/s':>9}")
    for label, row in rows.items():
        print(
            f"{label:<12} {row['perplexity']:>10.2f} {row['achieved_sparsity']:>18.3f} "
            f"{row['bytes_per_token'] / 1e6:>13.1f} {row['tokens_per_second']:>9.1f}"
        )
    tokens = next(iter(rows.values()))["tokens"]
    print(
        f"Perplexity: {tokens} tokens of the bundled Python reference that calibration did not see, every token but "
        "each window's first sparse.\nBytes: weights that one token reads, head included. Tokens/s: plain PyTorch, "
        "which reads dropped weights all the same; kernels that skip them run on CUDA."
    )
    if rows["R-Sparse"]["perplexity"] > BEHIND * rows["sparse-only"]["perplexity"]:
        print(
            "R-Sparse is behind: it spends bytes on low rank in every linear, and in most of a small model's they buy more as "
            "channels\n(docs/low_rank.md); `rsparse sparsify --quality balanced` takes low rank only where it pays."
        )
    for number, prompt in enumerate(PROMPTS):
        print(f"\n{prompt} ...")
        for label, row in rows.items():
            print(f"  {label:<12} {' '.join(row['texts'][number].split())[:150]}")
