"""Tile settings of shapes that nobody has measured on this GPU: measured before the bench, for as long as it may take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch

from rsparse.benchmark.kernels.cases import UNITS, Linears
from rsparse.benchmark.kernels.paths import MaskedTiles, masked_group, reads_every_weight
from rsparse.ops.fused import tune
from rsparse.ops.fused.settings import Tiles, gpu_name, key, known
from rsparse.ops.fused.timing import copies, microseconds
from rsparse.ops.fused.triton_ops import TritonOps

KEEPS_HALF = 0.6745  # of N(0, 1)


def missing(
    device: torch.device, dtype: torch.dtype, units: Iterable[str], linears: Mapping[str, Linears], batch: int
) -> list[tuple[str, int, int]]:
    """(kind, in, out) without settings of their own, what we compare with first: where time ends, ours are the worse tuned."""
    shapes: dict[tuple[int, int], set[str]] = {}
    for unit in units:
        for name in UNITS[unit]:
            shape = (linears[name].in_features, linears[name].out_features)
            paired = unit == "mlp" and name == "gate_up"
            shapes.setdefault(shape, set()).add(ours(device, dtype, *shape, batch, paired=paired))
    others = ("head", "dense", "masked") if batch == 1 else ("head", "dense")
    wanted = [(kind, *shape) for kind in others for shape in sorted(shapes)]
    wanted += [(kind, *shape) for shape in sorted(shapes) for kind in sorted(shapes[shape])]
    return [each for each in wanted if key(*each) not in known(gpu_name(device))]


def ours(device: torch.device, dtype: torch.dtype, columns: int, out: int, batch: int, *, paired: bool) -> str:
    """The kind of settings that a sparse path looks up for linears of this shape; `paired` for an MLP's first ones."""
    if reads_every_weight(batch):
        return "rows"
    weight = torch.empty(columns, out, device=device, dtype=dtype)  # there, since how wide an input may be is the device's
    return tune.one_row(masked_group(weight), device, paired=paired)


class Tuner:
    """Measures for `seconds` in all. Settings hold in this process, and `found` [key → settings] is for the record."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seconds: float, say: Callable[[str], None]) -> None:
        self.device, self.dtype, self.left, self.say = device, dtype, seconds, say
        self.gpu = gpu_name(device)
        self.found: dict[str, dict[str, Any]] = {}

    def use(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Take an earlier record's settings where there are none; those of another version of the kernels are left."""
        for shape, fields in found.items():
            if shape not in known(self.gpu):
                with contextlib.suppress(TypeError):
                    known(self.gpu)[shape] = Tiles(**fields)
                    self.found[shape] = dict(fields)

    def of(self, linears: Mapping[str, Linears]) -> dict[str, dict[str, Any]]:
        """What was found for a block's shapes."""
        sizes = {f"{each.in_features} {each.out_features}" for each in linears.values()}
        return {shape: fields for shape, fields in self.found.items() if shape.partition(" ")[2] in sizes}

    def run(self, units: Iterable[str], linears: Mapping[str, Linears], batch: int) -> None:
        """Measure what the units of a block lack, until the time is up."""
        if self.device.type != "cuda":
            return
        for kind, columns, out in missing(self.device, self.dtype, units, linears, batch):
            if self.left <= 0:
                return
            start = time.perf_counter()
            try:
                tiles, us = self._tune(kind, columns, out)
            except Exception as error:  # a compiler that fails, no memory: the nearest measured shape's will do
                self.say(f"tiles for {kind} {columns} → {out}: {type(error).__name__}, the nearest shape's are taken")
            else:
                known(self.gpu)[key(kind, columns, out)] = tiles
                self.found[key(kind, columns, out)] = asdict(tiles)
                self.say(f"tiles for {kind} {columns} → {out}: {us:.1f} µs, {time.perf_counter() - start:.1f} s")
            with contextlib.suppress(RuntimeError):  # a lost device: the cases will say so
                torch.cuda.empty_cache()
            self.left -= time.perf_counter() - start

    def _tune(self, kind: str, columns: int, out: int) -> tuple[Tiles, float]:
        if kind == "masked":
            return self._tune_masked(columns, out)
        ops = TritonOps(self.device)
        if kind == "head":
            return tune.tune_head(ops, columns, out, self.dtype)
        return tune.tune_group(ops, kind, columns, out, self.dtype)

    def _tune_masked(self, columns: int, out: int) -> tuple[Tiles, float]:
        """At 50 %, as the others are."""
        ops, size = MaskedTiles(self.device), columns * out * self.dtype.itemsize
        weights = [torch.randn(columns, out, device=self.device, dtype=self.dtype) for _ in range(copies(size))]
        groups = [masked_group(weight) for weight in weights]
        for group in groups:
            group.threshold.fill_(KEEPS_HALF)
        x = torch.randn(1, columns, device=self.device, dtype=self.dtype)
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count

        def timed(tiles: Tiles) -> float:
            return microseconds([lambda g=g: ops.project_with(tiles, x, g, None, "plain") for g in groups])  # type: ignore[misc]

        return tune.best(*tune.candidates("dense", columns, out, processors), timed)
