"""Every method keeps the contract that other packages test theirs by; and the contract notices one that does not."""

from __future__ import annotations

import importlib

import pytest
import torch

from rsparse.errors import RSparseError
from rsparse.gated.mlp import GatedMLP
from rsparse.gated.model import GatedState
from rsparse.gated.rules.prompt import Rule
from rsparse.methods import names
from rsparse.methods._uniform import uniform_recipe
from rsparse.testing import check_method

PROMPT_POLICIES = ("decode", "last_fraction:0.5")
# Level and what else `check_method` is told, by method and its options.
CASES = [
    ("sparse_only", {}),
    ("rsparse", {"rho": 0.9}),
    ("low_rank_only", {}),
    ("teal", {"step": 0.2, "tokens": 48}),
    ("wina", {"step": 0.2, "tokens": 48}),
    ("nncf", {}),
    ("joint", {"tokens": 48, "rounds": 0, "zero_is_dense": False}),  # it starts above 0, and so does a search
    ("searched", {"population": 2, "generations": 1, "samples": 2, "zero_is_dense": False}),
    ("cats", {}),
    ("dejavu", {"sparsity": 0.5}),
    ("griffin", {"policies": PROMPT_POLICIES}),
    ("relufication", {"zero_is_dense": False}),
]


def prepare_of(method):
    return importlib.import_module(f"rsparse.methods.{method}").prepare


def test_every_method_is_here():
    assert {method for method, _ in CASES} == set(names()) - {"dense"}


@pytest.mark.parametrize(("method", "options"), CASES, ids=[method for method, _ in CASES])
def test_contract(method, options):
    check_method(prepare_of(method), **options)


# ---- what it notices


def half(model, sparsity):
    return uniform_recipe(model, sparsity / 2, 1.0, method="half")


def none_of_it(model, sparsity):
    return uniform_recipe(model, 0.0, 1.0, method="none")


@pytest.mark.parametrize(
    ("prepare", "says"), [(half, "0.15.. was achieved and 0.3 asked"), (none_of_it, "nothing is sparse under")]
)
def test_another_level_than_the_asked_one(prepare, says):
    with pytest.raises(AssertionError, match=says):
        check_method(prepare)


def test_a_method_that_is_not_dense_at_zero():
    with pytest.raises(AssertionError, match="sparsity 0 is not the dense model"):
        check_method(prepare_of("relufication"))


def test_policies_that_it_does_not_refuse():
    with pytest.raises(AssertionError, match="it runs under all"):
        check_method(prepare_of("dejavu"), policies=PROMPT_POLICIES)


def test_policies_that_it_refuses():
    with pytest.raises(RSparseError, match="token policy all has none"):
        check_method(prepare_of("griffin"))


def always_masked(self, x):
    found = self.neurons(x)
    return self.down_proj(self.rule.apply(found, self.policy)[0])


def ignoring_the_mask(self, x):
    if self.policy.sparse is False:
        return self.original(x)
    return always_masked(self, x)


def by_the_batch(self, x):
    """The mask of the batch's first row for all."""
    if self.policy.sparse is False:
        return self.original(x)
    found = self.neurons(x)
    _, kept = self.rule.apply(found, self.policy)
    if self.meter is not None:
        counts = kept.sum(-1)
        self.meter.add(self.unit, counts, kept.shape[-1], *self.policy.counted(counts.shape))
    hidden = found.hidden.masked_fill(~kept[:1], 0)
    if isinstance(self.policy.sparse, torch.Tensor):
        hidden = torch.where(self.policy.sparse.unsqueeze(-1), hidden, found.hidden)
    return self.down_proj(hidden)


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (always_masked, "token policy dense is not the dense model"),
        (ignoring_the_mask, "dense rows are not the dense model's under all"),
        (by_the_batch, "batch is not its rows alone under all"),
    ],
)
def test_rows_of_another_function(monkeypatch, forward, says):
    monkeypatch.setattr(GatedMLP, "forward", forward)
    with pytest.raises(AssertionError, match=says):
        check_method(prepare_of("cats"))


def test_bytes_that_do_not_go_with_the_sparsity(monkeypatch):
    monkeypatch.setattr(GatedState, "extra_bytes", lambda self, model: 30_000)
    with pytest.raises(AssertionError, match="bytes a token do not go with"):
        check_method(prepare_of("cats"))


def test_a_method_that_sees_the_cache(monkeypatch):
    watch = Rule.watch

    def last_part_only(self, found, rows):
        self._energy = None
        watch(self, found, rows)

    monkeypatch.setattr(Rule, "watch", last_part_only)
    with pytest.raises(AssertionError, match="decoding with a cache is not one call"):
        check_method(prepare_of("griffin"), policies=PROMPT_POLICIES)


def only_hooks_removed(self, model):
    for hook in self._hooks:
        hook.remove()


def only_modules(self, model):
    for name, module in self.mlps.items():
        model.set_submodule(name, module.original)


@pytest.mark.parametrize(("put_back", "says"), [(only_hooks_removed, "other modules"), (only_modules, "left hooks")])
def test_what_is_left_behind(monkeypatch, put_back, says):
    monkeypatch.setattr(GatedState, "put_back", put_back)
    with pytest.raises(AssertionError, match=says):
        check_method(prepare_of("dejavu"), 0.5)
