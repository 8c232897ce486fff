"""A dense model block by block."""

from __future__ import annotations

import pytest
import torch

from rsparse.analysis import walk as walk_module
from rsparse.analysis.walk import BlockWalk, entered_at
from rsparse.errors import RSparseError
from rsparse.losses import hidden_states
from rsparse.models.layout import blocks
from tests.support.folders import sparse_model
from tests.support.models import tiny_model, token_ids
from tests.support.recipes import TYPES


@pytest.mark.parametrize("model_type", TYPES)
def test_the_walk_sees_what_a_forward_pass_sees(model_type, monkeypatch):
    monkeypatch.setattr(walk_module, "window_batches", lambda model, ids: [(0, ids[:2]), (2, ids[2:])])
    model, ids = tiny_model(model_type), token_ids(3, 12)
    seen, expected = {}, {}
    walk = BlockWalk(model, ids)
    entries = []
    for index in range(len(walk.layout)):
        entries.append([hidden for _, hidden in walk.batches])
        walk.run(index, lambda site, start, x: seen.setdefault(site.name, []).append((start, x)))
    hooks = [
        site.first.register_forward_pre_hook(lambda module, args, site=site: expected.update({site.name: args[0]}))
        for block in walk.layout
        for site in block
    ]
    hidden = hidden_states(model, ids)
    for hook in hooks:
        hook.remove()
    assert list(seen) == [site.name for block in walk.layout for site in block]
    for name, parts in seen.items():
        assert [start for start, _ in parts] == [0, 2]
        assert torch.equal(torch.cat([x for _, x in parts]), expected[name])
    for index, entry in enumerate(entries):
        with entered_at(model, index, entry[0]):
            assert torch.allclose(hidden_states(model, ids[:2]), hidden[:2], atol=1e-6)


def test_entering_late_leaves_the_blocks_before_out():
    model, ids = tiny_model("llama"), token_ids(1, 8)
    with torch.no_grad():
        for parameter in blocks(model)[0].parameters():
            parameter.fill_(float("nan"))
    with entered_at(model, 1, torch.ones(1, 8, 48)):
        assert hidden_states(model, ids).isfinite().all()
    assert hidden_states(model, ids).isnan().any()


def test_what_cannot_be_walked():
    with pytest.raises(RSparseError, match="is sparse"):
        BlockWalk(sparse_model("llama"), token_ids(1, 8))
    with pytest.raises(RSparseError, match="256 positions"):
        BlockWalk(tiny_model("llama"), token_ids(1, 300))
    model = tiny_model("llama")
    model.get_submodule("model.layers.1.mlp.down_proj").weight.data.fill_(float("inf"))
    walk = BlockWalk(model, token_ids(1, 8))
    walk.run(0, lambda *given: None)
    with pytest.raises(RSparseError, match="block 1"):
        walk.run(1, lambda *given: None)
