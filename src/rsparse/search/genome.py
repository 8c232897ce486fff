"""Algorithm 1's operators on vectors of rho, one gene a unit; each child a pure function of (seed, generation, index, parents).

Source: R-Sparse (arXiv 2504.19449), Algorithm 1: random initialisation, crossover `α·a + (1−α)·b` with a random α, mutation,
the fittest survive; operators by group of units at a rate of 0.5. What it leaves open is chosen here: parents are any two
survivors; mutation adds normal noise of a size drawn for each child, to each unit its own or to each group one step, and
clips to [0, 1]; and the initial population spreads from rho = 1 everywhere (sparse-only, so that the search never ends
behind it) to fully random, most of it near the first. One size of 0.1 and an even spread took the population below where
the best lies (docs/log.md, "What evolution finds").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Genome = NDArray[np.float64]

RATE = 0.5  # of each operator, by group
NOISE = (-2.5, -1.0)  # log10 of a mutation's standard deviation in rho, drawn evenly
SHARED = 0.5  # of the mutations move a group as one
VERSION = 2  # of these operators: raised where a genome comes out otherwise, so that no study or folder is of two rules
DIGITS = 6  # genes are rounded, so that what a database gives back is what was evaluated


def initial(seed: int, index: int, population: int, groups: Sequence[int]) -> Genome:
    """Member `index` of generation 0, [units]. `groups` numbers each unit's group."""
    random = _random(seed, 0, index)
    spread = (index / max(1, population - 1)) ** 2
    touched = _chosen(random, groups)
    return _clean(1 - touched * spread * random.random(len(groups)))


def child(seed: int, generation: int, index: int, parents: Sequence[Genome], groups: Sequence[int]) -> Genome:
    """Child `index` of a generation from its parents, which are sorted, the fittest first."""
    random = _random(seed, generation, index)
    first, second = random.choice(len(parents), size=2, replace=False) if len(parents) > 1 else (0, 0)
    a, b = parents[first], parents[second]
    alpha = random.random()
    made = np.where(_chosen(random, groups), alpha * a + (1 - alpha) * b, a)
    noise = _noise(random, groups)
    return _clean(made + _chosen(random, groups) * noise)


def survivors(scored: Sequence[tuple[float, Genome]], population: int) -> list[tuple[float, Genome]]:
    """The fittest `population` of (fitness, genome), smallest first; equals keep their order."""
    return sorted(scored, key=lambda each: each[0])[:population]


def _random(seed: int, generation: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, generation, index])


def _noise(random: np.random.Generator, groups: Sequence[int]) -> Genome:
    """One mutation, [units]: of one size, each unit its own step or each group one."""
    size = 10 ** random.uniform(*NOISE)
    if random.random() < SHARED:
        return random.normal(0, size, max(groups) + 1)[np.asarray(groups)]
    return random.normal(0, size, len(groups))


def _chosen(random: np.random.Generator, groups: Sequence[int]) -> NDArray[np.bool_]:
    """Units whose group is picked, each group with probability RATE."""
    picked = random.random(max(groups) + 1) < RATE
    return picked[np.asarray(groups)]


def _clean(genome: Genome) -> Genome:
    return np.asarray(np.round(np.clip(genome, 0, 1), DIGITS), dtype=np.float64)
