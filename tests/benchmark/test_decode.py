"""The decode bench on a tiny shape: what is measured, what is counted, and what a second run does."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch

from rsparse.analysis import decode_plot
from rsparse.analysis.decode_plot import plot
from rsparse.analysis.decode_table import by_kind, by_length, load_records, markdown
from rsparse.benchmark.decode import bench, timing
from rsparse.benchmark.decode.forced import Forced
from rsparse.benchmark.decode.paths import DENSE_PATHS, dense_paths
from rsparse.benchmark.decode.random_sparse import recipe_for, sparsify_random
from rsparse.benchmark.decode.source import Checkpoint, Real, Shape
from rsparse.benchmark.decode.timing import Timing
from rsparse.errors import RSparseError
from rsparse.models.layout import linear_weights
from rsparse.runtime import generate
from rsparse.sparse_model import is_sparse, measuring, state, unit_members
from rsparse.token_policy import TokenPolicy
from tests.support.folders import sparse_model
from tests.support.models import tiny_model, tiny_tokenizer, token_ids
from tests.support.recipes import calibration_of

CPU = torch.device("cpu")
SETTINGS = bench.DecodeSettings(16, 12, 2, dense=("steps", "steps-cublas"))
CELLS = [bench.Cell(0.4, "none"), bench.Cell(0.5, "none"), bench.Cell(0.5, "quarter")]


def shape():
    return Shape("tiny-llama", 28, CPU, torch.float32, seed=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The records of CELLS: leave them as they are."""
    folder = tmp_path_factory.mktemp("bench")
    bench.DecodeBench(shape(), CELLS, SETTINGS, folder, say=lambda line: None).run()
    return folder


def test_rates_are_of_medians():
    found = Timing(2, [0.5, 0.1, 0.2], [[1.0, 2.0], [2.0, 2.0], [4.0, 5.0]])
    assert found.decode_seconds == 4.0
    assert found.prefill_seconds == 0.2
    assert found.tokens_per_second == 2 * 2 / 4.0
    metrics = found.metrics()
    assert metrics["ms_per_token"] == 2000
    assert metrics["repeats_spread"] == (9 - 3) / 4
    assert metrics["by_length"] == {}


def test_rates_by_length():
    steps = [[0.01] * 127 + [0.02] * 128] * 3
    found = Timing(1, [1.0] * 3, steps).metrics()["by_length"]
    assert list(found) == ["128", "256"]
    assert found["128"] == {"tokens_per_second": 100.0, "with_prefill": round(128 / 2.27, 2)}
    assert found["256"] == {"tokens_per_second": round(255 / 3.83, 2), "with_prefill": round(256 / 4.83, 2)}


class _Counting:
    name = "counting"

    def __init__(self):
        self.calls = []

    def begin(self, prompt):
        self.calls.append("begin")

    def advance(self):
        self.calls.append("advance")


def test_each_repeat_is_a_prompt_and_all_tokens():
    path = _Counting()
    found = timing.measure(path, torch.zeros(3, 4, dtype=torch.long), new_tokens=6, repeats=2)
    assert path.calls == ["begin", *["advance"] * 5] * 3  # one of them to warm up
    assert [len(steps) for steps in found.steps] == [5, 5]
    assert len(found.prefill) == 2
    assert found.batch == 3


def test_every_dense_path_gives_the_models_own_tokens():
    model, prompt = tiny_model("qwen2"), token_ids(2, 9)
    expected = generate(model, tiny_tokenizer(), prompt.tolist(), max_new_tokens=12, ignore_eos=True).token_ids
    names = []
    for name, path in dense_paths(list(DENSE_PATHS), model, "reference", prompt, 12, None):
        for _ in range(2):
            path.begin(prompt)
            token = path.session.step.token if name.startswith("steps") else path.token
            found = [token.flatten().tolist()]
            for _ in range(11):
                path.advance()
                found.append(token.flatten().tolist())
            assert torch.tensor(found).T.tolist() == expected.tolist(), name
        names.append(name)
    assert names == list(DENSE_PATHS)
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1]


def test_blocks_are_compiled_once():
    prompt = token_ids(1, 9)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        names = [
            name for name, _ in dense_paths(["compile-blocks"], tiny_model("llama", num_hidden_layers=4), "", prompt, 12, None)
        ]
    assert names == ["compile-blocks"]


def test_given_tokens_are_what_the_model_reads():
    sampler = Forced(torch.tensor([[5, 6], [7, 8]]), 10)
    for _ in range(2):
        sampler.begin(torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), 0)
        assert sampler.choose(torch.rand(2, 10)).tolist() == [5, 7]
        assert sampler.choose(torch.rand(2, 10)).tolist() == [6, 8]


def test_the_random_models_decode_has_the_sparsity_that_was_asked():
    """Counted token by token with a cache, while the thresholds were solved in one call."""
    source = shape()
    model, prompt, given = source.load(), source.prompt(2, 60), source.given(2, 90)
    recipe = recipe_for(model, 0.5, "quarter")
    sparsify_random(model, recipe, torch.cat([prompt, given], 1), 60)
    with state(model).policy.using(TokenPolicy("decode")), measuring(model) as meter, torch.no_grad():
        cache = model(prompt).past_key_values
        for column in given.split(1, dim=1):
            model(column, past_key_values=cache)
    for name, unit in recipe.units.items():
        assert meter.kept_share(name) == pytest.approx(unit.kept_share, abs=0.004)


def test_a_quarter_of_the_units_have_factors():
    for name, at_least, at_most in (("none", 0, 0), ("quarter", 0.25, 0.4)):
        recipe = recipe_for(tiny_model("llama", hidden_size=240, intermediate_size=400, num_hidden_layers=4), 0.4, name)
        share = sum(unit.rank > 0 for unit in recipe.units.values()) / len(recipe.units)
        assert at_least <= share <= at_most
        assert recipe.sparsity == pytest.approx(0.4)
        assert recipe.method == ("rsparse" if name == "quarter" else "sparse_only")


def test_a_record(folder):
    records = load_records(folder)
    assert [(r["config"]["sparsity"], r["config"]["ranks"]) for r in records] == [
        (0.4, "none"),
        (0.5, "none"),
        (0.5, "quarter"),
    ]
    for record in records:
        config, metrics = record["config"], record["metrics"]
        assert (config["suite"], config["model"], config["weights"], config["batch"]) == ("decode", "tiny-llama", "random", 1)
        assert (config["prompt_tokens"], config["new_tokens"], config["repeats"], config["dtype"]) == (16, 12, 2, "float32")
        assert "SmolLM2" in config["masks"]
        assert record["env"]["backend"] == "reference"
        rates = {name: each["tokens_per_second"] for name, each in metrics["dense"].items()}
        assert list(rates) == ["steps", "steps-cublas"]
        assert metrics["dense_tokens_per_second"] == max(rates.values()) == rates[metrics["dense_best"]]
        assert metrics["speedup"] == pytest.approx(metrics["tokens_per_second"] / max(rates.values()), rel=1e-3)
        assert metrics["speedup_cublas"] == pytest.approx(metrics["tokens_per_second"] / rates["steps-cublas"], rel=1e-3)
        assert metrics["achieved_sparsity"] == pytest.approx(config["sparsity"], abs=0.02)
    assert {r["metrics"]["dense_tokens_per_second"] for r in records} == {records[0]["metrics"]["dense_tokens_per_second"]}


def test_bytes_are_counted(folder):
    record = load_records(folder)[0]
    model, metrics = shape().load(), record["metrics"]
    dense = 4 * (linear_weights(model) + model.lm_head.weight.numel())
    kv = 4 * 2 * 2 * 24 * 22  # bytes · (k, v) · blocks · kv_heads · head_dim · mean of 17 … 27
    size = dense - 4 * linear_weights(model) * metrics["achieved_sparsity"]
    assert metrics["dense_bytes_per_token"] == dense
    assert metrics["kv_bytes_per_token"] == kv
    assert metrics["bytes_per_token"] == pytest.approx(size, rel=1e-4)
    assert metrics["speedup_by_bytes"] == pytest.approx((dense + kv) / (size + kv), rel=1e-3)
    assert metrics["speedup_of_linears"] == pytest.approx(1 / (1 - metrics["achieved_sparsity"]), rel=1e-3)
    seconds = metrics["ms_per_token"] / 1000
    assert metrics["bytes_per_second"] == pytest.approx((size + kv) / seconds, rel=1e-3)


def test_a_window_bounds_what_a_step_reads():
    settings = bench.DecodeSettings(10, 8, 1)
    wide, narrow = (tiny_model("mistral", sliding_window=window) for window in (200, 6))
    assert bench.kv_bytes(wide, settings) == 4 * 2 * 2 * 24 * 14  # the mean of 11 … 17
    assert bench.kv_bytes(narrow, settings) == 4 * 2 * 2 * 24 * 6
    mixed = tiny_model("gemma3_text")  # two of three blocks see 6 tokens
    assert bench.kv_bytes(mixed, settings) == 4 * 2 * 32 * (6 + 14 + 6)


def test_what_has_its_record_is_left_alone(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.json")}

    class Refusing(Shape):
        def load(self):
            raise AssertionError("nothing is missing")

    source = Refusing("tiny-llama", 28, CPU, torch.float32, seed=0)
    bench.DecodeBench(source, CELLS, SETTINGS, folder, say=lambda line: None).run()
    assert {path: path.read_bytes() for path in folder.rglob("*.json")} == before


def test_only_what_is_missing_runs(folder, tmp_path):
    missing = bench.DecodeBench(shape(), CELLS, SETTINGS, tmp_path, say=lambda line: None)
    (tmp_path / "tiny-llama").mkdir()
    for cell in CELLS[1:]:
        missing.path(cell).write_bytes((folder / missing.path(cell).relative_to(tmp_path)).read_bytes())
    kept = missing.path(CELLS[1]).read_bytes()
    missing.run()
    assert missing.path(CELLS[0]).exists()
    assert missing.path(CELLS[1]).read_bytes() == kept


def test_a_real_model_and_a_checkpoint(tmp_path):
    prompts = lambda tokens: token_ids(2, tokens)  # noqa: E731
    real = Real("tiny", lambda: tiny_model("llama"), calibration_of("llama"), prompts)
    loaded = Checkpoint("tiny-sparse", lambda: sparse_model("llama"), prompts)
    bench.DecodeBench(real, CELLS[1:2], SETTINGS, tmp_path, say=lambda line: None).run()
    bench.DecodeBench(loaded, [bench.Cell()], SETTINGS, tmp_path, say=lambda line: None).run()
    assert not is_sparse(real.model)
    records = {record["config"]["model"]: record for record in load_records(tmp_path)}
    assert set(records) == {"tiny", "tiny-sparse"}
    for record in records.values():
        assert record["config"]["masks"] == "of the model's own decode"
        assert record["metrics"]["achieved_sparsity"] == pytest.approx(0.5, abs=0.08)
    assert records["tiny-sparse"]["config"]["ranks"] is None
    assert records["tiny-sparse"]["config"]["recipe_sha"] == state(sparse_model("llama")).config()["recipe_sha"]
    with pytest.raises(RSparseError, match="3 prompts"):
        real.prompt(3, 8)


def test_the_dense_model_comes_back(folder):
    source = shape()
    model, prompt, given = source.load(), source.prompt(1, 8), source.given(1, 8)
    before = model(torch.cat([prompt, given], 1)).logits
    with source.sparse(0.5, "none") as sparse:
        assert unit_members(sparse)
    assert not is_sparse(model)
    assert torch.equal(model(torch.cat([prompt, given], 1)).logits, before)


def test_table_and_plot(folder, tmp_path):
    records = load_records(folder)
    names = {"_attend": 0.5, "_gather": 2.0, "strange": 0.25}
    trace = {"kernels": {name: {"ms": ms, "launches": 1} for name, ms in names.items()}}
    trace |= {"others_ms": 0.05, "busy_ms": 2.8, "span_ms": 3.0}
    records[0]["metrics"]["kernels"] = records[0]["metrics"]["dense_kernels"]["steps"] = trace
    text = markdown(records)
    first = records[0]["metrics"]
    row = next(line for line in text.splitlines() if line.startswith("| 40% | "))
    for value in (f"{first['achieved_sparsity']:.2%}", f"{first['speedup']:.3f}", f"{first['speedup_by_bytes']:.3f}"):
        assert f" {value} " in row
    assert "| 40%, none | 0.500 | 2.000 | 0.000 | 0.300 | 0.200 |" in text
    assert by_kind(first["kernels"]) == {"attention": 0.5, "linears": 2.0, "select and norms": 0.0, "other": 0.3}
    plot(records, tmp_path / "decode.png")
    assert (tmp_path / "decode.png").read_bytes()[:4] == b"\x89PNG"


def test_the_table_by_length(folder):
    record = load_records(folder)[0]
    config, metrics = record["config"], record["metrics"]
    metrics["by_length"] = {"128": {"tokens_per_second": 30.0, "with_prefill": 24.0}}
    metrics["dense"][metrics["dense_best"]]["by_length"] = {"128": {"tokens_per_second": 20.0, "with_prefill": 18.0}}
    assert by_length([record]).splitlines()[2:] == [
        f"| {config['model']} | 40% | none | 128 | 20.0 | 30.0 | 1.500 | 18.0 | 24.0 | 1.333 |"
    ]


@pytest.mark.parametrize("given", [True, False])
def test_the_plot_over_length(folder, tmp_path, monkeypatch, given):
    """Sparse and dense rates of the records over length, or of those with most new tokens where there are none."""
    drawn, real = {}, decode_plot._rates
    monkeypatch.setattr(
        decode_plot, "_rates", lambda axis, records: (real(axis, records), drawn.update(lines=list(axis.lines)))
    )
    first, second, _ = load_records(folder)
    for record, rate in ((first, 30.0), (second, 50.0)):
        metrics = record["metrics"]
        for each, less in ((metrics, 0), (metrics["dense"][metrics["dense_best"]], 10)):
            each["by_length"] = {length: {"tokens_per_second": rate - less + int(length)} for length in ("128", "256")}
    longer = deepcopy(first)
    longer["config"]["new_tokens"] *= 2
    plot([second] if given else [second, longer], tmp_path / "decode.png", [first] if given else ())
    sparse, dense = drawn["lines"]
    assert (list(sparse.get_xdata()), list(sparse.get_ydata())) == ([128, 256], [158.0, 286.0])
    assert list(dense.get_ydata()) == [148.0, 276.0]
    assert sparse.get_label().endswith(", 40%")
    assert dense.get_label().endswith(", dense")


def test_files_that_are_no_records(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.json").write_text("{}")
    with pytest.raises(RSparseError, match="not a result record"):
        load_records(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: bench.DecodeSettings(new_tokens=1), "new-tokens"),
        (lambda: bench.DecodeSettings(batch=9), "from 1 to 8"),
        (lambda: bench.DecodeSettings(dense=("fast",)), "'fast' is unknown"),
        (lambda: bench.DecodeSettings(dense=()), "no dense path"),
        (lambda: list(bench.cells_of([1.0], ["none"])), r"in \(0, 1\)"),
        (lambda: list(bench.cells_of([0.5], ["half"])), "'half' is unknown"),
        (lambda: list(bench.cells_of([0.5, 0.5], ["none"])), "0.5 is named twice"),
        (lambda: Shape("llama-9", 28, CPU, torch.float32, 0), "'llama-9' is unknown"),
        (lambda: Shape("tiny-llama", 257, CPU, torch.float32, 0), "from 2 to 256 tokens"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(RSparseError, match=says):
        make()


def test_records_are_json_without_nan(folder):
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
