"""rsparse show looks at the weights too: by their headers, without loading them."""

from __future__ import annotations

import shutil

import pytest

from tests.cli.conftest import bad, good, run

WEIGHTS, OWN = "model-00001-of-00001.safetensors", "rsparse.safetensors"


@pytest.fixture
def copy(here):
    """A sparse checkpoint to damage."""
    return shutil.copytree(here / "sparse", here / "copy")


@pytest.mark.parametrize("shard", [WEIGHTS, OWN])
def test_a_missing_shard(copy, shard):
    (copy / shard).unlink()
    bad(f"checkpoint copy lacks its file {shard}", "show", "copy")
    assert run("show", "copy").out == ""


@pytest.mark.parametrize("left", [0, 5, 200, -1])
@pytest.mark.parametrize("shard", [WEIGHTS, OWN])
def test_a_truncated_shard(copy, shard, left):
    (copy / shard).write_bytes((copy / shard).read_bytes()[:left])
    bad(f"copy/{shard} is cut short; copy or make it again", "show", "copy")
    bad("is cut short", "show", "copy", "--units")


def test_a_checkpoint_without_an_index(copy):
    (copy / "model.safetensors.index.json").unlink()
    bad("has neither model.safetensors nor its index", "show", "copy")


def test_a_damaged_index(copy):
    (copy / "model.safetensors.index.json").write_text("{}")
    bad("model.safetensors.index.json is damaged", "show", "copy")


def test_a_checkpoint_in_one_file_as_transformers_writes_it(here):
    import rsparse

    rsparse.from_pretrained("sparse", device="cpu")[0].save_pretrained("copy")
    assert (here / "copy" / "model.safetensors").is_file()
    # transformers sorts the units by name
    assert sorted(good("show", "copy").out.splitlines()) == sorted(good("show", "sparse").out.splitlines())


def test_no_weights_are_read(copy, monkeypatch):
    monkeypatch.setattr("rsparse.checkpoint.from_pretrained", lambda *arguments, **options: pytest.fail("loaded"))
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[:-64] + bytes(64))  # other values are not its business
    assert good("show", "copy").out == good("show", "sparse").out
