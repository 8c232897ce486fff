"""What the demo's table says of its rows."""

from __future__ import annotations

import pytest

from rsparse.cli.demo import PROMPTS, _print


def row(perplexity):
    figures = {"achieved_sparsity": 0.4, "bytes_per_token": 1e6, "tokens_per_second": 2.0, "tokens": 99}
    return {"perplexity": perplexity, "texts": ["word"] * len(PROMPTS)} | figures


@pytest.mark.parametrize(("sparse_only", "rsparse", "behind"), [(16.4, 16.9, True), (16.4, 16.4, False), (16.9, 16.4, False)])
def test_why_low_rank_is_behind_is_said_where_it_is(capsys, sparse_only, rsparse, behind):
    _print({"dense": row(13.9), "sparse-only": row(sparse_only), "R-Sparse": row(rsparse)}, 0.4)
    assert ("R-Sparse is behind: it spends bytes on low rank in every linear" in capsys.readouterr().out) == behind
