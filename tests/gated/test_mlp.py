"""A gated MLP of two inputs and three neurons, and a mask of two heads, by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rsparse.errors import RSparseError
from rsparse.gated import GatedPlan
from rsparse.gated.mlp import GatedMLP, HeadChoice
from rsparse.gated.rules import rule_class
from rsparse.meter import SparsityMeter
from rsparse.row_policy import RowPolicy
from rsparse.token_policy import TokenPolicy

NAMES = {"gate": "block.mlp.w1", "up": "block.mlp.w3", "down": "block.mlp.w2"}


class Plain(nn.Module):
    """Not transformers' names, and an activation that is no module: the square."""

    def __init__(self):
        super().__init__()
        self.w1, self.w3, self.w2 = (nn.Linear(*shape, bias=False) for shape in ((2, 3), (2, 3), (3, 2)))
        self.act_fn = torch.square

    def forward(self, x):
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


def parts():
    return SimpleNamespace(mlp="block.mlp", local=lambda role: NAMES[role].rpartition(".")[2])


@torch.no_grad()
def gated(rule="gate_magnitude", kept=0.5, threshold=1.0, sinks=1):
    """act(gate x) is (x0², x1², (x0 + x1)²), up x is (x0, x1, 1·x0), down sums the neurons, and the last one alone."""
    plain = Plain()
    plain.w1.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    plain.w3.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    plain.w2.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
    plan = GatedPlan("own", "llama", rule, 0.1, kept, thresholds=None)
    policy = RowPolicy(TokenPolicy("all", sink_tokens=sinks))
    return GatedMLP(plain, parts(), rule_class(rule)(plan, 3, threshold), policy), plain


@torch.no_grad()
def run(module, x):
    module.policy.set_rows(tuple(x.shape[:2]))
    return module(x)


def test_sparse_rows_by_hand():
    module, _ = gated(sinks=0)
    # (2, 1): active (4, 1, 9), hidden (8, 1, 18), and the second is not above 1.
    # (0.5, 2): active (0.25, 4, 6.25), hidden (0.125, 8, 3.125), and the first is not.
    assert run(module, torch.tensor([[[2.0, 1.0], [0.5, 2.0]]])).tolist() == [[[26.0, 18.0], [11.125, 3.125]]]


def test_dense_rows_are_the_original_bit_for_bit():
    module, plain = gated()
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    found = run(module, x)
    assert torch.equal(found[:, :1], plain(x)[:, :1])
    assert not torch.equal(found[:, 1:], plain(x)[:, 1:])
    module.policy.token_policy = TokenPolicy("dense")
    assert torch.equal(run(module, x), plain(x))


def test_a_rule_that_watches_sees_dense_calls_and_changes_nothing():
    module, plain = gated("prompt", kept=1 / 3)
    module.policy.token_policy = TokenPolicy("decode")
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(module, x), plain(x))
    assert module.rule._chosen.sum(-1).tolist() == [[1], [1]]


def test_the_meter_counts_sparse_rows():
    module, _ = gated()
    module.meter = SparsityMeter()
    run(module, torch.tensor([[[9.0, 9.0], [2.0, 1.0], [0.5, 2.0], [0.1, 0.1]]]))  # the sink keeps 3; then 2, 2 and 0 of 3
    assert module.meter.kept_share("block.mlp") == pytest.approx(4 / 9)
    assert module.meter.sparse_rows == 3


def test_its_children_are_the_originals_under_their_names():
    module, plain = gated()
    assert list(module.state_dict()) == list(plain.state_dict())
    assert [module.w1, module.w3, module.w2] == [plain.w1, plain.w3, plain.w2]
    assert module.original is plain
    module.double()
    assert plain.w1.weight.dtype == torch.float64


def test_settling_solves_the_rules_threshold():
    module, _ = gated(kept=0.5)
    # active: (4, 1, 9) and (.25, 4, 6.25): three of six are above the fourth largest
    assert 1 <= module.settle(torch.tensor([[[2.0, 1.0], [0.5, 2.0]]])) < 6.25
    with pytest.raises(RSparseError, match=r"activations at block\.mlp are not finite"):
        module.settle(torch.tensor([[[torch.nan, 1.0]]]))


# ---- heads


def choose(x: Tensor, kept: int, sinks: int = 0, meter: SparsityMeter | None = None):
    policy = RowPolicy(TokenPolicy("all", sink_tokens=sinks))
    policy.set_rows(tuple(x.shape[:2]))
    choice = HeadChoice("block.attention", 2, kept, policy)
    choice.meter = meter
    return choice(nn.Identity(), (x,))


def test_heads_by_their_norm():
    x = torch.tensor([[[3.0, 0.0, 2.0, 2.0], [1.0, 1.0, 0.0, 1.5]]])  # norms 3 and 2.83, 1.41 and 1.5
    assert choose(x, 1)[0].tolist() == [[[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.5]]]
    assert torch.equal(choose(x, 2)[0], x)
    assert choose(x, 0)[0].tolist() == [[[0.0] * 4] * 2]


def test_heads_of_dense_rows():
    x = torch.tensor([[[3.0, 0.0, 2.0, 2.0], [1.0, 1.0, 0.0, 1.5]]])
    meter = SparsityMeter()
    assert choose(x, 1, sinks=1, meter=meter)[0].tolist() == [[[3.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 1.5]]]
    assert (meter.kept_share("block.attention"), meter.sparse_rows) == (0.5, 1)
    assert choose(x, 1, sinks=2) is None  # all of it is dense
