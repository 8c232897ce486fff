from __future__ import annotations

import dataclasses

import pytest

from rsparse.errors import RSparseError
from rsparse.gated import parts
from rsparse.gated.parts import attention_heads, block_parts
from rsparse.models import spec_for, supported_model_types
from rsparse.models.spec import InputGroup
from tests.support.models import tiny_model


@pytest.mark.parametrize("model_type", supported_model_types())
def test_every_architecture_has_its_parts(model_type):
    model = tiny_model(model_type)
    found = block_parts(model)
    assert len(found) == model.config.num_hidden_layers
    block = model.model.layers[1]
    expected = {
        "q": block.self_attn.q_proj, "k": block.self_attn.k_proj, "v": block.self_attn.v_proj, "o": block.self_attn.o_proj,
        "gate": block.mlp.gate_proj, "up": block.mlp.up_proj, "down": block.mlp.down_proj,
    }  # fmt: skip
    assert found[1].linears == expected
    assert (found[1].mlp, found[1].attention) == ("model.layers.1.mlp", "model.layers.1.self_attn")
    assert found[1].local("up") == "up_proj"
    assert found[1].neurons == 80
    assert attention_heads(model) * block.self_attn.head_dim == block.self_attn.o_proj.in_features


def test_sizes():
    each = block_parts(tiny_model("llama"))[0]
    assert (each.size("up", "down"), each.size("q", "o"), each.size("k"), each.size()) == (2 * 3840, 2 * 2304, 1152, 0)


def changed(groups):
    def spec(config):
        found = spec_for(config)
        return dataclasses.replace(found, groups=groups(found.groups))

    return spec


@pytest.mark.parametrize(
    "groups",
    [
        lambda groups: groups[:-1],  # no down
        lambda groups: (*groups[:2], InputGroup("gate_up", ("mlp.gate_proj",)), groups[3]),
        lambda groups: (*groups[:3], InputGroup("down", ("self_attn.o_proj",))),  # not in the same module
        lambda groups: (*groups[:2], InputGroup("gate_up", ("self_attn.q_proj", "mlp.up_proj")), groups[3]),
    ],
)
def test_other_layouts_are_refused(monkeypatch, groups):
    monkeypatch.setattr("rsparse.models.layout.spec_for", changed(groups))
    with pytest.raises(RSparseError, match="llama has no gated MLP of one activation and three linears"):
        block_parts(tiny_model("llama"))


def test_an_mlp_without_its_activation(monkeypatch):
    model = tiny_model("llama")
    del model.model.layers[1].mlp.act_fn
    with pytest.raises(RSparseError, match="no gated MLP"):
        parts.block_parts(model)
