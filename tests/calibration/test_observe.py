"""What calibrate writes, against activations caught by plain forward hooks on the whole model."""

from __future__ import annotations

import errno
import gc
import random
import string
import tempfile

import pytest
import torch

from rsparse.calibration import Calibration, calibrate, observe
from rsparse.calibration.histogram import CHANNEL_BINS, channel_histogram
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.models.layout import sites
from tests.support.models import tiny_model, tiny_tokenizer

SEQ_LEN = 16
TYPES = ["llama", "qwen2", "gemma3_text"]


def inputs_by_site(model, batches):
    """Every site's inputs [windows, tokens, in] of whole forward passes; all linears of a site must see the same."""
    seen: dict[str, dict[str, list[torch.Tensor]]] = {}
    handles = []
    for site in (site for block in sites(model) for site in block):
        for name, linear in site.linears.items():
            kept = seen.setdefault(site.name, {}).setdefault(name, [])
            handles.append(linear.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0])))
    with torch.no_grad():
        for ids in batches:
            model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    for linears in seen.values():
        first, *others = linears.values()
        assert all(torch.equal(torch.cat(first), torch.cat(other)) for other in others)
    return {name: torch.cat(next(iter(linears.values()))) for name, linears in seen.items()}


def letters(tmp_path):
    """Random letters: no two windows start alike, so an activation tells its token."""
    path = tmp_path / "text-letters.txt"
    path.write_text("".join(random.Random(0).choices(string.ascii_letters, k=600)))
    return path


def run(model, tmp_path, **options):
    text = letters(tmp_path)
    settings = {"tokens": 20 * SEQ_LEN, "seq_len": SEQ_LEN, "rows": 50, "out": tmp_path / "calibration", **options}
    return calibrate(model, tiny_tokenizer(), str(text), **settings)


@pytest.mark.parametrize("batch", [3, 100])  # 20 windows: in batches of 3 with a remainder, and at once
@pytest.mark.parametrize("sinks", [0, 2])
@pytest.mark.parametrize("model_type", TYPES)
def test_statistics_are_those_of_the_whole_model(tmp_path, monkeypatch, model_type, sinks, batch):
    monkeypatch.setattr(observe, "BATCH_TOKENS", batch * SEQ_LEN)
    model = tiny_model(model_type)
    calibration = run(model, tmp_path, sink_tokens=sinks)
    assert calibration.windows.shape == (20, SEQ_LEN)
    expected = inputs_by_site(model, calibration.windows.split(batch))
    # the last site's rows depend on all that came before, so each tells its token
    last = sites(model)[-1][-1].name
    rows = calibration.block(len(sites(model)) - 1)[last].rows
    same = (rows[:, None] == expected[last][:, sinks:].flatten(0, 1).bfloat16()[None]).all(-1)
    assert same.any(1).all(), "a row that the model never had"
    chosen = same.int().argmax(1)
    assert len(chosen.unique()) == len(chosen) == 50
    for index, block in enumerate(sites(model)):
        found = calibration.block(index)
        assert set(found) == {site.name for site in block}
        for site in block:
            inputs = expected[site.name][:, sinks:].flatten(0, 1)
            assert torch.equal(found[site.name].histogram.long(), channel_histogram(inputs))
            assert torch.equal(calibration.histogram(index, site.name), found[site.name].histogram)
            assert torch.equal(found[site.name].rows, inputs[chosen].bfloat16())


def test_windows_and_heldout_are_disjoint_parts_of_the_text(tmp_path):
    calibration = run(tiny_model("llama"), tmp_path)
    ids = tiny_tokenizer()(letters(tmp_path).read_text())["input_ids"]
    both = torch.cat([calibration.windows, calibration.heldout]).flatten()
    assert both.tolist() == ids[: len(both)]
    assert len(calibration.heldout) >= 1


def test_more_rows_than_tokens_keeps_every_token(tmp_path):
    calibration = run(tiny_model("llama"), tmp_path, rows=10_000)
    assert calibration.meta.rows == 20 * (SEQ_LEN - 1)
    assert len(calibration.block(0)["model.layers.0.o"].rows) == calibration.meta.rows


def test_the_seed_chooses_the_rows(tmp_path):
    model = tiny_model("llama")
    rows = [run(model, tmp_path, out=tmp_path / str(i), seed=seed).block(1) for i, seed in enumerate((0, 0, 1))]
    name = "model.layers.1.down"
    assert torch.equal(rows[0][name].rows, rows[1][name].rows)
    assert not torch.equal(rows[0][name].rows, rows[2][name].rows)
    assert torch.equal(rows[0][name].histogram, rows[2][name].histogram)


def test_bf16_models_too(tmp_path):
    model = tiny_model("llama", dtype=torch.bfloat16)
    calibration = run(model, tmp_path)
    expected = inputs_by_site(model, [calibration.windows])
    name = "model.layers.1.qkv"
    assert torch.equal(calibration.histogram(1, name).long(), channel_histogram(expected[name][:, 1:].flatten(0, 1)))
    assert calibration.meta.dtype == "bfloat16"


def test_the_model_is_left_as_it_was(tmp_path):
    model = tiny_model("llama")
    before = weights_sha(model)
    run(model, tmp_path)
    assert weights_sha(model) == before
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_round_trip(tmp_path):
    model = tiny_model("qwen2")
    made = run(model, tmp_path, name="tiny/qwen2", seed=5, sink_tokens=2)
    loaded = Calibration.load(tmp_path / "calibration")
    assert loaded.meta == made.meta
    assert (loaded.meta.model, loaded.meta.seed, loaded.meta.sink_tokens) == ("tiny/qwen2", 5, 2)
    assert loaded.meta.tokens == 20 * SEQ_LEN
    assert loaded.meta.weights_sha == weights_sha(model)
    assert torch.equal(loaded.windows, made.windows)
    assert torch.equal(loaded.heldout, made.heldout)
    for name, statistics in made.block(1).items():
        assert torch.equal(loaded.block(1)[name].rows, statistics.rows)
    loaded.check_model(model)


def test_size_on_disk_is_as_told(tmp_path):
    calibration = run(tiny_model("llama"), tmp_path)
    files = list((tmp_path / "calibration").glob("block-*.safetensors"))
    told = observe.disk_bytes(dict(calibration.meta.sites), calibration.meta.rows)
    assert told <= sum(file.stat().st_size for file in files) < told * 1.05
    assert told > len(calibration.meta.sites) * 48 * CHANNEL_BINS * 4


def left_over(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("text-"))


@pytest.mark.parametrize("place", ["model.layers.1.down", "model.layers.0.qkv"])
def test_activations_that_are_not_finite_are_named(tmp_path, place):
    model = tiny_model("llama")
    with torch.no_grad():
        source = {"model.layers.1.down": "layers.1.mlp.up_proj", "model.layers.0.qkv": "layers.0.input_layernorm"}[place]
        model.model.get_submodule(source).weight[3] = float("inf")
    with pytest.raises(RSparseError, match=f"{place} are not finite") as caught:
        run(model, tmp_path)
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == []
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_is_left_on_disk_after_an_error(tmp_path, monkeypatch):
    """Neither beside `out` nor in the place for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    saved = []

    def full(tensors, path):
        saved.append(path)
        if len(saved) == 3:  # windows, block 0, block 1
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(observe, "save_file", full)
    for out in (tmp_path / "calibration", None):
        saved.clear()
        with pytest.raises(RSparseError, match="the disk is full"):
            run(tiny_model("llama"), tmp_path, out=out)
        gc.collect()
        assert left_over(tmp_path) == []


def test_without_out_it_goes_with_the_object(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    calibration = run(tiny_model("llama"), tmp_path, out=None)
    assert len(calibration.block(0)) == 4
    assert left_over(tmp_path)
    del calibration
    gc.collect()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": SEQ_LEN - 1}, "at least one window"),
        ({"rows": 0}, "one row"),
        ({"tokens": 4000, "seq_len": 2000}, "one window needs"),
        ({"tokens": 4000, "seq_len": 500}, "needs two"),
        ({"sink_tokens": SEQ_LEN}, "sink_tokens"),
        ({"sink_tokens": -1}, "sink_tokens"),
    ],
)
def test_what_cannot_be_calibrated(tmp_path, options, says):
    with pytest.raises(RSparseError, match=says) as caught:
        run(tiny_model("llama"), tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert left_over(tmp_path) == []


def test_an_old_calibration_is_kept_unless_asked(tmp_path):
    model = tiny_model("llama")
    run(model, tmp_path, seed=1)
    with pytest.raises(RSparseError, match="already exists"):
        run(model, tmp_path, seed=2)
    assert Calibration.load(tmp_path / "calibration").meta.seed == 1
    with pytest.raises(RSparseError, match="already exists"):  # before any text is read
        calibrate(model, tiny_tokenizer(), "none.txt", out=tmp_path / "calibration")
    run(model, tmp_path, seed=2, overwrite=True)
    assert Calibration.load(tmp_path / "calibration").meta.seed == 2


def test_windows_given_directly_are_calibrated_like_text(tmp_path):
    model = tiny_model("llama")
    text = run(model, tmp_path, name="a", seed=3, rows=30)
    given = observe.calibrate_windows(
        model, text.windows, text.heldout, data=text.meta.data, out=tmp_path / "given", rows=30, seed=3, name="a"
    )
    assert given.meta == text.meta
    assert torch.equal(given.windows, text.windows)
    assert torch.equal(given.heldout, text.heldout)
    for index in range(len(sites(model))):
        for name, statistics in text.block(index).items():
            assert torch.equal(given.block(index)[name].histogram, statistics.histogram)
            assert torch.equal(given.block(index)[name].rows, statistics.rows)
    assert given.meta.rows == 30
