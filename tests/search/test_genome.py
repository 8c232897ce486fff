"""Algorithm 1's operators: against their formula, and by what each group of units gets."""

from __future__ import annotations

import numpy as np
import pytest

from rsparse.search import genome
from rsparse.search.genome import DIGITS, NOISE, RATE, SHARED, child, initial, survivors
from rsparse.search.run import unit_groups

GROUPS = [0, 0, 0, 1, 2, 2, 1, 1]
PARENTS = [np.linspace(0.1, 0.8, 8), np.linspace(0.9, 0.2, 8), np.full(8, 0.5)]


def children(seeds=range(300), parents=PARENTS, groups=GROUPS):
    return [child(seed, 1, 0, parents, groups) for seed in seeds]


def test_the_fittest_survive_and_equals_keep_their_order():
    a, b, c, d, e = (np.array([value]) for value in (0.1, 0.2, 0.3, 0.4, 0.5))
    found = survivors([(3.0, a), (1.0, b), (2.0, c), (1.0, d), (2.5, e)], 3)
    assert [(value, genes[0]) for value, genes in found] == [(1.0, 0.2), (1.0, 0.4), (2.0, 0.3)]
    assert len(survivors([(3.0, a), (1.0, b)], 3)) == 2


def test_the_first_member_is_sparse_only_and_the_last_ones_spread_farthest():
    assert initial(7, 0, 32, GROUPS).tolist() == [1] * 8
    for index in range(32):
        assert initial(7, index, 32, GROUPS).min() >= 1 - (index / 31) ** 2 - 1e-6
    near = min(initial(seed, 8, 32, GROUPS).min() for seed in range(50))
    assert near == pytest.approx(1 - (8 / 31) ** 2, abs=0.01)  # a quarter of the way out, a sixteenth of the spread
    assert min(initial(seed, 31, 32, GROUPS).min() for seed in range(50)) < 0.05
    assert initial(7, 0, 1, GROUPS).tolist() == [1] * 8


def test_initial_members_move_whole_groups():
    moved = np.array([initial(seed, 31, 32, GROUPS) < 1 for seed in range(400)])
    assert moved[:, 0].mean() == pytest.approx(RATE, abs=0.1)
    for first, second in [(0, 1), (0, 2), (3, 6), (3, 7), (4, 5)]:
        assert (moved[:, first] == moved[:, second]).all()
    assert 0.3 < (moved[:, 0] == moved[:, 3]).mean() < 0.7
    genes = initial(next(seed for seed in range(400) if moved[seed, 0]), 31, 32, GROUPS)
    assert len(set(genes[:3])) == 3  # each unit of the group its own


def still(monkeypatch):
    """Mutations too small to be seen."""
    monkeypatch.setattr(genome, "NOISE", (-12.0, -12.0))


def own(monkeypatch):
    """No mutation that moves a group as one."""
    monkeypatch.setattr(genome, "SHARED", 0.0)


@pytest.mark.parametrize("noise", [False, True])
def test_a_child_is_a_convex_combination_with_noise(monkeypatch, noise):
    """By group either a parent's genes or α·a + (1 − α)·b, with one α; then noise on some groups."""
    (own if noise else still)(monkeypatch)
    blended = mutated = 0
    for made in children(range(100)):
        ways = []
        for first, a in enumerate(PARENTS):
            for second, b in enumerate(PARENTS):
                if first == second:
                    continue
                # A mutated group tells nothing; of the others each is a's or gives α by least squares.
                alphas, free = [], 0
                for group in range(3):
                    at = np.array(GROUPS) == group
                    along = a[at] - b[at]
                    alpha = float((made[at] - b[at]) @ along / (along @ along))
                    fits = np.allclose(made[at], alpha * a[at] + (1 - alpha) * b[at], atol=2e-6)
                    free += not fits
                    if fits and not np.allclose(made[at], a[at], atol=2e-6):
                        alphas.append(alpha)
                if all(-1e-5 <= alpha <= 1 + 1e-5 for alpha in alphas) and np.ptp(alphas or [0]) < 1e-4:
                    ways.append((free, len(alphas)))
        assert ways, made
        free, count = min(ways)
        assert noise or free == 0
        blended, mutated = blended + bool(count), mutated + bool(free)
    assert blended > 40
    assert not noise or mutated > 40


def test_the_share_of_a_parent_is_any(monkeypatch):
    still(monkeypatch)
    made = np.array(children(range(1500), [np.zeros(8), np.ones(8)]))
    alphas = made[(made > 0) & (made < 1)]
    assert np.quantile(alphas, [0.1, 0.5, 0.9]).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.05)


def moved(seeds=range(2000)):
    """What a mutation alone does, [seeds, units]."""
    return np.array(children(seeds, [np.full(8, 0.5)] * 2)) - 0.5


def test_noise_comes_by_group(monkeypatch):
    own(monkeypatch)
    made = moved()
    assert (made != 0).mean() == pytest.approx(RATE, abs=0.05)
    for first, second in [(0, 1), (3, 6), (4, 5)]:
        assert ((made[:, first] != 0) == (made[:, second] != 0)).all()
    assert 0.4 < ((made[:, 0] != 0) == (made[:, 3] != 0)).mean() < 0.6
    assert made[made != 0].mean() == pytest.approx(0, abs=0.005)
    assert abs(np.corrcoef(made[made[:, 0] != 0][:, :2].T)[0, 1]) < 0.1


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_noise_is_normal(monkeypatch, shared):
    """Of one size here: 68 and 95 % are within one and two of it."""
    monkeypatch.setattr(genome, "NOISE", (-1.0, -1.0))
    monkeypatch.setattr(genome, "SHARED", shared)
    drawn = moved()[:, [0, 3, 4]]
    drawn = abs(drawn[drawn != 0])
    assert [(drawn < 0.1).mean(), (drawn < 0.2).mean()] == pytest.approx([0.683, 0.954], abs=0.02)


def test_its_size_is_drawn_for_each_child(monkeypatch):
    """Evenly between the logarithms, one for all groups; the spread of a hundred units tells it."""
    own(monkeypatch)
    made = np.array(children(range(2000), [np.full(200, 0.5)] * 2, [0] * 100 + [1] * 100)) - 0.5
    both = made[(made[:, 0] != 0) & (made[:, -1] != 0)]
    one, other = both[:, :100].std(axis=1), both[:, 100:].std(axis=1)
    assert len(both) > 300
    assert abs(np.log(one / other)).max() < 0.5
    sizes = np.log10(made[made[:, 0] != 0][:, :100].std(axis=1))
    low, high = NOISE
    assert np.quantile(sizes, [0.1, 0.5, 0.9]).tolist() == pytest.approx(
        [low + share * (high - low) for share in (0.1, 0.5, 0.9)], abs=0.08
    )


def test_half_of_the_mutations_move_a_group_as_one():
    made = moved()
    made = made[made[:, 0] != 0]
    as_one = (made[:, 0] == made[:, 1]) & (made[:, 1] == made[:, 2])
    assert as_one.mean() == pytest.approx(SHARED, abs=0.06)
    both = made[as_one & (made[:, 3] != 0)]
    assert len(both) > 100
    assert (both[:, 0] != both[:, 3]).all()  # another group has a step of its own
    assert (both[:, 3] == both[:, 6]).all()


def test_genes_stay_in_range_and_are_rounded(monkeypatch):
    monkeypatch.setattr(genome, "NOISE", (0.7, 0.7))
    made = np.array([*children(), *[initial(seed, 9, 10, GROUPS) for seed in range(50)]])
    assert made.dtype == np.float64
    assert made.min() == 0
    assert made.max() == 1
    assert (made == np.round(made, DIGITS)).all()


def test_a_child_follows_from_seed_generation_index_and_parents():
    one = child(3, 2, 5, PARENTS, GROUPS)
    child(4, 1, 1, PARENTS, GROUPS)
    np.random.seed(0)
    assert child(3, 2, 5, PARENTS, GROUPS).tolist() == one.tolist()
    others = [child(4, 2, 5, PARENTS, GROUPS), child(3, 1, 5, PARENTS, GROUPS), child(3, 2, 6, PARENTS, GROUPS)]
    others.append(child(3, 2, 5, PARENTS[::-1], GROUPS))
    assert len({tuple(genes) for genes in (one, *others)}) == 5
    assert initial(3, 5, 9, GROUPS).tolist() == initial(3, 5, 9, GROUPS).tolist()


def test_parents_are_left_as_they_were_and_differ():
    """Two different survivors; where there is one alone, it is both."""
    before = [genes.copy() for genes in PARENTS]
    children()
    assert all((a == b).all() for a, b in zip(before, PARENTS, strict=True))
    far = [np.zeros(8), np.ones(8)]
    assert all(0 < genes[-1] < 1 or genes[-1] in (0, 1) for genes in children(parents=far))
    firsts = {round(float(np.median(genes))) for genes in children(parents=far)}
    assert firsts == {0, 1}  # either may lead
    alone = np.array(children(range(50), [np.full(8, 0.25)]))
    assert ((alone == 0.25).mean(axis=0) > 0.2).all()


def test_groups_are_kinds_of_units_over_all_blocks():
    names = ["m.0.attn.q_proj", "m.0.mlp.up_proj", "m.1.attn.q_proj", "m.1.mlp.up_proj", "m.1.mlp.down_proj"]
    assert unit_groups(names) == [0, 1, 0, 1, 2]
