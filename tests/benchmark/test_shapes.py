"""Random models by shape: the published sizes, and weights that come again."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rsparse.benchmark import shapes
from rsparse.benchmark.shapes import SHAPES, STD, check_shape, random_model, random_windows
from rsparse.errors import RSparseError
from rsparse.fingerprint import weights_sha
from rsparse.models.layout import sites

CPU = torch.device("cpu")
PUBLISHED = {  # parameters, as the models' cards count them
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "gemma-7b": 8_537_680_896,
    "qwen2.5-7b": 7_615_616_512,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shape_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[name]), dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert len(sites(model)) == SHAPES[name]["num_hidden_layers"]
    config = model.config.to_dict()
    for key, value in SHAPES[name].items():
        assert (config["rope_parameters"]["rope_theta"] if key == "rope_theta" else config[key]) == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_random_and_come_again(dtype):
    before = torch.random.get_rng_state()
    model = random_model("tiny-llama", CPU, dtype, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training
    assert model.config.name_or_path == "tiny-llama"
    matrices = torch.cat([p.detach().flatten().float() for p in model.parameters() if p.dim() > 1])
    assert float(matrices.std()) == pytest.approx(STD, rel=0.02)
    assert all(bool((p == 1).all()) for p in model.parameters() if p.dim() == 1)
    assert model(random_windows("tiny-llama", 2, 24)).logits.isfinite().all()
    torch.manual_seed(99)
    assert weights_sha(random_model("tiny-llama", CPU, dtype, seed=3)) == weights_sha(model)
    assert weights_sha(random_model("tiny-llama", CPU, dtype, seed=4)) != weights_sha(model)


def test_windows_are_of_the_vocabulary():
    windows = random_windows("tiny-llama", 30, 24, seed=1)
    assert windows.shape == (30, 24)
    assert (int(windows.min()), int(windows.max())) == (0, 159)
    assert torch.equal(windows, random_windows("tiny-llama", 30, 24, seed=1))
    assert not torch.equal(windows, random_windows("tiny-llama", 30, 24, seed=2))


@pytest.mark.parametrize(
    ("name", "tokens", "says"),
    [
        ("llama-9", 24, "'llama-9' is unknown; choose one of llama-2-7b, "),
        ("tiny-llama", 257, "2 to 256"),
        ("tiny-llama", 1, "got 1"),
    ],
)
def test_what_is_no_shape(name, tokens, says):
    with pytest.raises(RSparseError, match=says):
        check_shape(name, tokens)
    check_shape("llama-3-8b", 2048)


def test_a_model_that_memory_does_not_hold(monkeypatch):
    monkeypatch.setattr(shapes, "_free_memory", lambda: 20 * 10**9)
    with pytest.raises(RSparseError, match=r"^a random llama-3-8b in float32 takes 32 GB, and 20 GB of memory are free"):
        random_model("llama-3-8b", CPU, torch.float32)
