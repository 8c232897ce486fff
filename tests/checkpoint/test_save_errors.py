"""A save that fails leaves nothing behind, and what was there before as it was."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
from safetensors import SafetensorError

import rsparse
from rsparse.checkpoint import save as save_module
from rsparse.errors import RSparseError
from rsparse.sparse_model import is_sparse
from tests.support.folders import snapshot, sparse_model
from tests.support.models import tiny_tokenizer
from tests.support.recipes import uniform

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def model():
    return sparse_model("llama")


@pytest.fixture(params=[False, True], ids=["new", "overwrite"])
def place(request, tmp_path):
    """(folder to save to, overwrite); whatever is in tmp_path must stay as it is."""
    folder = tmp_path / "parent" / "model"
    folder.parent.mkdir()
    if request.param:
        folder.mkdir()
        (folder / "config.json").write_text("older")
        (folder / "more").write_text("something")
    before = snapshot(tmp_path)
    yield folder, request.param
    assert snapshot(tmp_path) == before
    assert list(folder.parent.iterdir()) == ([folder] if request.param else [])


def save(model, place, error, says):
    with pytest.raises(error, match=says) as caught:
        rsparse.save_pretrained(model, place[0], tiny_tokenizer(), overwrite=place[1])
    assert "\n" not in str(caught.value)
    assert is_sparse(model)
    assert "quantization_config" not in vars(model.config)


def test_too_little_room(monkeypatch, model, place):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 1000, 1000))
    save(model, place, RSparseError, "no room to write .*model")


def full(*arguments, **options):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def interrupted(*arguments, **options):
    raise KeyboardInterrupt("stop")


@pytest.mark.parametrize(
    ("fail", "error", "says"), [(full, RSparseError, "disk is full"), (interrupted, KeyboardInterrupt, "stop")]
)
@pytest.mark.parametrize("writer", ["transformers", "own", "tokenizer", "config"])
def test_a_writer_that_fails(monkeypatch, model, place, writer, fail, error, says):
    if writer == "own":
        monkeypatch.setattr(save_module, "save_file", fail)
    elif writer == "config":
        monkeypatch.setattr(save_module, "write_text", fail)
    elif writer == "tokenizer":
        monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", fail)
    else:
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    save(model, place, error, says)


def test_a_folder_that_is_there(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").write_text("all of it")
    before = snapshot(tmp_path)
    with pytest.raises(RSparseError, match="already exists"):
        rsparse.save_pretrained(model, tmp_path / "model")
    with pytest.raises(RSparseError, match="is a file"):
        rsparse.save_pretrained(model, tmp_path / "model" / "thesis.tex", overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_overwritten_folder_holds_nothing_old(model, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("a lone file that transformers would take")
    rsparse.save_pretrained(model, tmp_path / "model", tiny_tokenizer(), overwrite=True)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert is_sparse(rsparse.from_pretrained(tmp_path / "model", device="cpu")[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_without_thresholds(tmp_path):
    from rsparse.sparse_model import begin
    from tests.support.models import tiny_model

    dense = tiny_model("llama")
    begin(dense, uniform(dense, 0.5))
    with pytest.raises(RSparseError, match="thresholds are not solved"):
        rsparse.save_pretrained(dense, tmp_path / "model")
    assert not (tmp_path / "model").exists()
