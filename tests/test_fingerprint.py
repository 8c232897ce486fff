from __future__ import annotations

import copy

import torch

from rsparse.fingerprint import weights_sha
from tests.support.models import tiny_model


def test_the_same_weights_have_the_same_name():
    assert weights_sha(tiny_model("llama")) == weights_sha(tiny_model("llama"))
    assert len(weights_sha(tiny_model("llama"))) == 12
    int(weights_sha(tiny_model("llama")), 16)


def test_other_weights_have_another():
    model = tiny_model("llama")
    shas = {
        weights_sha(model),
        weights_sha(tiny_model("llama", seed=1)),
        weights_sha(tiny_model("llama", dtype=torch.bfloat16)),
    }
    assert len(shas) == 3
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-6
    assert weights_sha(changed) not in shas


def test_names_and_shapes_count():
    one, two = torch.nn.Module(), torch.nn.Module()
    one.a = torch.nn.Parameter(torch.zeros(2, 3))
    two.a = torch.nn.Parameter(torch.zeros(3, 2))
    assert weights_sha(one) != weights_sha(two)
    two = torch.nn.Module()
    two.b = one.a
    assert weights_sha(one) != weights_sha(two)
