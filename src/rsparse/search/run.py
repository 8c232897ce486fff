"""The paper's search: generations of candidate recipes, each evaluated on calibration windows, the fittest kept."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rsparse import criteria
from rsparse.calibration.store import Calibration
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.models.layout import unit_shapes
from rsparse.recipe import FITS, GROUPINGS, Recipe, UnitRecipe
from rsparse.search import genome as genomes
from rsparse.search import study as studies
from rsparse.search.candidate import CandidateModel
from rsparse.search.study import Done, SearchStudy, Slot
from rsparse.sparse_model import is_sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OBJECTIVES = ("perplexity", "kl")


@dataclass(frozen=True)
class SearchSettings:
    """What a search is: the same settings find the same recipe, whoever runs it. Defaults are the paper's.

    `samples` calibration windows judge a candidate. Raises RSparseError for values out of range.
    """

    sparsity: float
    population: int = 32
    generations: int = 5
    samples: int = 16
    objective: str = "perplexity"
    criterion: str = "paper"
    fit: str = "svd"
    grouping: str = "linear"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            raise RSparseError(f"a search needs a sparsity between 0 and 1, got {self.sparsity}")
        for name, least in (("population", 2), ("generations", 1), ("samples", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise RSparseError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name, known in (("objective", OBJECTIVES), ("fit", FITS), ("grouping", GROUPINGS)):
            if getattr(self, name) not in known:
                raise RSparseError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        criteria.check(self.criterion)
        if self.criterion == "residual_norm":
            raise RSparseError("a search cannot score by residual_norm: it changes with every rank")

    def known(self) -> dict[str, Any]:
        """The settings by name, and which operators they are of."""
        return asdict(self) | {"operators": genomes.VERSION}

    def of_a_folder(self) -> dict[str, Any]:
        """What searches of several populations in one folder have in common of them."""
        return {name: value for name, value in self.known().items() if name != "population"}

    def check_calibration(self, calibration: Calibration) -> None:
        """Raises RSparseError where there are fewer windows than `samples`."""
        if len(calibration.windows) < self.samples:
            raise RSparseError(f"the calibration has {len(calibration.windows)} windows, and the search samples {self.samples}")


@dataclass(frozen=True)
class Cost:
    """What a search took of all its workers, from the first call to the last: `seconds` are all of theirs together.

    `factors_seconds` is the mean where they were made more than once, `candidate_seconds` the median over candidates that
    ran to their end, which leaves out what only the first ones compile; `stopped`, how many did not.
    """

    candidates: int
    stopped: int
    seconds: float
    factors_seconds: float
    candidate_seconds: float


@dataclass(frozen=True)
class SearchResult:
    """The fittest recipe, its fitness (mean −log p or KL, nats a token), and the best so far by generation.

    `sparse_only` is the fitness of rho = 1 everywhere; `evaluations` and `seconds` are this worker's own, `cost` everybody's.
    """

    recipe: Recipe
    fitness: float
    sparse_only: float
    history: list[float]
    evaluations: int
    seconds: float
    cost: Cost


@dataclass(frozen=True)
class Progress:
    """After each evaluation of this worker: where the search of all workers stands. Generation 0 is the random one."""

    generation: int
    done: int
    total: int
    best: float
    per_minute: float
    seconds_left: float


def sampled(calibration: Calibration, samples: int) -> Tensor:
    """The windows that judge, [samples, seq_len]: spread over the text, since neighbours come from the same few documents."""
    return calibration.windows[np.linspace(0, len(calibration.windows) - 1, samples).round().astype(int)]


def known_settings(calibration: Calibration, settings: SearchSettings) -> dict[str, Any]:
    """What a study keeps of its search that is known without the model, the rows that `fit=dropped` reads included."""
    # Named so that other settings are told before it: what judges follows from `samples` too.
    windows = {"windows": calibration.stamp(sampled(calibration, settings.samples))}
    return settings.known() | windows


def check_study(calibration: Calibration, settings: SearchSettings, storage: str, study: str = "search") -> None:
    """Raises RSparseError where the study is of another search, so far as that shows before the model is loaded."""
    studies.check_study(storage, study, known_settings(calibration, settings))


def search(
    model: PreTrainedModel,
    calibration: Calibration,
    settings: SearchSettings,
    *,
    storage: str = "sqlite:///rsparse-search.db",
    study: str = "search",
    begin: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> SearchResult:
    """Search rho for every unit of the dense `model`, or go on with a search, or join one that others run.

    `storage` is an Optuna storage: a database's URL, or `journal:PATH`. The recipe's thresholds are left to `sparsify`. Where
    some candidates are left, `begin` is called first, with how many are done and how many there are. Raises RSparseError where
    the study is of another search, and where a fitness is not finite; the study keeps what is done.
    """
    if is_sparse(model):
        raise RSparseError("search needs the dense model; this one is sparse")
    calibration.check_model(model)
    settings.check_calibration(calibration)
    found = _Search(model, calibration, settings, storage, study, report)
    if (done := len(found.study.done())) < found.total:
        begin(done, found.total)
    return found.run()


class _Search:
    def __init__(
        self,
        model: PreTrainedModel,
        calibration: Calibration,
        settings: SearchSettings,
        storage: str,
        study: str,
        report: Callable[[Progress], None],
    ) -> None:
        self.model, self.calibration, self.settings, self.report = model, calibration, settings, report
        self.shapes = unit_shapes(model, settings.grouping)
        self.groups = unit_groups(list(self.shapes))
        self.recipe(np.ones(len(self.shapes)))  # raises for a budget that nothing fits, before a study is made of it
        self.windows = sampled(calibration, settings.samples)
        self.study = SearchStudy(storage, study, known_settings(calibration, settings) | self._identity())
        self.total = settings.population * settings.generations
        self.candidates: CandidateModel | None = None

    def _identity(self) -> dict[str, str | int]:
        """What decides a fitness beside that."""
        return {
            "model": weights_sha(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "units": len(self.shapes),
        }

    def run(self) -> SearchResult:
        self.start = self.told = time.perf_counter()
        self.evaluated = 0
        try:
            for generation in range(self.settings.generations):
                while True:
                    done = self.study.done()
                    if sum(slot[0] == generation for slot in done) >= self.settings.population:
                        break
                    slot = self.study.claim(generation, self.settings.population)
                    if slot is None:
                        self.study.wait()
                    else:
                        self._evaluate(slot, done)
        finally:
            if self.candidates is not None:
                self.candidates.close()
        return self._result(self.study.done())

    def _evaluate(self, slot: Slot, done: dict[Slot, Done]) -> None:
        parents = self._survivors(done, slot[0])
        genome = self._genome(slot, [genes for _, genes in parents])
        # A child beyond the worst survivor cannot survive; in the first generation everyone is needed.
        worst = parents[-1][0] if parents else float("inf")
        factors_seconds = 0.0
        try:
            with self.study.signing():
                if self.candidates is None:
                    base = self.recipe(np.zeros(len(self.shapes)))
                    self.candidates = CandidateModel(self.model, base, self.calibration, self.windows, self.settings.objective)
                    factors_seconds = self.candidates.factors_seconds
                    self.since = time.perf_counter(), len(done)
                start = time.perf_counter()
                fitness = self.candidates.evaluate(self.recipe(genome), worst)
                stop = time.perf_counter()
        except BaseException:
            with contextlib.suppress(RSparseError):  # a storage that is gone: what went wrong first is what to tell
                self.study.give_up()
            raise
        self.study.tell(genome.tolist(), fitness.value, fitness.stopped, (stop - start, factors_seconds, stop - self.told))
        self.told = stop
        self.evaluated += 1
        self._report(slot[0], self.study.done())

    def _report(self, generation: int, done: dict[Slot, Done]) -> None:
        # Everybody's, since this worker's first: with several the rate is of them all.
        rate = (len(done) - self.since[1]) / (time.perf_counter() - self.since[0])
        best = min(each.value for each in done.values())
        self.report(Progress(generation, len(done), self.total, best, rate * 60, (self.total - len(done)) / rate))

    def _survivors(self, done: dict[Slot, Done], generation: int) -> list[tuple[float, genomes.Genome]]:
        """Parents of `generation`: the fittest of all earlier ones."""
        scored: list[tuple[float, genomes.Genome]] = []
        for earlier in range(generation):
            slots = [done[earlier, index] for index in range(self.settings.population)]
            scored += [(each.value, np.array(each.genome)) for each in slots if not each.stopped]
            scored = genomes.survivors(scored, self.settings.population)
        return scored

    def _genome(self, slot: Slot, parents: list[genomes.Genome]) -> genomes.Genome:
        generation, index = slot
        if generation == 0:
            return genomes.initial(self.settings.seed, index, self.settings.population, self.groups)
        return genomes.child(self.settings.seed, generation, index, parents, self.groups)

    def recipe(self, genome: genomes.Genome) -> Recipe:
        """The recipe that a genome stands for: one rho a unit, all at the same sparsity."""
        settings = self.settings
        units = {
            name: UnitRecipe.uniform(linears, in_features, settings.sparsity, float(rho), criterion=settings.criterion)
            for (name, (linears, in_features)), rho in zip(self.shapes.items(), genome, strict=True)
        }
        model = self.model.config.name_or_path or ""
        return Recipe(self.model.config.model_type, units, "rsparse", settings.grouping, settings.fit, model)

    def _result(self, done: dict[Slot, Done]) -> SearchResult:
        history = [
            min(each.value for each in done.values() if each.slot[0] <= generation)
            for generation in range(self.settings.generations)
        ]
        best = min((each for each in done.values() if not each.stopped), key=lambda each: (each.value, each.slot))
        seconds = time.perf_counter() - self.start
        recipe = self.recipe(np.array(best.genome))
        cost = cost_of(done.values())
        return SearchResult(recipe, best.value, done[0, 0].value, history, self.evaluated, seconds, cost)


def cost_of(done: Collection[Done]) -> Cost:
    """Of all slots of a search."""
    factors = [each.factors_seconds for each in done if each.factors_seconds]
    return Cost(
        candidates=len(done),
        stopped=sum(each.stopped for each in done),
        seconds=sum(each.elapsed for each in done),
        factors_seconds=statistics.fmean(factors) if factors else 0.0,
        candidate_seconds=statistics.median(each.seconds for each in done if not each.stopped),
    )


def unit_groups(names: list[str]) -> list[int]:
    """A number for each unit's group: its kind (`q_proj`) over all blocks."""
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    return [kinds.index(name.rpartition(".")[2]) for name in names]
