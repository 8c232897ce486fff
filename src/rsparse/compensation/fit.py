"""Adam on the KL to the dense model, over what is free at run time; the held-out windows decide what is kept.

After SPON (arXiv 2512.12744): one vector a linear that does not depend on the input, trained to match the dense model's
distribution. Departures: it is added on sparse rows alone, so that dense rows stay exact; the levels can be fitted with it;
a look at the held-out text that finds the fit worse than its best state goes back to that one, at half the rate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rsparse.calibration.windows import spread
from rsparse.compensation.fitted import FittedVector
from rsparse.compensation.looks import waited, worse
from rsparse.compensation.objective import kl_gradient
from rsparse.compensation.resume import Best, Course, FitFile, State
from rsparse.compensation.settings import FitSettings
from rsparse.errors import RSparseError
from rsparse.losses import batch_tokens, compare, dense_states, hidden_states, window_batches
from rsparse.progress import progress
from rsparse.sparse_linear import RSparseLinear
from rsparse.sparse_model import is_sparse, recipe_state, replace_units, state, unit_members
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTLE_TOKENS = 8192
# Dense states of the training windows that are kept for the passes after the first: 262,144 tokens of hidden size 1536 in bf16.
STATE_BYTES = 1e9
_WARM_UP = 10


@dataclass(frozen=True)
class Progress:
    """At a check: KL in nats a token, of the latest batches and of the held-out windows, and where the fit stands."""

    step: int
    steps: int
    batch_kl: float
    heldout_kl: float
    seconds_left: float


@dataclass(frozen=True)
class Compensated:
    """Held-out KL in nats a token: before the fit, of the state that was kept (after `step`), and what each check found."""

    before: float
    kl: float
    step: int
    history: list[tuple[int, float]]
    seconds: float


def compensate(
    model: PreTrainedModel,
    windows: Tensor,
    heldout: Tensor,
    settings: FitSettings | None = None,
    *,
    sink_tokens: int = 1,
    label: str = "",
    state_file: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Compensated:
    """Fit the sparse `model` in place to its own dense form on windows [n, seq_len]; W stays what it is.

    Each unit becomes a compensated one, whose vector is paid for out of its own channels. Of the states at the checks the
    one with the smallest KL on `heldout` [m, seq_len] is kept, zeros among them. `state_file` is written at each check;
    where it is there, the fit goes on from it. `label` names the text, for people. Raises RSparseError on a dense model,
    windows of another length, the state of another fit, and a KL that is not finite.
    """
    settings = settings or FitSettings()
    if windows.shape[1] != heldout.shape[1]:
        raise RSparseError(f"windows of {windows.shape[1]} tokens, held-out ones of {heldout.shape[1]}: give both one length")
    settings.check_window(windows.shape[1])
    if not 0 <= sink_tokens < windows.shape[1]:
        raise RSparseError(f"sink_tokens must be from 0 to below the window's {windows.shape[1]} tokens, got {sink_tokens}")
    if is_sparse(model):
        recipe_state(model)  # raises where it was made otherwise
    if not unit_members(model):
        raise RSparseError("this model has no sparse linears to compensate; sparsify it first")
    file = None if state_file is None else FitFile(state_file, model, windows, heldout, settings, sink_tokens)
    saved = None if file is None else file.load()
    fit = _Fit(model, windows, heldout, settings, sink_tokens, report)
    try:
        with progress(settings.steps, "fit", unit="step", done=0 if saved is None else saved.step) as bar:
            fit.prepare()
            return fit.run(label, file, saved, bar)
    except BaseException:
        fit.undo()
        raise
    finally:
        fit.finish()


class _Fit:
    def __init__(
        self,
        model: PreTrainedModel,
        windows: Tensor,
        heldout: Tensor,
        settings: FitSettings,
        sink_tokens: int,
        report: Callable[[Progress], None],
    ) -> None:
        self.model, self.windows, self.heldout = model, windows, heldout
        self.settings, self.sink_tokens, self.report = settings, sink_tokens, report
        self.policy = TokenPolicy("all", sink_tokens=sink_tokens)
        self.device = next(model.parameters()).device
        self.frozen = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.before = recipe_state(model).recipe, _buffers(model)

    def prepare(self) -> None:
        """Change the model into one that can be fitted."""
        model, windows, settings = self.model, self.windows, self.settings
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        _mark_compensated(model)
        settling = spread(windows, min(SETTLE_TOKENS, batch_tokens(model)) // windows.shape[1])
        self.fitted = FittedVector(model, settling, self.sink_tokens, settings)
        self.optimizer = torch.optim.Adam([self.fitted.values], lr=settings.learning_rate, betas=(0.9, 0.98))
        self.dense_heldout = dense_states(model, self.heldout)
        size = windows.numel() * model.config.hidden_size * model.dtype.itemsize
        repeated = settings.steps * settings.batch_tokens > windows.numel()
        self.dense_windows = dense_states(model, windows) if repeated and size <= STATE_BYTES else None

    def run(self, label: str, file: FitFile | None, course: Course | None, bar: Any) -> Compensated:
        settings, fitted, start = self.settings, self.fitted, time.perf_counter()
        if course is not None:
            self._go_back(course.now)
        fitted.settle()
        if course is None:
            now, kls = self._now(), self._heldout_kls(0)
            course = Course(0, now, Best(now, kls), 0, [(0, float(kls.mean()))])
        first = course.step
        batches: list[float] = []
        for step in range(first + 1, settings.steps + 1):
            if waited(course.history, settings.patience):
                break
            batches.append(self._step(step, course.halvings))
            bar.update()
            if step % settings.check_every and step != settings.steps:
                continue
            fitted.settle()
            course = self._look(step, course)
            if file is not None:
                file.save(course)
            left = (time.perf_counter() - start) / (step - first) * (settings.steps - step)
            self.report(Progress(step, settings.steps, sum(batches) / len(batches), course.history[-1][1], left))
            batches.clear()
        self._go_back(course.best.state)
        fitted.settle(exactly=True)
        self._write_recipe(label)
        history = course.history
        step, kl = min(history, key=lambda each: each[1])
        return Compensated(history[0][1], kl, step, history, time.perf_counter() - start)

    def _look(self, step: int, course: Course) -> Course:
        """The course after a look; the model goes back to the best state where it is worse by more than chance."""
        kls, now, best, halvings = self._heldout_kls(step), self._now(), course.best, course.halvings
        if kls.mean() < best.kls.mean():
            best = Best(now, kls)
        elif worse(kls, best.kls):
            now, halvings = best.state, halvings + 1
            self._go_back(now)
            self.fitted.settle()
        return Course(step, now, best, halvings, [*course.history, (step, float(kls.mean()))])

    def _now(self) -> State:
        values = self.fitted.values
        moments = self.optimizer.state.get(values) or {
            "step": 0,
            "exp_avg": torch.zeros_like(values),
            "exp_avg_sq": torch.zeros_like(values),
        }
        tensors = (each.detach().clone() for each in (values, moments["exp_avg"], moments["exp_avg_sq"]))
        return State(int(moments["step"]), *tensors)

    def _go_back(self, then: State) -> None:
        values = self.fitted.values
        with torch.no_grad():
            values.copy_(then.values)
        self.optimizer.state[values] = {
            "step": torch.tensor(float(then.updates)),
            "exp_avg": then.exp_avg.to(values.device, copy=True),
            "exp_avg_sq": then.exp_avg_sq.to(values.device, copy=True),
        }

    def undo(self) -> None:
        """The model as it was before the fit."""
        recipe, buffers = self.before
        recipe_state(self.model).recipe = recipe
        for member, names in buffers.items():
            member._buffers.update(names)

    def finish(self) -> None:
        """Parameters that can be trained again; buffers are plain ones since the last `settle`, or since `undo`."""
        for parameter in self.frozen:
            parameter.requires_grad_(True)

    def _step(self, step: int, halvings: int) -> float:
        settings, fitted, model = self.settings, self.fitted, self.model
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, settings.steps) / 2**halvings
        picked = self._picked(step)
        ids, rows = self.windows[picked].to(self.device), state(model).policy
        dense = dense_states(model, ids) if self.dense_windows is None else self.dense_windows[picked]
        with torch.enable_grad(), fitted.trainable(), rows.using(self.policy), _repeatable(self.device):
            fitted.bind()
            hidden = hidden_states(model, ids)
            kl, gradient = kl_gradient(model, hidden, dense)
            _check_finite(kl, step)
            self.optimizer.zero_grad(set_to_none=True)
            hidden.backward(gradient)
        fitted.project_gradient()
        self.optimizer.step()
        fitted.project()
        return kl

    def _picked(self, step: int) -> list[int]:
        """The windows of `step`, a pure function of (seed, step): each pass over the text in an order of its own."""
        count = max(1, self.settings.batch_tokens // self.windows.shape[1])
        picked = []
        for place in range((step - 1) * count, step * count):
            epoch, index = divmod(place, len(self.windows))
            picked.append(int(_order(self.settings.seed, epoch, len(self.windows))[index]))
        return picked

    @torch.no_grad()
    def _heldout_kls(self, step: int) -> Tensor:
        """KL of each held-out window, [m] fp64 on the CPU."""
        batches = []
        for start, ids in window_batches(self.model, self.heldout):
            with state(self.model).policy.using(self.policy):
                hidden = hidden_states(self.model, ids)
            found = compare(self.model, ids, hidden, self.dense_heldout[start : start + len(ids)])
            batches.append(found.kl.double().mean(-1).cpu())
        kls = torch.cat(batches)
        _check_finite(float(kls.mean()), step)
        return kls

    def _write_recipe(self, label: str) -> None:
        recipe = recipe_state(self.model).recipe
        levels = self.fitted.sparsities()
        units = {
            name: dataclasses.replace(unit, sparsity=levels[name]) if name in levels else unit
            for name, unit in recipe.units.items()
        }
        settings = self.settings
        fitted = ", ".join(["vectors", *(name for name in ("levels", "factors") if getattr(settings, name))])
        how = f"{fitted}; {settings.steps} steps of {settings.batch_tokens} tokens, seed {settings.seed}"
        replace_units(self.model, units, compensation=f"{label}: {how}" if label else how)


def _repeatable(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Attention whose backward adds in one order on a GPU, so that a seed gives one fit.

    Flash attention's adds as threads arrive, and masks that flip make much of a last bit: two fits of one seed were at 0.254
    and 0.250 held out after 30 steps (docs/log.md).
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cuda" else contextlib.nullcontext()


def _check_finite(kl: float, step: int) -> None:
    if not math.isfinite(kl):
        raise RSparseError(f"the KL is not finite at step {step}; try --dtype float32 or a lower learning rate")


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a half cosine to 0."""
    return min(1.0, step / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))


@functools.lru_cache(maxsize=2)  # a batch reaches into one pass over the text, or two
def _order(seed: int, epoch: int, count: int) -> Any:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)


def _buffers(model: PreTrainedModel) -> dict[RSparseLinear, dict[str, Tensor | None]]:
    return {member: dict(member._buffers) for members in unit_members(model).values() for member in members}


def _mark_compensated(model: PreTrainedModel) -> None:
    """Give every sparse linear a vector of zeros where it has none, and say so in the recipe."""
    members = unit_members(model)
    for each in members.values():
        for member in each:
            if member.compensation is None:
                member.compensation = member.weight.new_zeros(member.out_features)
    units = {
        name: dataclasses.replace(unit, compensated=True) if name in members else unit
        for name, unit in recipe_state(model).recipe.units.items()
    }
    replace_units(model, units)
