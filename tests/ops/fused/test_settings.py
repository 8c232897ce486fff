from __future__ import annotations

import json

import pytest
import torch

from rsparse.ops.fused import settings
from rsparse.ops.fused.settings import Tiles

A, B, C = Tiles(512, 16, 16, 4, 3), Tiles(256, 32, 8, 4, 2), Tiles(8, 512, 1, 4, 3)


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A GPU of the package's, and an empty cache of this machine's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "TUNED", tmp_path)
    settings.known.cache_clear()
    shapes = {"gather 4096 12288": (A, 20.0), "gather 11008 4096": (B, 19.0), "dense 4096 12288": (C, 35.0)}
    path = tmp_path / settings.file_name("NVIDIA Test 80GB")
    path.write_text(json.dumps(settings.document("NVIDIA Test 80GB", {"date": "2026-01-01"}, shapes)))
    yield "NVIDIA Test 80GB"
    settings.known.cache_clear()


def test_a_measured_shape_has_its_own_settings(gpu):
    assert settings.tiles_for(gpu, "gather", 4096, 12288) == A
    assert settings.tiles_for(gpu, "dense", 4096, 12288) == C


def test_another_shape_takes_the_nearest_of_its_kind(gpu):
    assert settings.tiles_for(gpu, "gather", 4096, 14336) == A
    assert settings.tiles_for(gpu, "gather", 14336, 4096) == B
    assert settings.tiles_for(gpu, "dense", 14336, 4096) == C


def test_what_nobody_measured_follows_the_rule(gpu):
    assert settings.tiles_for(gpu, "head", 4096, 32000) == settings.default("head", 4096, 32000)
    assert settings.tiles_for("Another", "gather", 4096, 12288) == Tiles(512, 16, 16, 4, 2)
    assert settings.tiles_for("Another", "gather", 4096, 4096) == Tiles(256, 32, 16, 4, 2)
    assert settings.default("gather", 64, 64).split == 1
    # about 256 programs of 128 columns, and few parts of 16 rows each
    assert [settings.default("rows", 4096, out).split for out in (1024, 4096, 12288, 28672)] == [8, 8, 3, 1]
    assert settings.default("rows", 256, 128) == Tiles(128, 64, 2, 4, 3)
    assert settings.default("stream", 4096, 12288) == Tiles(64, 32, 1, 8, 8)
    assert settings.default("stream", 4096, 4096) == Tiles(32, 128, 1, 16, 4)
    assert settings.default("paired", 4096, 22016) == Tiles(128, 32, 1, 16, 4)


def test_this_machines_own_measurement_counts_more(gpu):
    own = settings.cache_folder()
    own.mkdir(parents=True)
    document = settings.document(gpu, {}, {"gather 4096 12288": (B, 1.0)})
    (own / settings.file_name(gpu)).write_text(json.dumps(document))
    settings.known.cache_clear()
    assert settings.tiles_for(gpu, "gather", 4096, 12288) == B
    assert settings.tiles_for(gpu, "dense", 4096, 12288) == C


@pytest.mark.parametrize("text", ["", "{", "[]", '{"shapes": {"gather 1 1": {"tiles": {"block_n": 1}}}}'])
def test_a_damaged_cache_is_no_cache(gpu, text):
    own = settings.cache_folder()
    own.mkdir(parents=True)
    (own / settings.file_name(gpu)).write_text(text)
    settings.known.cache_clear()
    assert settings.tiles_for(gpu, "gather", 4096, 12288) == A


def test_names():
    assert settings.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3.json"
    assert settings.gpu_name(torch.device("cpu")) == "cpu"


def test_what_is_committed_names_its_gpu_and_measurement():
    for path in settings.TUNED.glob("*.json"):
        document = json.loads(path.read_text())
        assert settings.file_name(document["gpu"]) == path.name
        assert {"date", "torch", "triton", "dtype", "what"} <= set(document["measured"])
        assert set(settings.read(path)) == set(document["shapes"])
        assert all(entry["us"] > 0 for entry in document["shapes"].values())
