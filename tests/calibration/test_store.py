"""Folders that are damaged, or of another model."""

from __future__ import annotations

import json
import shutil

import pytest

from rsparse.calibration import Calibration
from rsparse.errors import RSparseError
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of


@pytest.fixture
def folder(tmp_path):
    """A copy of a calibration, to break."""
    shutil.copytree(calibration_of("llama").folder, tmp_path / "calibration")
    return tmp_path / "calibration"


def refused(says, action, *arguments):
    with pytest.raises(RSparseError, match=says) as caught:
        action(*arguments)
    assert "\n" not in str(caught.value)


def change_meta(folder, **changes):
    path = folder / "calibration.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**data, **changes}.items() if value is not ...}))


def test_a_copy_loads(folder):
    assert Calibration.load(folder).meta == calibration_of("llama").meta
    assert Calibration.load(str(folder)).windows.shape == calibration_of("llama").windows.shape


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_block_cut_short(folder, share):
    path = folder / "block-00001.safetensors"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    calibration = Calibration.load(folder)
    calibration.block(0)
    for action in (lambda: calibration.block(1), lambda: calibration.histogram(1, "model.layers.1.qkv")):
        refused("block-00001.safetensors.*calibrate again", action)


def test_a_missing_block(folder):
    (folder / "block-00000.safetensors").unlink()
    refused("block-00000.safetensors.*calibrate again", Calibration.load(folder).block, 0)
    refused("block-00000.safetensors.*calibrate again", Calibration.load(folder).histogram, 0, "model.layers.0.qkv")


@pytest.mark.parametrize("name", ["windows.safetensors", "calibration.json"])
def test_a_missing_file(folder, name):
    (folder / name).unlink()
    refused(name, Calibration.load, folder)


def test_no_folder_at_all(tmp_path):
    refused("is not a calibration", Calibration.load, tmp_path / "none")


def test_json_cut_short(folder):
    path = folder / "calibration.json"
    path.write_text(path.read_text()[:100])
    refused(r"calibration\.json.*cut short", Calibration.load, folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"colour": 1}, "colour"), ({"seed": ...}, "seed"), ({"version": 2}, "version 2")],
)
def test_other_keys_and_versions(folder, changes, says):
    change_meta(folder, **changes)
    refused(says, Calibration.load, folder)


def test_json_that_is_no_object(folder):
    (folder / "calibration.json").write_text("[]")
    refused(r"calibration\.json", Calibration.load, folder)


def test_another_model_is_refused():
    calibration = calibration_of("llama")
    calibration.check_model(tiny_model("llama"))
    calibration.check_model(tiny_model("llama", seed=1))  # weights are told apart by their sha, not refused
    for other in (
        tiny_model("qwen2"),
        tiny_model("llama", num_hidden_layers=1),
        tiny_model("llama", num_hidden_layers=3),
        tiny_model("llama", intermediate_size=96),
    ):
        refused("of another model.*calibrate this one", calibration.check_model, other)
