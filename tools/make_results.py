"""Generate docs/results.md, docs/reproduced/, the tables in README.md, docs/quality.md, docs/low_rank.md, docs/reproduce.md and
docs/gpu.md, and their plots from results/; and the records of the paper's tables, results/reproduce/MODEL/tables.

    python tools/make_results.py [--check]

`--check` writes nothing and fails where a page is not what the records give.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pages import bench, gpu, quality, uniform
from pages.folders import BENCH, COMPILED, CURVE, DECODE, DOCS, H200, KERNELS, QUALITY, REPRODUCE, ROOT, UNIFORM
from pages.markers import between
from pages.reproduced import reproduced, stale_records, tables

from rsparse import records as result_records
from rsparse.analysis import decode_plot, decode_table, kernel_plot, kernel_table
from rsparse.analysis.lever_table import is_ablation
from rsparse.analysis.pareto import plot
from rsparse.analysis.quality_table import load_records


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    records, won = load_records(BENCH), load_records(QUALITY)
    won += quality.searched(load_records(REPRODUCE), won)
    with_levers, won = won, [r for r in won if not is_ablation(r)]
    presets = [r for r in won if r["config"]["preset"] in ("balanced", "best")]
    curves = decode_table.load_records(CURVE)
    kernels, decoded = kernel_table.load_records(KERNELS), decode_table.load_records(DECODE)
    blocks: dict[Path, dict[str, str]] = {
        ROOT / "README.md": {"results": bench.readme_block([*records, *presets])},
        DOCS / "quality.md": {
            "results": quality.quality_block(records, won),
            "levers": quality.levers_block(records, with_levers),
        },
        DOCS / "low_rank.md": {"results": quality.low_rank_block([*records, *with_levers])},
        DOCS / "gpu.md": {
            "decode": gpu.decode_block(decoded),
            "lengths": decode_table.by_length(curves),
            "compiled": decode_table.markdown(decode_table.load_records(COMPILED), level=3),
            "h200": decode_table.markdown(decode_table.load_records(H200), level=3),
            "kernels": gpu.kernels_block(kernels),
        },
    }
    wanted = {path: between(path, mine) for path, mine in blocks.items()}
    wanted[DOCS / "results.md"] = bench.page(records, uniform.section(uniform.load(UNIFORM)))
    papers = tables()
    wanted |= reproduced(papers)
    written = stale_records(papers)
    if args.check:
        stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        stale += [path.name for path in written]
        print(f"stale: {', '.join(stale)}; run `make results`" if stale else "the pages match the records")
        return 1 if stale else 0
    for path, text in wanted.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for path, record in written.items():
        result_records.write(path, record)
    plot([*records, *won], DOCS / "pareto.png")
    plot([r for r in [*records, *won] if bench.pictured(r)], DOCS / "pareto-smollm2.png")
    if kernels:
        kernel_plot.plot(kernels, DOCS / "kernels.png")
    if gpu.levels(decoded) > 1:
        decode_plot.plot(decoded, DOCS / "decode.png", curves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
