"""One model on the bench: its windows, calibration and dense states are made once and serve every cell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.calibration import Calibration, calibrate
from rsparse.compensation import Compensated, FitSettings, compensate, fit_windows
from rsparse.conversion import sparsify
from rsparse.evaluation.describe import backend, model_config, short, sparse_config
from rsparse.evaluation.measure import text_windows
from rsparse.evaluation.perplexity import evaluate
from rsparse.evaluation.tasks import run_tasks
from rsparse.losses import dense_states
from rsparse.memory import peak_bytes, reset_peak
from rsparse.methods import MethodSpec, Plan, make_recipe, seeded
from rsparse.sparse_model import achieved_sparsity, densify, is_sparse, measuring, state

if TYPE_CHECKING:
    from rsparse.benchmark.grid import Cell
    from rsparse.benchmark.settings import Settings

# Recipes and the seconds that they took, by method, its options and level.
Prepared = Mapping[tuple[str, Any, float], tuple[Plan, float]]
# Dense states that are kept to compare each sparse form with: 830,000 tokens of hidden size 576 are 1 GB in bf16.
DENSE_STATE_BYTES = 6e9


class Workbench:
    """`model` becomes sparse and dense again in place; a cell is measured while it is what the cell asks. Recipes in `prepared`
    are not made again."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, settings: Settings, tasks: Sequence[Any], prepared: Prepared | None = None
    ) -> None:
        self.name, self.model, self.tokenizer, self.settings, self.tasks = name, model, tokenizer, settings, tasks
        self._base = model_config(model, name)
        self._windows: dict[str, Tensor] = {}
        self._dense: dict[str, Tensor] = {}
        self._dense_bytes = 0
        self._calibration: Calibration | None = None
        self._recipes: dict[tuple[str, Any, float], tuple[Plan, float, int | None]] = {
            key: (*made, None) for key, made in (prepared or {}).items()
        }
        self._fit_windows: tuple[Tensor, Tensor] | None = None
        self._fit: tuple[FitSettings, Compensated, int] | None = None
        self._recipe_bytes: int | None = None
        self._lm: Any = None

    @property
    def backend(self) -> str:
        return backend(self.model)

    @contextlib.contextmanager
    def sparse(self, method: MethodSpec, sparsity: float) -> Iterator[None]:
        """The model as `method` makes it at `sparsity`, for as long as the block runs."""
        self._preset, self._recipe_seconds, self._recipe_bytes, self._fit = method.label, 0.0, None, None
        if method.name == "dense":
            yield
            return
        calibration = self.calibration
        recipe = self._recipe(method, sparsity, calibration)
        settle = calibration.meta.tokens if self.settings.settle_tokens is None else self.settings.settle_tokens
        sparsify(self.model, recipe, calibration, settle_tokens=settle, seed=self.settings.seed)
        try:
            self._fit = None if method.fit is None else self._compensate(dict(method.fit))
            yield
        finally:
            densify(self.model)

    def _recipe(self, method: MethodSpec, sparsity: float, calibration: Calibration) -> Plan:
        """Kept: a method and the same one compensated share theirs."""
        key = method.name, method.options, sparsity
        if key not in self._recipes:
            start = time.perf_counter()
            reset_peak(self.model.device)
            options = seeded(method.name, self.settings.seed) | dict(method.options)
            found = make_recipe(self.model, method.name, sparsity, calibration=calibration, **options)
            self._recipes[key] = found, time.perf_counter() - start, peak_bytes(self.model.device)
        recipe, self._recipe_seconds, self._recipe_bytes = self._recipes[key]
        return recipe

    def _compensate(self, options: dict[str, str]) -> tuple[FitSettings, Compensated, int]:
        """What it was, what came out, and the bytes that it held."""
        wanted, device = self.settings, next(self.model.parameters()).device
        reset_peak(device)
        if self._fit_windows is None:
            self._fit_windows = fit_windows(wanted.calibration_data, self.tokenizer, wanted.seq_len, wanted.fit_tokens)
        windows, heldout = self._fit_windows
        label = f"{short(wanted.calibration_data)}, {windows.numel()} tokens"
        settings = FitSettings.parse({"seed": str(wanted.seed)} | options, device.type)
        found = compensate(self.model, windows, heldout, settings, sink_tokens=wanted.sink_tokens, label=label)
        return settings, found, peak_bytes(device)

    def measure(self, cell: Cell) -> tuple[dict[str, Any], dict[str, Any]]:
        """(config, metrics) of the cell's record."""
        config = self._base | sparse_config(self.model)
        config |= {"suite": "quality", "preset": self._preset, "recipe_seconds": round(self._recipe_seconds, 2)}
        if self._recipe_bytes is not None:
            config["recipe_peak_bytes"] = self._recipe_bytes
        if self._fit is not None:
            settings, found, held = self._fit
            config |= {"fit_seconds": round(found.seconds, 2), "fit_peak_bytes": held}
            config |= {"fit_settings": asdict(settings), "fit_history": found.history}
        config |= {"token_policy": str(cell.token_policy), "sink_tokens": cell.token_policy.sink_tokens}
        if is_sparse(self.model):
            config |= {"settle_tokens": self.settings.settle_tokens, "seed": self.settings.seed}
            config["levels"] = state(self.model).levels()
        if cell.text is not None:
            config |= {"data": short(cell.text), "seq_len": self.settings.seq_len, "max_tokens": self.settings.max_tokens}
            windows, dense = self.windows(cell.text), self.dense(cell.text)
            result = evaluate(self.model, windows, cell.token_policy, dense_hidden=dense, label=self._preset[:10])
            metrics = result.metrics()
            # The asked levels are in the recipe; by unit they would be most of the file.
            metrics.pop("sparsity_by_unit", None)
            return config, _rounded(metrics)
        config |= {name: getattr(self.settings, name) for name in ("limit", "num_fewshot", "chat_template")}
        return config, _rounded(self._task_metrics(cell))

    def _task_metrics(self, cell: Cell) -> dict[str, Any]:
        if self._lm is None:
            from rsparse.evaluation.harness_lm import HarnessLM

            self._lm = HarnessLM(self.model, self.tokenizer)
        wanted = self.settings
        self._lm.tokens_read = self._lm.tokens_generated = 0
        start = time.perf_counter()
        with measuring(self.model) as meter:
            scores = run_tasks(
                self._lm,
                self.tasks,
                cell.token_policy,
                limit=wanted.limit,
                num_fewshot=wanted.num_fewshot,
                chat=wanted.chat_template,
            )
        dense_bytes = dense_bytes_per_token(self.model)
        metrics: dict[str, Any] = {"tasks": {name: score.to_dict() for name, score in scores.items()}}
        metrics |= {"bytes_per_token": dense_bytes, "dense_bytes_per_token": dense_bytes}
        read, generated = self._lm.tokens_read, self._lm.tokens_generated
        metrics["eval_tokens_per_second"] = (read + generated) / (time.perf_counter() - start)
        if is_sparse(self.model):
            total, by_unit = achieved_sparsity(self.model, meter)
            metrics |= {"achieved_sparsity": total, "sparse_row_share": meter.sparse_rows / max(1, read + generated)}
            metrics["bytes_per_token"] = bytes_per_token(self.model, by_unit)
        return metrics

    @property
    def calibration(self) -> Calibration:
        if self._calibration is None:
            wanted = self.settings
            self._calibration = calibrate(
                self.model, self.tokenizer, wanted.calibration_data, tokens=wanted.calibration_tokens,
                rows=min(wanted.calibration_rows, wanted.calibration_tokens), seq_len=wanted.seq_len,
                sink_tokens=wanted.sink_tokens, seed=wanted.seed, name=short(self.name),
            )  # fmt: skip
        return self._calibration

    def windows(self, text: str) -> Tensor:
        if text not in self._windows:
            wanted = self.settings
            self._windows[text] = text_windows(text, self.tokenizer, wanted.seq_len, wanted.max_tokens)
        return self._windows[text]

    def dense(self, text: str) -> Tensor | None:
        """The dense model's states over the text's windows, where a sparse model is compared and there is room for them."""
        if not is_sparse(self.model):
            return None
        if text not in self._dense:
            windows = self.windows(text)
            size = windows.numel() * self.model.config.hidden_size * self.model.dtype.itemsize
            if self._dense_bytes + size > DENSE_STATE_BYTES:
                return None
            self._dense[text] = dense_states(self.model, windows)
            self._dense_bytes += size
        return self._dense[text]


def _rounded(value: Any) -> Any:
    """Six digits are more than the measurement bears, and keep the files small."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return round(value, 6) if isinstance(value, float) else value
