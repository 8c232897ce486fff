"""Kernel and parity records, against hand-worked values."""

from __future__ import annotations

import copy

import pytest

from rsparse.report.build import render
from rsparse.report.reading import read
from rsparse.report.sections import kernels as section
from tests.benchmark import kernel_rows
from tests.report.records import record, write


def kernels(*rows):
    return kernel_rows.record(list(rows))


def test_kernels_by_hand(page):
    rows = [kernel_rows.row("mlp", 0.5, 64.0), kernel_rows.row("o", 0.5, 10.0), kernel_rows.row("o", 0.5, 16.0, "recipe")]
    rows.append({"unit": "qkv", "sparsity": 0.5, "ranks": "none", "batch": 1, "commit": "abc", "failed": "no memory"})
    found = page(k__l=kernels(*rows, kernel_rows.row("o", 0.0, 40.0)))
    head, *rows = found.table("cuBLAS", "copy")
    assert head == [
        "linear or block", "sparse µs", "best dense µs, Triton by rows", "cuBLAS µs", "over best dense ×", "over cuBLAS ×",
        "of copy rate %",
    ]  # fmt: skip
    # of 33.55 MB half in 10 µs is 1.68 TB/s, all of it in 40 µs 0.84; the copy's is 3
    assert rows[:4] == [
        ["0% asked"], ["o", "40.0", "32.0", "36.0", "×0.80", "×0.90", "28"],
        ["50% asked"], ["o", "10.0", "32.0", "36.0", "×3.20", "×3.60", "56"],
    ]  # fmt: skip
    assert [row[:2] for row in rows[4:]] == [["o, low rank", "16.0"], ["MLP block", "64.0"]]
    assert "llama-2-7b on H100, bfloat16, batch 1. In → out: o 4096 → 4096. Record k/l.json." in found.text
    assert sum(tag == "svg" for tag, _ in found.elements) == 1
    assert "Every .json file of the folder is on this page" in found.text


def test_a_table_a_batch_and_the_dense_path_where_there_are_two(page):
    one, two = kernel_rows.row("o", 0.5, 10.0), kernel_rows.row("down", 0.5, 10.0, "none", "rows")
    found = page(a=kernels(one, two, kernel_rows.row("o", 0.5, 10.0, "none", "cublas", batch=2)))
    first, second = (table for table in found.tables if table[0][0] == "linear or block")
    assert [row[2] for row in first[2:]] == ["32.0 Triton by rows", "36.0 cuBLAS"]
    assert second[2] == ["o", "10.0", "32.0", "–", "×3.20", "–", second[2][-1]]


@pytest.mark.parametrize("junk", [None, "x", [1], {}], ids=["none", "text", "list", "dict"])
def test_a_kernel_record_that_is_not_whole_is_not_taken(tmp_path, monkeypatch, junk):
    monkeypatch.setattr("rsparse.report.sections.kernels.plot", lambda *arguments, **more: "")
    whole = kernels(kernel_rows.row("o", 0.5, 10.0))
    taken = set()
    for name in whole["metrics"]["rows"][0]:
        broken = copy.deepcopy(whole)
        broken["metrics"]["rows"][0][name] = junk
        taken_section = section.build(read(write(tmp_path, a=whole, b=broken))[0])
        taken |= {name} if "b.json" in taken_section.used else set()
    optional = {"copy_bytes_per_second", "commit"} if junk is None else {"commit"} if junk == "x" else set()
    shown = {"rank", "kept", "achieved_sparsity", "rank_share", "spread", "copy_share", "relative_error", "ops", "masked"}
    shown |= {"speedup_cublas", "speedup_masked", "speedup_by_bytes", "cublas_alone"} | optional
    assert taken == shown


def parity(**more):
    ratio = {"value": 1.02, "low": 0.995, "high": 1.045}
    config = {"suite": "parity", "method": "rsparse", "sparsity": 0.5, "rank_share": 0.0, "data": "a.txt"}
    config |= {"token_policy": "decode", "windows": 2}
    found = {"perplexity": 20.4, "perplexity_ratio": ratio, "kl": 0.25, "max_logit_difference": 3.0}
    return record(config | more, {"tokens": 7656, "perplexity_modules": 20.0, "imposed_masks": found, "own_masks": found})


def test_parity_by_hand(page):
    made = parity()
    made["env"]["gpu"] = "H100"
    made["metrics"]["own_masks"] = {"perplexity": 19.0, "perplexity_ratio": {"value": 0.95}, "kl": -1e-9}
    head, group, imposed, own = page(p=made).table("KL")
    assert head[:5] == ["kernels with", "reference perplexity", "kernels perplexity", "difference %", "KL nats a token"]
    assert group == ["tiny, rsparse, float32"]
    assert imposed == [
        "masks of the modules", "20.00", "20.40", "+2.00 −0.50 to +4.50", "0.2500", "3.00", "50", "0", "a.txt 7,656 tokens",
        "H100",
    ]  # fmt: skip
    assert own[:6] == ["masks of their own", "20.00", "19.00", "−5.00", "0.0000", "–"]


def test_parity_of_a_dense_model_and_of_ranks(page):
    dense, ranked = parity(method="dense", sparsity=0.0), parity(rank_share=0.125)
    del dense["metrics"]["imposed_masks"]
    dense["config"] |= {"model": "b", "weights_sha": "w2"}
    rows = page(d=dense, r=ranked).table("KL")
    assert rows[1][0] == "b, dense, float32"
    assert (rows[2][0], rows[2][6]) == ("no masks, dense", "–")
    assert rows[4][7] == "12.5% of the bytes read"


@pytest.mark.parametrize("junk", [True, 10**400, float("nan"), [None], {"a": {}}], ids=["true", "huge", "nan", "list", "dict"])
def test_junk_in_a_parity_record_is_no_mistake_of_the_program(tmp_path, junk):
    whole = parity()
    for part, names in (("config", whole["config"]), ("metrics", whole["metrics"])):
        for name in names:
            broken = copy.deepcopy(whole)
            broken[part][name] = junk
            render(*read(write(tmp_path, good=whole, broken=broken)), "title")
