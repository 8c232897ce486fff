"""Both ways through a sparse linear, whatever a backend prefers."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from rsparse.meter import SparsityMeter
from rsparse.ops import dispatch
from rsparse.row_policy import RowPolicy
from rsparse.sparse_linear import RSparseLinear
from tests.support.tolerance import assert_close_rms

CPU = torch.device("cpu")


def layer(gather_rows, sparse, rank=3, bias=True, compensated=False):
    torch.manual_seed(0)
    backend = dataclasses.replace(dispatch.resolve("reference", CPU, torch.float32), gather_rows=gather_rows)
    policy = RowPolicy()
    policy.sparse = sparse
    made = RSparseLinear(nn.Linear(12, 7, bias=bias), "unit", policy, backend, rank=rank, scaled=True, compensated=compensated)
    made.channel_scale = torch.rand(12) + 0.5
    if rank:
        made.U, made.V = torch.randn(7, rank), torch.randn(12, rank)
    made.threshold.fill_(0.6)
    if compensated:
        made.compensation = torch.randn(7, generator=torch.Generator().manual_seed(2))
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


SOME = torch.tensor([[True, False, True], [False, True, True]])


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sparse", [True, SOME, torch.ones(2, 3, dtype=torch.bool)], ids=["all", "some", "mask"])
@pytest.mark.parametrize("gather_rows", [0, 8], ids=["masked", "gathered"])
def test_compensation_is_added_on_sparse_rows_alone(gather_rows, sparse, bias, rank):
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    made, plain = (layer(gather_rows, sparse, rank, bias, compensated) for compensated in (True, False))
    y, rows = made(x), torch.ones(2, 3, dtype=torch.bool) if sparse is True else sparse
    W, b, m = made.weight, 0 if made.bias is None else made.bias, x.abs() * made.channel_scale > 0.6
    expected = (x * m) @ W.T + b + made.compensation
    if rank:
        expected = expected + (x * ~m) @ made.V @ made.U.T
    assert 0.2 < float(m.float().mean()) < 0.8
    assert_close_rms(y[rows], expected[rows], torch.float32)
    added = (y - plain(x))[rows]
    assert_close_rms(added, made.compensation.expand_as(added), torch.float32)
    assert torch.equal(y[~rows], plain(x)[~rows])
    if sparse is not True:
        assert torch.equal(y[rows], plain(x)[rows] + made.compensation)
    if gather_rows == 0:
        assert torch.equal(y[~rows], nn.functional.linear(x, W, made.bias)[~rows])


@pytest.mark.parametrize("gather_rows", [0, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_a_dense_call_knows_no_compensation(bias, gather_rows):
    made = layer(gather_rows, False, 3, bias, compensated=True)
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))


def test_measuring_changes_no_compensated_answer():
    for sparse in (True, SOME):
        made = layer(0, sparse, compensated=True)
        x, before = torch.randn(2, 3, 12), []
        before.append(made(x))
        made.meter = SparsityMeter()
        assert torch.equal(made(x), before[0])
        assert made.meter.sparse_rows == (6 if sparse is True else 4)


def test_each_of_a_group_has_its_own_vector_and_casts_it():
    leader = layer(0, True, compensated=True)
    follower = RSparseLinear(
        nn.Linear(12, 5), "unit", leader.policy, leader.ops, rank=3, scaled=True, compensated=True, leader=leader, stacked=True
    )
    assert follower.compensation.shape == (5,)
    assert not follower.compensation.any()
    assert set(follower.state_dict()) == {"weight", "bias", "U", "compensation"}
    assert "compensation" not in layer(0, True).state_dict()
    before = leader.compensation
    leader.to(torch.bfloat16)
    assert torch.equal(leader.compensation, before.bfloat16())
    assert leader(torch.randn(1, 2, 12).bfloat16()).dtype == torch.bfloat16


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
