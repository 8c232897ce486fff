"""Tables on tiny models, from cells to records."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rsparse.benchmark.settings import SETTINGS_FILE, Settings
from rsparse.errors import RSparseError
from rsparse.evaluation.tasks import load_tasks
from rsparse.reproduce.results import Results
from rsparse.reproduce.run import Reproduction
from rsparse.reproduce.table import BASE, Row, Variant
from rsparse.reproduce.view import markdown
from tests.reproduce.requests import ALL, CHOICE, LAST, request, table
from tests.support.models import text_file, tiny_model, tiny_tokenizer

INT4, FEW = Variant("int4", "4 bits", weight_bits=4), Variant("few", "few", windows=3)
SEARCHES = Variant("search-size", searches=True)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    text_file(tmp_path, 500, seed=1).rename(tmp_path / "calibration.txt")
    text_file(tmp_path, 60, seed=2).rename(tmp_path / "one.txt")
    (tmp_path / "tasks").mkdir()
    rows = [{"context": f"the river {i}", "choices": ["stone", "light and bread", "her"], "label": i % 3} for i in range(4)]
    (tmp_path / "tasks" / "words.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sums = [{"context": "1 and 1 are", "answer": "2"}, {"context": "2 and 1 are", "answer": "3"}]
    (tmp_path / "tasks" / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    return tmp_path


class Tried:
    """A reproduction that counts its loads and keeps what it said."""

    def __init__(self, files: Path, *tables, seed: int = 0, **changes) -> None:
        settings = Settings(str(files / "calibration.txt"), 480, seq_len=24, seed=seed, tasks={"words": "x"})
        given = {"settings": settings, "texts": (str(files / "one.txt"),), "generated": {"sums": "y"}}
        self.asked, self.out, self.tables = request(**(given | changes)), files / "out", tables
        self.loads, self.said = 0, []
        self.runner = Reproduction(tables, self.asked, self.out, self.load, load_tasks(None, files / "tasks"), self.said.append)

    def load(self, name):
        self.loads += 1
        self.model = tiny_model("llama")
        return self.model, tiny_tokenizer()

    def record(self, path):
        return json.loads((self.out / path).read_text())


def test_one_load_serves_all_tables_and_a_second_run_none(files):
    mine = table(Row("sparse_only", (0.4,), (BASE, INT4, FEW)), tasks=True, texts=True)
    tried = Tried(files, mine, table(Row("sparse_only", (0.4,)), texts=True))
    assert tried.runner.run() == []
    assert tried.loads == 1
    assert sorted(path.parent.parent.name for path in tried.out.rglob("sparse_only-s0.4-all-one.json")) == [
        "few",
        "int4",
        "out",
    ]
    base, int4 = (tried.record(f"{folder}tiny/sparse_only-s0.4-all-one.json") for folder in ("", "int4/"))
    assert base["config"]["weights_sha"] != int4["config"]["weights_sha"]
    assert (int4["config"]["weights"], base["config"].get("weights")) == ("int4, groups of 128, rounded to nearest", None)
    assert tried.record("few/tiny/sparse_only-s0.4-all-one.json")["config"]["calibration"] == "calibration.txt, 72 tokens"
    assert not (tried.out / "few" / "tiny" / "dense-all-one.json").exists()
    again = Tried(files, mine)
    assert (again.runner.run(), again.loads, again.said) == ([], 0, [])


def test_both_policies_share_a_recipe(files, monkeypatch):
    made = []
    from rsparse.benchmark import workbench

    real = workbench.make_recipe
    monkeypatch.setattr(workbench, "make_recipe", lambda *given, **options: made.append(given[1]) or real(*given, **options))
    assert Tried(files, table(Row("rsparse", (0.4,)), tasks=True, texts=True)).runner.run() == []
    assert made == ["rsparse"]


def test_what_a_method_refuses_is_a_record_and_no_failure(files):
    tried = Tried(files, table(Row("cats", (0.3, 0.6)), Row("griffin", (0.3,)), tasks=True, texts=True))
    assert tried.runner.run() == []
    refused = tried.record("tiny/cats-s0.6-all-tasks.json")
    assert refused["metrics"] == {"refused": "sparsity 0.6 is past CATS's floor: it drops at most 0.395 on this model"}
    assert (refused["config"]["suite"], refused["config"]["method"]) == ("refused", "cats")
    assert "has none" in tried.record("tiny/griffin-s0.3-all-one.json")["metrics"]["refused"]
    assert "tasks" in tried.record("tiny/griffin-s0.3-last_fraction0.1-tasks.json")["metrics"]
    again = Tried(files, *tried.tables)
    assert (again.runner.run(), again.loads) == ([], 0)
    text = markdown(Results(tried.tables[0], tried.asked, tried.out))
    assert "below its floor" in text


def test_a_cell_that_fails_fails_alone_and_is_tried_again(files):
    tried = Tried(files, table(Row("joint", (0.01,)), Row("sparse_only", (0.4,), (FEW,)), texts=True))
    failed = tried.runner.run()
    assert len(failed) == 2
    assert all("joint starts at sparsity" in line for line in failed)
    assert len(list(tried.out.rglob("sparse_only*.json"))) == 2
    assert not list(tried.out.rglob("joint*.json"))
    assert "failed: method joint starts at sparsity" in markdown(Results(tried.tables[0], tried.asked, tried.out))
    assert len(Tried(files, *tried.tables).runner.run()) == 2


def test_what_is_refused_after_a_failure_leaves_no_note(files, monkeypatch):
    def broken(*given, **options):
        raise RuntimeError("out of memory")

    mine = table(Row("cats", (0.6,)), texts=True)
    with monkeypatch.context() as patched:
        patched.setattr("rsparse.benchmark.workbench.make_recipe", broken)
        assert len(Tried(files, mine).runner.run()) == 2
    tried = Tried(files, mine)
    assert list(tried.out.rglob("*.failed"))
    assert tried.runner.run() == []
    assert not list(tried.out.rglob("*.failed"))


def test_a_folder_of_another_protocol_is_refused_before_anything_runs(files):
    mine = table(Row("sparse_only", (0.4,), (FEW,)), texts=True)
    Tried(files, mine).runner.run()
    other = Tried(files, mine, seed=1)
    with pytest.raises(RSparseError, match="holds cells of seed = 0, and this run has 1"):
        other.runner.run()
    assert other.loads == 0


@pytest.mark.parametrize("searches", [True, False])
def test_what_is_stopped_before_its_first_cell_leaves_nothing(files, monkeypatch, searches):
    row = Row("searched:population=2,generations=1", (0.5,), (SEARCHES,)) if searches else Row("sparse_only", (0.4,), (FEW,))
    tried = Tried(files, table(row, texts=True))
    last = dict([list(tried.runner.parts().items())[-1]])  # without the dense cells
    kept = []

    def stop(name):
        kept.extend(path.parent for path in tried.out.rglob(SETTINGS_FILE))
        raise KeyboardInterrupt

    monkeypatch.setattr(tried.runner, "parts", lambda: last)
    monkeypatch.setattr(tried.runner, "_load", stop)
    with pytest.raises(KeyboardInterrupt):
        tried.runner.run()
    assert tried.out / row.variants[0].name in kept
    assert not tried.out.exists()


def test_generated_tasks_run_apart(files, monkeypatch):
    monkeypatch.setattr("rsparse.evaluation.harness_lm.MAX_NEW_TOKENS", 4)
    made = Variant("generation", "generated", generates=True)
    tried = Tried(files, table(Row("sparse_only", (0.4,), (made,))))
    assert tried.runner.run() == []
    assert list(tried.record("generation/tiny/sparse_only-s0.4-all-tasks.json")["metrics"]["tasks"]) == ["sums"]
    text = markdown(Results(tried.tables[0], tried.asked, tried.out))
    assert "| method | asked | sums | mean |" in text
    assert "| dense, generated |" in text
    assert "No summarisation here" not in text
    without = dataclasses.replace(tried.asked, generated={})
    assert "No summarisation here" in markdown(Results(tried.tables[0], without, tried.out))


def test_searches_give_the_recipes_and_their_course(files, monkeypatch):
    rows = [Row(f"searched:population={n},generations=2", (0.5,), (SEARCHES,)) for n in (2, 3)]
    mine = table(*rows, texts=True, varies=("population",))
    choice = CHOICE.__class__((2, 3), (1,), (("samples", "2"),))
    tried = Tried(files, mine, choice=choice, policies=(LAST, ALL))
    monkeypatch.setattr("rsparse.benchmark.workbench.make_recipe", lambda *given, **options: pytest.fail("searched again"))
    assert tried.runner.run() == []
    record = tried.record("search-size/tiny/searched-generations2-population3-samples2-s0.5-all-one.json")
    search = tried.record("search-size/tiny/search/population-3.json")
    assert record["config"]["method"] == "searched"
    assert record["config"]["recipe_seconds"] == pytest.approx(search["metrics"]["search_seconds"], abs=0.01)
    assert (search["metrics"]["evaluations"], len(search["metrics"]["history"])) == (6, 2)
    text = markdown(Results(mine, tried.asked, tried.out))
    assert "### Search on tiny" in text
    again = Tried(files, mine, choice=choice)
    assert (again.runner.run(), again.loads) == ([], 0)


def test_a_search_that_cannot_be_leaves_the_other_parts(files):
    rows = [Row("searched:population=2", (0.5,), (SEARCHES,)), Row("sparse_only", (0.4,))]
    choice = CHOICE.__class__((2,), (1,), (("samples", "999"),))
    tried = Tried(files, table(*rows, texts=True), choice=choice)
    assert tried.runner.run() == ["search-size: the calibration has 20 windows, and the search samples 999"]
    assert not (tried.out / "search-size" / "tiny" / "search").exists()
    assert list(tried.out.rglob("sparse_only*.json"))
    text = markdown(Results(tried.tables[0], tried.asked, tried.out))
    assert "| 50% | failed: the calibration has 20 windows, and the search samples 999 |" in text
