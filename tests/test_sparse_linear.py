"""Both ways through a sparse linear, whatever a backend prefers."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from rsparse.ops import dispatch
from rsparse.row_policy import RowPolicy
from rsparse.sparse_linear import RSparseLinear
from tests.support.tolerance import assert_close_rms

CPU = torch.device("cpu")


def layer(gather_rows, sparse, rank=3):
    torch.manual_seed(0)
    backend = dataclasses.replace(dispatch.resolve("reference", CPU, torch.float32), gather_rows=gather_rows)
    policy = RowPolicy()
    policy.sparse = sparse
    made = RSparseLinear(nn.Linear(12, 7), "unit", policy, backend, rank=rank, scaled=True)
    made.channel_scale = torch.rand(12) + 0.5
    if rank:
        made.U, made.V = torch.randn(7, rank), torch.randn(12, rank)
    made.threshold.fill_(0.6)
    return made


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("sparse", [True, torch.tensor([[True, False, True], [False, True, True]])])
def test_gathered_rows_are_the_masked_ones(sparse, rank):
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    gathered, masked = layer(8, sparse, rank)(x), layer(0, sparse, rank)(x)
    assert_close_rms(gathered, masked, torch.float32)
    assert not torch.equal(masked, nn.functional.linear(x, layer(0, True).weight, layer(0, True).bias))


def test_dense_rows_among_sparse_ones_are_w_x_plus_b():
    sparse = torch.tensor([[True, False, False]])
    x = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(1))
    made = layer(0, sparse)
    assert torch.equal(made(x)[:, 1:], nn.functional.linear(x, made.weight, made.bias)[:, 1:])


def test_followers_read_what_their_leader_holds():
    leader = layer(0, True)
    follower = RSparseLinear(
        nn.Linear(12, 5), "unit", leader.policy, leader.ops, rank=3, scaled=True, leader=leader, stacked=True
    )
    assert follower.V is leader.V
    assert follower.threshold is leader.threshold
    assert set(follower.state_dict()) == {"weight", "bias", "U"}
    both = copy.deepcopy(nn.ModuleList([leader, follower]))
    both[0].threshold.fill_(2.0)
    assert float(both[1].threshold) == 2.0
    assert float(leader.threshold) == pytest.approx(0.6)
