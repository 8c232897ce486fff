from __future__ import annotations

import torch

from rsparse.meter import SparsityMeter
from rsparse.row_policy import RowPolicy

# 2 sequences of 3 tokens, 4 channels: 1, 2, 3 and 4, 0, 2 kept
MASK = torch.tensor(
    [
        [[1, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0]],
        [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]],
    ]
).bool()


def share(sparse, valid, mask=MASK):
    policy = RowPolicy()
    policy.sparse, policy.valid = sparse, valid
    meter = SparsityMeter()
    meter.add("u", mask.sum(-1), 4, *policy.counted(mask.shape[:-1]))
    return meter.kept_share("u"), meter.sparse_rows


def test_every_row():
    assert share(True, None) == (12 / 24, 6)


def test_dense_rows_do_not_count():
    sparse = torch.tensor([[False, True, True], [False, True, True]])
    assert share(sparse, None) == ((2 + 3 + 0 + 2) / 16, 4)


def test_padding_does_not_count():
    valid = torch.tensor([[False, True, True], [True, True, True]])
    assert share(True, valid) == (11 / 20, 5)
    sparse = torch.tensor([[True, False, True], [False, True, True]])
    assert share(sparse, valid) == ((3 + 0 + 2) / 12, 3)


def test_calls_add_up_and_units_stay_apart():
    meter = SparsityMeter()
    meter.add("a", MASK.sum(-1), 4, None, 6)
    meter.add("a", MASK[:, :1].sum(-1).float(), 4, None, torch.tensor(2))
    meter.add("b", MASK[:1].sum(-1), 4, None, 3)
    assert meter.kept_share("a") == (12 + 5) / (8 * 4)
    assert meter.kept_share("b") == 6 / 12
    assert meter.channels == {"a": 4, "b": 4}
    assert meter.sparse_rows == 8


def test_nothing_sparse_is_none():
    assert share(torch.zeros(2, 3, dtype=torch.bool), None) == (None, 0)
    assert SparsityMeter().kept_share("never ran") is None
    assert SparsityMeter().sparse_rows == 0
