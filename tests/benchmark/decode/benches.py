"""A decode bench of a tiny shape."""

from __future__ import annotations

import torch

from rsparse.benchmark.decode.bench import Cell, DecodeBench, DecodeSettings
from rsparse.benchmark.decode.source import Shape

CPU = torch.device("cpu")
SETTINGS = DecodeSettings(16, 12, 2, dense=("steps", "steps-cublas"))
CELLS = [Cell(0.4, "none"), Cell(0.5, "none"), Cell(0.5, "quarter")]


def shape():
    return Shape("tiny-llama", 28, CPU, torch.float32, seed=0)


def bench(folder, source=None, cells=CELLS):
    return DecodeBench(source or shape(), cells, SETTINGS, folder, say=lambda line: None)
