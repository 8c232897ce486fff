"""Tokens a second of sparse decode against the best dense: a record a cell, resumable, unattended."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsparse import records
from rsparse.analysis.decode_table import CUBLAS
from rsparse.benchmark.decode import kernels
from rsparse.benchmark.decode.paths import DENSE_PATHS, Steps, dense_paths
from rsparse.benchmark.decode.source import Source
from rsparse.benchmark.decode.timing import Timing, measure
from rsparse.benchmark.grid import model_label
from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.errors import RSparseError
from rsparse.evaluation.describe import model_config
from rsparse.models import spec_for
from rsparse.models.layout import sites
from rsparse.ops import dispatch
from rsparse.runtime.fused import FusedModel
from rsparse.sparse_model import achieved_sparsity, measuring, state
from rsparse.token_policy import TokenPolicy

RANKS = ("none", "quarter")


@dataclass(frozen=True)
class DecodeSettings:
    """What a cell measures. Raises RSparseError for values out of range."""

    prompt_tokens: int = 512
    new_tokens: int = 512
    repeats: int = 5
    batch: int = 1
    dense: tuple[str, ...] = ("steps", "steps-cublas", "compile")

    def __post_init__(self) -> None:
        least = {"prompt_tokens": 1, "new_tokens": 8, "repeats": 1, "batch": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise RSparseError(f"--{name.replace('_', '-')} must be {bound} or more, got {getattr(self, name)}")
        if self.batch > 8:
            raise RSparseError(f"--batch must be from 1 to 8, got {self.batch}")
        if unknown := next((name for name in self.dense if name not in DENSE_PATHS), None):
            raise RSparseError(f"dense path {unknown!r} is unknown; choose from {', '.join(DENSE_PATHS)}")
        if not self.dense:
            raise RSparseError("there is no dense path to compare with")


@dataclass(frozen=True)
class Cell:
    """One record: a sparsity, and whether some units have low-rank factors. A checkpoint's cell has neither."""

    sparsity: float | None = None
    ranks: str | None = None

    @property
    def label(self) -> str:
        return "checkpoint" if self.sparsity is None else f"s{self.sparsity:g}-{self.ranks}"


@dataclass
class _Dense:
    """What the dense model gave in this run."""

    timings: dict[str, Timing] = field(default_factory=dict)
    kernels: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> str:
        return max(self.timings, key=lambda name: self.timings[name].tokens_per_second)


class DecodeBench:
    """Runs `cells` of one model into `folder`; what has its record is left alone.

    The dense paths are measured in each run that has something to measure, so a record's speed-up is of one run.
    """

    def __init__(
        self,
        source: Source,
        cells: list[Cell],
        settings: DecodeSettings,
        folder: Path,
        backend: str = "auto",
        say: Callable[[str], None] = print,
    ) -> None:
        self.source, self.settings, self.folder, self.say = source, settings, folder, say
        self.cells, self.backend = cells, backend

    def path(self, cell: Cell) -> Path:
        """Where a cell's record goes."""
        s = self.settings
        size = f"b{s.batch}-p{s.prompt_tokens}-n{s.new_tokens}"
        return self.folder / model_label(self.source.name) / f"{cell.label}-{size}.json"

    def missing(self) -> list[Cell]:
        return [cell for cell in self.cells if not self.path(cell).exists()]

    def run(self) -> None:
        missing = self.missing()
        if not missing:
            return
        model = self.source.load()
        weight = next(model.parameters())
        with torch.cuda.device_of(weight):  # whose events and graphs these are
            self._run(model, weight, missing)

    def _run(self, model: Any, weight: Tensor, missing: list[Cell]) -> None:
        s = self.settings
        self.ops = dispatch.resolve(self.backend, weight.device, weight.dtype).name
        self.prompt = self.source.prompt(s.batch, s.prompt_tokens)
        self.given = self.source.given(s.batch, s.new_tokens)
        self.dense_bytes, self.kv_bytes = dense_bytes_per_token(model), kv_bytes(model, s)
        self.bandwidth = kernels.copy_bandwidth(weight.device)
        dense = self._dense(model)
        for number, cell in enumerate(missing, 1):
            timer = records.Run()
            with self.source.sparse(cell.sparsity or 0.0, cell.ranks or "") as sparse:
                config, metrics = self._cell(sparse, cell, dense)
            records.write(self.path(cell), timer.record(config, metrics, backend=self.ops))
            self.say(f"[{number}/{len(missing)}] {self.source.name} {cell.label}: {_headline(metrics)}")

    def _dense(self, model: Any) -> _Dense:
        found, s = _Dense(), self.settings
        for name, path in dense_paths(list(s.dense), model, self.ops, self.prompt, s.new_tokens, self.given):
            timing = measure(path, self.prompt, s.new_tokens, s.repeats)
            found.timings[name] = timing
            if trace := kernels.by_kernel(path, self.prompt, s.new_tokens):
                found.kernels[name] = trace
            compiled = getattr(path, "compile_seconds", None)
            took = f", compiled in {compiled:.0f} s" if compiled else ""
            self.say(f"{self.source.name} dense, {path.name}: {timing.tokens_per_second:.2f} tokens/s{took}")
            del path
            _free()
        return found

    def _cell(self, model: Any, cell: Cell, dense: _Dense) -> tuple[dict[str, Any], dict[str, Any]]:
        s = self.settings
        fused = FusedModel(model, self.ops)
        path = Steps(model, fused, fused.ops(), self.prompt, s.new_tokens, self.given)
        timing = measure(path, self.prompt, s.new_tokens, s.repeats)
        trace = kernels.by_kernel(path, self.prompt, s.new_tokens)
        ids = torch.cat([self.prompt, self.given if self.given is not None else self._generated(path)], 1)
        del path, fused
        _free()
        achieved, by_unit = _achieved(model, ids, s.prompt_tokens)
        config = model_config(model, self.source.name) | self.source.config
        config |= {"suite": "decode", "batch": s.batch, "prompt_tokens": s.prompt_tokens, "new_tokens": s.new_tokens}
        config |= {"repeats": s.repeats, "token_policy": "decode", "ranks": cell.ranks, "dense_paths": list(s.dense)}
        size = bytes_per_token(model, by_unit)
        metrics = self._metrics(timing, dense, achieved, size)
        metrics |= {"dense_kernels": dense.kernels, "kernels": trace}
        return config, metrics

    def _metrics(self, timing: Timing, dense: _Dense, achieved: float, size: int) -> dict[str, Any]:
        best = dense.timings[dense.best]
        rates = {name: each.tokens_per_second for name, each in dense.timings.items()}
        cublas = max((rate for name, rate in rates.items() if name in CUBLAS), default=None)
        step = timing.decode_seconds / len(timing.steps[0])
        rate = (size + self.kv_bytes) / step
        return {
            **timing.metrics(),
            "dense": {name: each.metrics() for name, each in dense.timings.items()},
            "dense_best": dense.best,
            "dense_tokens_per_second": round(best.tokens_per_second, 2),
            "speedup": round(timing.tokens_per_second / best.tokens_per_second, 4),
            "speedup_cublas": None if cublas is None else round(timing.tokens_per_second / cublas, 4),
            "speedup_by_bytes": round((self.dense_bytes + self.kv_bytes) / (size + self.kv_bytes), 4),
            "speedup_of_linears": round(1 / (1 - achieved), 4),
            "achieved_sparsity": round(achieved, 6),
            "bytes_per_token": size,
            "dense_bytes_per_token": self.dense_bytes,
            "kv_bytes_per_token": self.kv_bytes,
            "bytes_per_second": round(rate),
            "copy_bytes_per_second": None if self.bandwidth is None else round(self.bandwidth),
        }

    def _generated(self, path: Steps) -> Tensor:
        """What the path chose itself: as the last repeat did, greedily."""
        path.begin(self.prompt)
        return torch.cat(list(path.session.tokens(self.settings.new_tokens)), 1).to(self.prompt.device)


@torch.no_grad()
def _achieved(model: Any, ids: Tensor, prompt_tokens: int) -> tuple[float, Mapping[str, float]]:
    """Measured sparsity over the tokens of ids [batch, tokens] behind the prompt, by the model's own modules."""
    lengths = torch.full((len(ids),), prompt_tokens)
    with state(model).policy.using(TokenPolicy("decode"), lengths), measuring(model) as meter:
        model.base_model(ids[:, :-1], use_cache=False)
    return achieved_sparsity(model, meter)


def kv_bytes(model: Any, settings: DecodeSettings) -> int:
    """Keys and values that a step reads, of all rows, at the mean length; windows count where they are shorter."""
    spec = spec_for(model.config).decode
    assert spec is not None
    lengths = [settings.prompt_tokens + step + 1 for step in range(settings.new_tokens - 1)]
    total = 0.0
    for index, block in enumerate(sites(model)):
        window = spec.window(model.config, index)
        read = statistics.mean(lengths if window is None else [min(n, window) for n in lengths])
        keys = next(linear for name, linear in block[0].linears.items() if name.endswith("k_proj"))
        total += 2 * read * keys.out_features * keys.weight.element_size()
    return round(total * settings.batch)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _headline(metrics: Mapping[str, Any]) -> str:
    cublas = "" if metrics["speedup_cublas"] is None else f", {metrics['speedup_cublas']:.3f}× the best of cuBLAS"
    best = f"{metrics['speedup']:.3f}× the best dense ({metrics['dense_best']})"
    return (
        f"{metrics['tokens_per_second']:.2f} tokens/s, {best}{cublas}; by bytes {metrics['speedup_by_bytes']:.3f}×, "
        f"sparsity {metrics['achieved_sparsity']:.4f}"
    )


def cells_of(sparsities: list[float], ranks: list[str]) -> Iterator[Cell]:
    """Every sparsity with every kind of ranks. Raises RSparseError for values out of range and for one named twice."""
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise RSparseError(f"--sparsity must be in (0, 1), got {sparsity:g}")
    for kind in ranks:
        if kind not in RANKS:
            raise RSparseError(f"--ranks {kind!r} is unknown; choose from {', '.join(RANKS)}")
    for named in (list(map(str, sparsities)), ranks):
        if len(set(named)) != len(named):
            raise RSparseError(f"{next(each for each in named if named.count(each) > 1)} is named twice")
    for kind in ranks:
        for sparsity in sparsities:
            yield Cell(sparsity, kind)
