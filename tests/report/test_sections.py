"""Speed, search, analyses, the paper's tables, refusals, method cards and what is missing."""

from __future__ import annotations

import base64

import pytest

from rsparse.report import sections
from rsparse.report.build import render
from rsparse.report.reading import read
from rsparse.report.sections import reproduction
from tests.report.records import Page, quality, record, write

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20 + b"IEND\xaeB`\x82"
SEARCH = {
    "suite": "search", "population": 8, "generations": 2, "sparsity": 0.5, "objective": "kl", "samples": 4, "seq_len": 64,
}  # fmt: skip


def test_sections_are_files_in_their_order():
    first, *middle, last = sections.names()
    assert (first, last) == ("headlines", "method_cards")
    assert middle[:6] == ["protocol", "pareto", "quality", "tasks", "reproduction", "refusals"]
    assert middle[6:] == ["speed", "kernels", "parity", "search", "analyses"]


def decode(method, sparsity, rate, dense=None, **more):
    """`dense`: tokens a second by path."""
    dense = dense or {"compile": 90.0, "steps": 100.0}
    best = max(dense, key=dense.get)
    config = {"suite": "decode", "method": method, "sparsity": sparsity, "batch": 1, "new_tokens": 256}
    speeds = {"tokens_per_second": rate, "dense_tokens_per_second": dense[best], "speedup": round(rate / dense[best], 4)}
    cublas = max(dense[name] for name in dense if name != "steps")
    speeds |= {"speedup_cublas": round(rate / cublas, 4), "dense": {k: {"tokens_per_second": v} for k, v in dense.items()}}
    return record(config | more, speeds | {"speedup_by_bytes": 1.9, "bytes_per_second": 2e12, "achieved_sparsity": sparsity})


def test_speeds_stand_beside_their_baselines(page):
    found = page(a=decode("teal", 0.5, 1500.0, batch=2), b=decode("wina", 0.5, 80.0))
    head, _, teal, wina = found.table("bandwidth")
    assert head[:5] == ["method", "achieved %", "batch", "speed tokens/s", "best dense tokens/s"]
    assert head[5:] == [
        "over best dense ×", "over best cuBLAS ×", "bound by bytes ×", "bandwidth GB/s", "dense compile tokens/s",
        "dense steps tokens/s",
    ]  # fmt: skip
    assert teal[:5] == ["teal", "50.0", "2", "1,500 best", "100"]
    assert teal[5:] == ["×15.00 best steps", "×16.67 compile", "×1.90", "2,000", "90", "100"]
    assert wina[3:7] == ["80", "100", "×0.80 steps", "×0.89 compile"]


def test_lengths_stand_in_their_order(page):
    made = decode("teal", 0.5, 150.0)
    made["metrics"]["by_length"] = {length: {"tokens_per_second": 9.0} for length in ("128", "1024", "256")}
    head = page(a=made).table("bandwidth")[0]
    assert [each for each in head if each.startswith("at ")] == ["at 128 tokens/s", "at 256 tokens/s", "at 1024 tokens/s"]


def test_a_run_without_the_fastest_dense_path_says_so(page):
    slower = {"compile": 90.0, "steps-cublas": 95.0}
    cells = {"s__a": decode("teal", 0.5, 150.0), "t__b": decode("teal", 0.5, 160.0, slower)}
    found = page(**cells, u__c=decode("teal", 0.5, 170.0, slower, batch=2))
    captions = [attrs["aria-label"] for tag, attrs in found.elements if "generation" in attrs.get("aria-label", "")]
    lacking = "Without the fastest dense path**, steps (100 tokens/s in s): speed-ups here are over slower ones."
    assert [lacking in each for each in captions] == [False, True, False]  # at another batch none is known to be faster
    said = "teal makes 150 tokens/s, faster than dense: ×1.50 the best dense path of its run (steps, 100 tokens/s), and ×1.67 "
    assert f"{said}the best with cuBLAS (compile)." in found.text  # not the ×1.68 over less


def test_headlines_tell_the_level_in_the_middle_and_real_weights_first(page):
    cells = {f"b{each:g}": decode("teal", each / 100, 100 + each) for each in (40, 50, 70)}
    random = {"weights": "random", "model": "big", "weights_sha": "w9"}
    found = page(**cells, d=decode("teal", 0.5, 1125.4, batch=4), e=decode("teal", 0.7, 180.0, **random))
    heads = [attrs["id"] for _, attrs in found.elements if attrs.get("id", "").startswith("headlines-")]
    assert heads == ["headlines-tiny", "headlines-big"]
    assert "big, random weights" in found.text
    lines = [line for line in found.text.splitlines() if "Generation on" in line]
    assert "Generation on a processor, float32, batch 1, at 50% asked: teal makes 150 tokens/s" in found.text
    assert "Generation on a processor, float32, batch 1, at 70% asked: teal makes 180 tokens/s" in found.text
    assert sum(line.count("Generation on") for line in lines) == 2


def test_a_loss_is_called_one(page):
    said = page(
        a=decode("teal", 0.5, 80.0), b=decode("wina", 0.5, 1125.4, {"compile": 1178.3}, model="c", weights_sha="2")
    ).text
    assert "teal makes 80 tokens/s, slower than dense: ×0.80 the best dense path of its run (steps, 100 tokens/s)" in said
    assert (
        "wina makes 1,125 tokens/s, slower than dense: ×0.96 the best dense path of its run (compile, 1,178 tokens/s)." in said
    )


def test_the_course_of_a_search(page):
    small = record(SEARCH, {"history": [0.5, 0.4], "sparse_only_fitness": 0.45, "evaluations": 16, "search_seconds": 3.5})
    large = record(SEARCH | {"population": 16}, {"history": [0.6, 0.3], "sparse_only_fitness": 0.45})
    found = page(p__b=large, p__a=small)
    head, first, second = found.table("population")
    assert head == ["population", "sparse-only", "generation 1", "generation 2", "candidates", "in all s"]
    assert first == ["8", "0.4500", "0.5000 best", "0.4000", "16", "3.5"]
    assert second == ["16", "0.4500", "0.6000", "0.3000 best", "–", "–"]
    assert any(tag == "svg" for tag, _ in found.elements)


def test_an_analysis_has_its_lines_and_its_picture(tmp_path, page):
    write(tmp_path, an__rank=record({"suite": "analyze", "kind": "rank"}, {"lines": ["90 % takes a third", "claim: holds"]}))
    (tmp_path / "an" / "rank.png").write_bytes(PNG)
    found = page(an__rho=record({"suite": "analyze", "kind": "rho"}, {"perplexity": 3.0}))
    images = [attrs for tag, attrs in found.elements if tag == "img"]
    assert [image["src"] for image in images] == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert images[0]["alt"] == "Plot of rank for tiny; the lines before it say what is to be seen"
    assert "claim: holds" in found.text
    assert "rho.png, is not beside the record" in found.text
    assert "no line that says what to see" in found.text


@pytest.mark.parametrize("data", [b"GIF89a", PNG[:-12]])
def test_a_picture_that_is_none_or_cut_short_is_not_taken(tmp_path, page, data):
    (tmp_path / "rank.png").write_bytes(data)
    found = page(rank=record({"suite": "analyze", "kind": "rank"}, {"lines": ["seen"]}))
    assert not [attrs for tag, attrs in found.elements if tag == "img"]
    assert "rank.png, is not beside the record, or is damaged" in found.text


LAST = "last_fraction:0.1"


def reproduced(name, *rows, model="tiny", **metrics):
    return record({"suite": "reproduce", "table": name, "model": model, "weights_sha": model}, {"rows": list(rows), **metrics})


def test_the_papers_tables_have_published_figures_under_their_own_policy(page):
    dense = {"mean": 55.0, "tasks": {"WG": 60.0, "HS": 50.0}, "published": [{"model": "L", "sparsity": 0.0, "mean": 65.88}]}
    refused = {"refused": ["past its floor"]}
    rows = [
        {"preset": "dense", "sparsity": 0, "policies": {LAST: dense, "all": {"mean": 55.0}}},
        {"preset": "cats", "sparsity": 0.5, "policies": {LAST: refused, "all": {"mean": 50.0, "achieved_sparsity": 0.48}}},
        {"preset": "teal", "sparsity": 0.5, "policies": {LAST: {"failed": ["no room"]}, "all": {}}},
    ]
    found = page(main=reproduced("main", *rows, lines=["No figure for cats."]))
    assert found.table("published") == [
        ["method", f"{LAST} mean, %", "achieved %", "L published", "all mean, %", "achieved %"],
        ["dense, or a level of its own"], ["dense", "55.00", "–", "65.88", "55.00", "–"],
        ["50% asked"], ["cats", "below its floor", "–", "–", "50.00", "48.0"], ["teal", "failed", "–", "–", "–", "–"],
    ]  # fmt: skip
    assert found.table("WG")[2] == ["dense", "60.0", "50.0"]
    assert "No figure for cats." in found.text


def test_perplexities_have_what_is_published_of_them_alone(page):
    found = {"perplexity": {"a": 9.0}, "published": [{"mean": 7.15}]}
    rows = [{"preset": "searched-population8", "variant": "4 bits", "sparsity": 0.5, "policies": {LAST: found}}]
    alone = page(size=reproduced("search-size", *rows)).table("published")
    assert alone[0] == ["method", f"a {LAST}", "achieved %", "model not stated, level not stated published"]
    assert alone[2] == ["R-Sparse (searched, population 8), 4 bits", "9.00", "–", "7.15"]
    found["mean"] = 50.0  # with tasks in the table it is theirs
    means, perplexities = (table[0] for table in page(size=reproduced("search-size", *rows)).tables if "achieved %" in table[0])
    assert [any("published" in head for head in each) for each in (means, perplexities)] == [True, False]


def test_the_papers_ordering_is_a_table(page):
    rows = [{"preset": "cats", "sparsity": 0.4, "policies": {LAST: {"mean": 50.0}, "all": {"mean": 49.0}}}]
    pair = {"better": "R-Sparse (searched)", "worse": "cats", "sparsity": 0.4}
    ordering = {LAST: [pair | {"verdict": "holds", "detail": "+5 points"}], "all": [pair | {"verdict": "reversed"}]}
    found = page(main=reproduced("main", *rows, ordering=ordering, lines=["Paper's ordering: long.", "Other."]))
    assert found.table("paper") == [
        ["the paper has", "asked %", f"{LAST} token policy", "all token policy"],
        ["R-Sparse (searched) over cats", "40", "holds +5 points", "reversed"],
    ]
    assert "Paper's ordering: long" not in found.text
    assert "Other." in found.text
    assert "Paper's ordering: none" in page(main=reproduced("main", *rows, lines=["Paper's ordering: none."])).text


def test_the_papers_tables_stand_as_on_their_pages(page):
    row = {"preset": "cats", "sparsity": 0.4, "policies": {"all": {"mean": 50.0}}}
    said = {"lines": ["Published figures are of other models, each named: a paper.", "Not at hand."]}
    cells = {f"{model}_{n}": reproduced(t, row, model=model, **said) for model in ("b", "a") for n, t in enumerate(
        ("search-size", "parts", "main", "mine")
    )}  # fmt: skip
    found = page(**cells)
    order = [found.text.index(words, found.text.rindex("In the order and")) for words in (
        "a paper", "Main results", "Parts: both", "Mine", "Search size",
    )]  # fmt: skip
    assert order == sorted(order)
    assert found.text.count("a paper.") == 2  # once a model
    assert found.text.count("Not at hand.") == 8  # of each table


@pytest.mark.parametrize(
    "junk", [None, True, 10**400, "x", [None], {"a": {}}], ids=["none", "true", "huge", "text", "list", "dict"]
)
def test_junk_in_a_record_of_the_papers_tables_is_no_mistake_of_the_program(tmp_path, junk):
    figures = {"mean": 1.0, "tasks": {"WG": 1.0}, "perplexity": {"a": 2.0}, "achieved_sparsity": 0.5, "refused": ["floor"]}
    figures |= {"failed": ["x"], "published": [{"model": "L", "sparsity": 0.5, "mean": 2.0}]}
    pair = {"better": "a", "worse": "b", "sparsity": 0.4, "verdict": "holds", "detail": "x"}
    row = {"preset": "cats", "variant": "", "sparsity": 0.5, "policies": {"all": figures}}
    for part, names in (("figures", figures), ("pair", pair), ("row", row), ("metrics", ("rows", "ordering", "lines"))):
        for name in names:
            broken = {"figures": dict(figures), "pair": dict(pair), "row": dict(row)}
            broken["metrics"] = {"rows": [broken["row"]], "ordering": {"all": [broken["pair"]]}, "lines": ["x"]}
            broken["row"]["policies"] = {"all": broken["figures"]}
            broken[part][name] = junk
            made = record({"suite": "reproduce", "table": "main"}, broken["metrics"])
            reproduction.build(read(write(tmp_path, a=made))[0])


def test_a_refused_cell_says_why(page):
    config = {"suite": "refused", "preset": "cats", "method": "cats", "sparsity": 0.7, "token_policy": "all", "data": "a.txt"}
    rows = page(cats=record(config, {"refused": "its floor is 52 %"})).table("why")
    assert rows[1:] == [["tiny"], ["cats", "70", "all", "a.txt", "its floor is 52 %"]]


def test_a_card_is_the_docstring_of_the_methods_file(page):
    cells = {"a": quality("cats-level-own", 0.5, rows="10"), "b": quality("teal-compensate-steps100", 0.5, rows="10")}
    cells["c"] = quality("best", 0.5, rows="10") | {}
    cells["c"]["config"] |= {"method": "joint", "compensation": "c4"}
    cells["d"] = quality("mine", 0.5, rows="10")
    found = page(**cells)
    cards = [
        attrs["id"].removeprefix("methods-") for tag, attrs in found.elements if attrs.get("id", "").startswith("methods-")
    ]
    assert cards == ["cats", "compensate", "joint", "mine", "teal"]
    assert "a threshold on |act(gate x)|, up and down sparse." in found.text
    assert "The threshold is solved with everything before it already sparse" in found.text  # what differs from the source
    assert "https://arxiv.org/abs/2404.08763" in found.attributes("href")
    assert "level=asked" in found.text
    assert "TEAL's block-wise greedy allocation of sparsity" in found.text  # what teal's own docstring sends its reader to
    assert "this installation has no method of that name" in found.text


def test_the_protocol_has_what_a_reader_must_know(tmp_path, page):
    settings = {"texts": {"a": "0123"}, "tasks": {"words": "4567"}}
    cells = {
        "s__m__a": quality("teal", 0.5, text="a.txt", nll=[1.0, 2.0], calibration="c4, 99 tokens"),
        "s__m__b": quality("teal", 0.5, rows="10"),
    }
    found = page(settings=settings, **cells)
    for said in (
        "c4, 99 tokens",
        "w1 float32",
        "a.txt (sha-256 0123)",
        "words (4567)",
        "a processor",
        "torch 2",
        "2026-01-02",
        "commit",
    ):
        assert said in found.text


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path, good=quality("teal", 0.5, rows="10"), odd=record({}, {"something": 1}), other=[1])
    html, lost = render(*read(tmp_path), "title")
    found = Page(html)
    assert lost == 1
    assert found.table("why")[1:] == [
        [".", "1", "a record that fits no section: what they show is not in it", "odd.json"],
        [".", "1", "no result record: it has no config and metrics", "other.json"],
    ]
    assert "Speed: no record here has anything for this section." in found.text
