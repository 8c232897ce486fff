"""Records of perplexity by hand, for the tables of what a method wins back."""

from __future__ import annotations

TEXTS = ["a.txt", "b.txt"]


def record(preset, level, data, policy="all", *, gpu="H100", recipe=None, fit=None, **metrics):
    config = {"model": "tiny.gguf", "preset": preset, "sparsity": level, "token_policy": policy, "data": data}
    config |= {"recipe_seconds": recipe, "fit_seconds": fit}
    return {"config": config, "metrics": metrics, "env": {"gpu": gpu, "cpu": "a CPU"}}


def texts(preset, level, a, b, **options):
    return [record(preset, level, text, perplexity=p, **options) for text, p in (("a.txt", a), ("b.txt", b))]


BASE = [*texts("dense", 0.0, 10.0, 20.0), *texts("sparse_only", 0.5, 14.0, 30.0)]
