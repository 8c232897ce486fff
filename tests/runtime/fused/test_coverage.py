"""What the fused step refuses, and which path `generate` takes then."""

from __future__ import annotations

import pytest
import torch

from rsparse import sparsify
from rsparse.errors import RSparseError
from rsparse.models import spec_for
from rsparse.ops import dispatch
from rsparse.runtime import fused, path
from rsparse.sparse_model import measuring
from rsparse.token_policy import TokenPolicy
from tests.runtime.fused.cases import ALL_TYPES, PROMPTS, by_modules, dense, sparse
from tests.support.models import tiny_model
from tests.support.recipes import calibration_of

DECODE = TokenPolicy("decode")


def refusal(model, policy=DECODE, rows=1, shortest=4, sampled=False):
    return fused.refusal(model, policy, rows=rows, shortest=shortest, sampled=sampled)


@pytest.mark.parametrize("model_type", ALL_TYPES)
def test_every_architecture_is_covered(model_type):
    assert spec_for(tiny_model(model_type).config).decode is not None
    assert refusal(dense(model_type)) is None
    assert refusal(sparse(model_type, compensated=False)) is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rows": 9}, "9 sequences"),
        ({"policy": TokenPolicy("all")}, "token policy all"),
        ({"policy": TokenPolicy("last_fraction", 0.1)}, "token policy last_fraction"),
        ({"policy": TokenPolicy("decode", sink_tokens=5)}, "5 sink tokens"),
    ],
)
def test_calls(arguments, says):
    assert says in refusal(sparse("llama"), **arguments)
    if "rows" not in arguments:  # a dense model is dense under any policy
        assert refusal(dense("llama"), **arguments) is None


def test_models():
    assert "gelu" in refusal(dense("llama", hidden_act="gelu"))
    assert "rotary embedding dynamic" in refusal(
        dense("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    )
    model = dense("llama")
    model.lm_head.to(torch.float64)
    assert "dtypes" in refusal(model)
    assert "bidirectional" in refusal(tiny_model("gemma3_text", use_bidirectional_attention=True))


def test_methods_that_are_no_recipe():
    from rsparse.methods.cats import prepare

    model = tiny_model("llama")
    sparsify(model, prepare(model, 0.3), calibration_of("llama"))
    assert "cats is no recipe" in refusal(model)


def test_counting():
    model = sparse("llama")
    with measuring(model):
        assert "counted" in refusal(model)


@pytest.mark.parametrize(
    ("name", "value", "sampled"),
    [("no_repeat_ngram_size", 2, False), ("suppress_tokens", [3], False), ("num_beams", 2, False), ("min_p", 0.1, True)],
)
def test_generation_settings(name, value, sampled):
    model = dense("llama")
    setattr(model.generation_config, name, value)
    assert name in refusal(model, sampled=True)
    assert (refusal(model) is None) == sampled


def test_a_backend_asked_for_by_name_must_run():
    with pytest.raises(RSparseError, match="backend triton") as caught:
        by_modules(sparse("llama"), PROMPTS[:1], backend="triton")
    assert "\n" not in str(caught.value)


def test_an_unknown_backend():
    with pytest.raises(RSparseError, match="backend 'fast' is unknown"):
        by_modules(dense("llama"), PROMPTS[:1], backend="fast")


def test_on_a_cpu_auto_is_silent(capsys):
    assert by_modules(dense("llama"), PROMPTS[:1]).backend == "modules"
    assert capsys.readouterr() == ("", "")


def as_on_gpu(monkeypatch):
    """Say of a model that it is on a GPU, and of the kernels that they run there."""
    monkeypatch.setattr(dispatch, "refusal", lambda name, device, dtype: None)
    monkeypatch.setattr(path, "on_gpu", lambda model: True)


def test_auto_says_why_it_falls_back(monkeypatch, capsys):
    model = sparse("llama")
    expected = by_modules(model, PROMPTS, token_policy=TokenPolicy("all")).token_ids.tolist()
    as_on_gpu(monkeypatch)
    model.rsparse.ops = dispatch.Backend("triton", 0, *(None,) * 5)
    result = by_modules(model, PROMPTS, token_policy=TokenPolicy("all"))
    assert result.backend == "modules"
    assert result.token_ids.tolist() == expected
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "token policy all" in err
    with pytest.raises(RSparseError, match=r"backend triton: .*token policy all"):
        by_modules(model, PROMPTS, token_policy=TokenPolicy("all"), backend="triton")


FULL = {
    "CUDA out of memory. Tried to allocate 2.00 GiB.": torch.cuda.OutOfMemoryError,
    "CUDA error: out of memory": RuntimeError,
    "CUDA: CUDA_ERROR_OUT_OF_MEMORY": RuntimeError,
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`": RuntimeError,
}


@pytest.mark.parametrize("says", FULL)
def test_out_of_memory(says, monkeypatch, capsys):
    model = dense("llama")

    def full(model, *arguments):
        fused.fused_model(model, "reference")
        raise FULL[says](f"{says}\nMore.")

    as_on_gpu(monkeypatch)
    monkeypatch.setattr(path, "make_session", full)
    assert by_modules(model, PROMPTS[:1]).backend == "modules"
    assert capsys.readouterr().err == f"new tokens run without kernels: out of GPU memory ({says})\n"
    attention = model.model.layers[0].self_attn  # what was packed is let go
    assert attention.q_proj.weight.untyped_storage().data_ptr() != attention.k_proj.weight.untyped_storage().data_ptr()
    with pytest.raises(RSparseError, match="out of GPU memory"):
        by_modules(model, PROMPTS[:1], backend="triton")


def test_another_failure_is_not_hidden(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("an illegal memory access")

    as_on_gpu(monkeypatch)
    monkeypatch.setattr(path, "make_session", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        by_modules(dense("llama"), PROMPTS[:1])


def test_the_reference_asked_for_by_name_is_silent(monkeypatch, capsys):
    model = sparse("llama")
    assert model.rsparse.backend == "reference"
    as_on_gpu(monkeypatch)
    assert by_modules(model, PROMPTS[:1]).backend == "modules"
    assert by_modules(dense("llama"), PROMPTS[:1], backend="reference").backend == "modules"
    assert capsys.readouterr().err == ""


def test_auto_takes_the_kernels(monkeypatch):
    model = dense("llama")
    expected = by_modules(model, PROMPTS, backend="reference").token_ids.tolist()
    as_on_gpu(monkeypatch)
    monkeypatch.setattr(path, "KERNELS", "reference")  # so that the fused step runs here
    found = by_modules(model, PROMPTS)
    assert found.backend == "reference"
    assert found.token_ids.tolist() == expected
