"""Where records are, where pages go, and how texts are called on them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
BENCH, QUALITY = ROOT / "results" / "bench", ROOT / "results" / "quality"
GPU = ROOT / "results" / "gpu"
KERNELS, DECODE = GPU / "kernels", GPU / "decode"
CURVE, COMPILED, H200 = GPU / "decode-curve", GPU / "decode-compile", GPU / "decode-h200"
RANKS, REPRODUCE = ROOT / "results" / "rank", ROOT / "results" / "reproduce"
UNIFORM = ROOT / "results" / "uniform" / "smollm2-135m"
TEXTS = {"wikitext2-test.txt": "WikiText-2", "c4-short.jsonl": "C4"}
TITLES = TEXTS | {"stackexchange.txt": "StackExchange", "github.txt": "GitHub"}
