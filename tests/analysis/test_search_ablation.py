"""Searches of several populations as a table and a picture."""

from __future__ import annotations

import itertools
import json
import math

import matplotlib.image
import pytest

from rsparse.analysis.search_ablation import load_records, markdown, plot
from rsparse.errors import RSparseError

HISTORIES = {8: [3.0, 2.5, 2.5], 2: [3.2, 3.1, 2.9], 16: [2.9, 2.4, 2.3]}


def record_of(population, history=(3.0, 2.5, 2.5), objective="perplexity", **config):
    common = {"model": "a-model.gguf", "weights_sha": "abcdef", "dtype": "bfloat16", "suite": "search", "sparsity": 0.5}
    common |= {"generations": 3, "samples": 4, "seq_len": 24, "criterion": "paper", "fit": "svd", "grouping": "linear"}
    common |= {"seed": 7, "calibration": "text.txt, 768 tokens", "population": population, "objective": objective}
    metrics = {"sparse_only_fitness": 3.3, "history": list(history), "evaluations": 3 * population, "stopped_early": 0.25}
    metrics |= {"seconds_per_candidate": 1.2345, "factors_seconds": 12.34, "search_seconds": 56.7 * population}
    return {"env": {"gpu": None, "cpu": "a cpu"}, "config": common | config, "metrics": metrics}


def all_records(**more):
    return [record_of(population, HISTORIES[population], **more) for population in sorted(HISTORIES)]


def test_records_are_found_by_population(tmp_path):
    for population in HISTORIES:
        (tmp_path / f"population-{population}.json").write_text(json.dumps(record_of(population)))
    (tmp_path / "population-4.json").write_text(json.dumps(record_of(4, suite="quality")))
    (tmp_path / "settings.json").write_text("{}")
    assert [record["config"]["population"] for record in load_records(tmp_path)] == [2, 8, 16]
    (tmp_path / "population-32.json").write_text('{"config": 3}')
    with pytest.raises(RSparseError, match=r"population-32.json is not a result record"):
        load_records(tmp_path)


def test_the_table(tmp_path):
    lines = markdown(all_records()).splitlines()
    assert lines[0] == "## Search on a-model"
    said = ["Weights abcdef, bfloat16, on a cpu.", "Best perplexity", "4 windows of 24 tokens", "text.txt, 768 tokens", "50%"]
    assert all(words in lines[2] for words in [*said, "criterion paper", "fit svd", "grouping linear", "seed 7"])
    head, _, *rows = lines[4:]
    assert head.split(" | ")[1:5] == ["sparse-only", "generation 1", "2", "3"]
    e = math.exp
    assert rows[1] == f"| 8 | {e(3.3):.3f} | {e(3):.3f} | {e(2.5):.3f} | {e(2.5):.3f} | 24 | 25% | 1.23 | 12.3 | 454 |  |"
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 8", "| 16"]


def test_published_generations_have_a_row_of_their_own():
    rows = markdown(all_records(), {1: 13.58, 3: 11.44, 4: 7.85}).splitlines()[6:]
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 8", "| 16", "| published, model not stated"]
    assert rows[-1] == "| published, model not stated |  | 13.58 |  | 11.44 |  |  |  |  |  |  |"
    assert "published" not in markdown(all_records(objective="kl"), {1: 13.58})


def test_what_a_gpu_held():
    records = all_records()
    records[0]["metrics"]["peak_gpu_bytes"] = 30_835_394_048
    assert [row.split(" | ")[-1] for row in markdown(records).splitlines()[6:]] == ["30.8 |", " |", " |"]


def test_every_machine_is_named():
    records = all_records()
    records[1]["env"]["gpu"] = "a gpu"
    assert "on a cpu and a gpu." in markdown(records)


def test_kl_and_random_weights_are_said():
    lines = markdown(all_records(objective="kl", weights="random")).splitlines()
    assert "Weights abcdef, random, bfloat16" in lines[2]
    assert "KL to dense (nats a token)" in lines[2]
    assert "| 8 | 3.3000 | 3.0000 | 2.5000 | 2.5000 |" in lines[7]


@pytest.mark.parametrize("objective", ["perplexity", "kl"])
def test_the_best_by_evaluations(tmp_path, drawn, objective):
    plot(
        all_records(objective=objective),
        tmp_path / "search.png",
    )
    (axis,) = drawn().axes
    value = math.exp if objective == "perplexity" else float
    lines = {line.get_label(): line for line in axis.lines}
    assert list(lines) == ["population 2", "population 8", "population 16", "sparse-only"]
    for population, history in HISTORIES.items():
        line = lines[f"population {population}"]
        assert list(line.get_xdata()) == [population, 2 * population, 3 * population]
        assert list(line.get_ydata()) == pytest.approx([value(each) for each in history])
    assert lines["sparse-only"].get_ydata()[0] == pytest.approx(value(3.3))
    assert objective in axis.get_ylabel()
    ticks = axis.get_xticks()
    assert all(later > 1.39 * earlier for earlier, later in itertools.pairwise(ticks))
    assert matplotlib.image.imread(tmp_path / "search.png").std() > 0.05
    assert [each.name for each in tmp_path.iterdir()] == ["search.png"]
