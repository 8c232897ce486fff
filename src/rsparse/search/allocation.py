"""Where the bytes go, over all units at once: levels, scores and low rank, by the KL to the dense model, forward passes alone.

From a start (a greedy within blocks, which holds each block at one level) in three moves, each at the same bytes in total:
levels of whole kinds and whole blocks, by a diagonal Newton step from central differences; then, kind by kind, another score
and a low-rank share where they lower the KL; then single units, by random steps that are kept when they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from rsparse.calibration.store import Calibration
from rsparse.calibration.windows import spread
from rsparse.errors import RSparseError
from rsparse.models.layout import unit_shapes
from rsparse.progress import progress
from rsparse.recipe import Recipe, UnitRecipe
from rsparse.search.candidate import CandidateModel
from rsparse.search.resume import AllocationFile

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST, MOST = 0.02, 0.95  # sparsity of a unit
RHOS = (0.97, 0.94)  # what is tried, the second where the first has earned its bytes
_STEP = 0.04  # of sparsity: half a difference. 0.02 drowned in the thresholds' ±0.2 %.
_REACH = 0.12  # the farthest that one Newton step moves a group
_SCALES = (1.0, 0.5, 1.5)  # of the joint step that are tried
_NOISE = 0.03  # standard deviation of a random step, in sparsity
_GAIN = 0.002  # relative: a score or a low-rank share that wins less is not worth the reading


@dataclass(frozen=True)
class Choice:
    """One unit's."""

    sparsity: float
    rho: float = 1.0
    criterion: str = "magnitude"


@dataclass(frozen=True)
class Allocated:
    """The choices, and the KL in nats a token on the judging windows after each move, by name; `start` is the first."""

    choices: dict[str, Choice]
    course: dict[str, float]
    evaluations: int


def allocate(
    model: PreTrainedModel,
    calibration: Calibration,
    start: Mapping[str, Choice],
    *,
    grouping: str,
    tokens: int,
    rounds: int,
    polish: int,
    criteria: Iterable[str],
    lowrank: bool,
    seed: int,
    kept: AllocationFile | None = None,
) -> Allocated:
    """Improve `start` (by unit name) on `tokens` of the calibration's windows, keeping its bytes in total.

    Units of the start outside of [LEAST, MOST] are brought there first. Trials that `kept` has are not judged again. Raises
    RSparseError where all units together are outside.
    """
    search = _Allocation(model, calibration, start, grouping, tokens, lowrank, kept or AllocationFile(None, {}))
    try:
        return search.run(rounds, polish, tuple(criteria), lowrank, seed)
    finally:
        search.close()


class _Allocation:
    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Calibration,
        start: Mapping[str, Choice],
        grouping: str,
        tokens: int,
        lowrank: bool,
        kept: AllocationFile,
    ) -> None:
        self.model, self.calibration, self.kept = model, calibration, kept
        self.model_type = model.config.model_type
        self.grouping = grouping
        self.shapes = unit_shapes(model, grouping)
        self.names = list(self.shapes)
        self.sizes = np.array([sum(outs.values()) * size for outs, size in self.shapes.values()], dtype=np.float64)
        self.choices = {name: start[name] for name in self.names}
        self.budget = float(self._levels() @ self.sizes)
        if not LEAST - 1e-9 <= (mean := self.budget / self.sizes.sum()) <= MOST + 1e-9:
            raise RSparseError(f"levels are allocated between sparsity {LEAST} and {MOST} in the mean, got {mean:.4g}")
        self.choices = self._at(self._levels())
        self.windows = spread(calibration.windows, tokens // calibration.meta.seq_len)
        base = self._recipe({name: replace(each, rho=1.0) for name, each in self.choices.items()})
        if lowrank:
            base = replace(base, units={name: self._widest(unit) for name, unit in base.units.items()})
        self.base = base
        self.candidates: CandidateModel | None = None
        self.evaluations = self.most = 0
        self._open = ExitStack()

    def close(self) -> None:
        """The dense model again."""
        self._open.close()

    def run(self, rounds: int, polish: int, criteria: tuple[str, ...], lowrank: bool, seed: int) -> Allocated:
        groups = self._groups()
        by_kind = len(criteria) + lowrank * len(RHOS)
        self.most = 1 + rounds * (2 * len(groups) + len(_SCALES)) + by_kind * len(self._kinds()) + polish
        self.kl = self._judge(self.choices)
        course = {"start": self.kl}
        for number in range(rounds):
            self._move_groups(groups)
            course[f"groups {number + 1}"] = self.kl
        for criterion in criteria:
            self._try_kinds(lambda each, wanted=criterion: replace(each, criterion=wanted))  # type: ignore[misc]
            course[criterion] = self.kl
        for before, rho in zip((1.0, *RHOS), RHOS, strict=False) if lowrank else ():
            self._try_kinds(lambda each, old=before, new=rho: replace(each, rho=new) if each.rho == old else each)  # type: ignore[misc]
            course[f"rho {rho}"] = self.kl
        if polish:
            self._polish(polish, seed)
            course["units"] = self.kl
        return Allocated(self.choices, course, self.evaluations)

    def _move_groups(self, groups: list[np.ndarray]) -> None:
        """One Newton step over the groups' levels: slope and curvature of each from central differences."""
        levels, step = self._levels(), np.zeros(len(self.names))
        for group in groups:
            up, down = (self._judge(self._at(levels + sign * _STEP * group)) for sign in (1, -1))
            slope, curvature = (up - down) / (2 * _STEP), (up + down - 2 * self.kl) / _STEP**2
            # A flat or concave direction is noise or far from its minimum: go as far as is allowed, downhill.
            reach = -slope / curvature if curvature > 0 else -_REACH * np.sign(slope)
            step += float(np.clip(reach, -_REACH, _REACH)) * group
        for scale in _SCALES:
            self._keep_if_better(self._at(levels + scale * step))

    def _try_kinds(self, changed: Callable[[Choice], Choice]) -> None:
        for members in self._kinds():
            chosen = {name: changed(each) if name in members else each for name, each in self.choices.items()}
            if chosen != self.choices:
                self._keep_if_better(chosen, _GAIN)

    def _polish(self, tries: int, seed: int) -> None:
        random = np.random.default_rng([seed, 5])
        for _ in range(tries):
            touched = random.random(len(self.names)) < 0.5
            moved = self._levels() + touched * random.normal(0, _NOISE, len(self.names))
            self._keep_if_better(self._at(moved))

    def _keep_if_better(self, choices: dict[str, Choice], gain: float = 0.0) -> None:
        found = self._judge(choices)
        if found < self.kl * (1 - gain):
            self.kl, self.choices = found, choices

    def _judge(self, choices: dict[str, Choice]) -> float:
        self.evaluations += 1
        return self.kept.kl(self.evaluations - 1, self._recipe(choices), self._evaluate)

    def _evaluate(self, recipe: Recipe) -> float:
        if self.candidates is None:  # not before: it takes factors, which an allocation that is all kept does without
            self.candidates = CandidateModel(self.model, self.base, self.calibration, self.windows, "kl")
            self._open.callback(self.candidates.close)
            self._bar = self._open.enter_context(progress(self.most, "allocate", unit="trial", done=self.kept.trials))
        found = self.candidates.evaluate(recipe).value
        self._bar.update()
        return found

    def _levels(self) -> np.ndarray:
        return np.array([self.choices[name].sparsity for name in self.names])

    def _at(self, levels: np.ndarray) -> dict[str, Choice]:
        """The choices at other levels, moved together so that the bytes stay the same."""
        levels = _shifted(levels, self.sizes, self.budget)
        return {
            name: replace(self.choices[name], sparsity=float(level)) for name, level in zip(self.names, levels, strict=True)
        }

    def _kinds(self) -> list[set[str]]:
        kinds: dict[str, set[str]] = {}
        for name in self.names:
            kinds.setdefault(name.rpartition(".")[2], set()).add(name)
        return list(kinds.values())

    def _groups(self) -> list[np.ndarray]:
        """Indicators over the units of each kind, and of each block."""
        blocks: dict[str, set[str]] = {}
        for name in self.names:
            number = next(part for part in name.split(".") if part.isdigit())
            blocks.setdefault(number, set()).add(name)
        return [np.array([name in members for name in self.names], float) for members in (*self._kinds(), *blocks.values())]

    def _recipe(self, choices: Mapping[str, Choice]) -> Recipe:
        units = {}
        for name, (linears, in_features) in self.shapes.items():
            each = choices[name]
            units[name] = UnitRecipe.uniform(linears, in_features, each.sparsity, each.rho, criterion=each.criterion)
        return Recipe(self.model_type, units, "joint", self.grouping, "dropped")

    def _widest(self, unit: UnitRecipe) -> UnitRecipe:
        """The unit with the rank that the lowest rho buys at the lowest level: candidates slice its factors."""
        linears = dict(zip(unit.linears, unit.outs, strict=True))
        wide = UnitRecipe.uniform(linears, unit.in_features, LEAST, min(RHOS))
        # So many ranks and a level of MOST are more than there is.
        return replace(unit, sparsity=min(unit.sparsity, 0.9), rho=min(RHOS), ranks=wide.ranks)


def _shifted(levels: np.ndarray, sizes: np.ndarray, budget: float) -> np.ndarray:
    """`levels` moved by one number and clipped, so that levels @ sizes is `budget`: the nearest such point."""
    low, high = LEAST - levels.max(), MOST - levels.min()
    for _ in range(60):
        middle = (low + high) / 2
        if np.clip(levels + middle, LEAST, MOST) @ sizes < budget:
            low = middle
        else:
            high = middle
    return np.clip(levels + high, LEAST, MOST)
