"""The contract of a method, to run in the tests of a package that adds one: `check_method(prepare)`.

A method is a function `prepare(model, sparsity, **options)` that returns a Recipe or a GatedPlan; a package adds it by an
entry point in the group `rsparse.methods`, whose name is the method's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rsparse.bytes_read import bytes_per_token, dense_bytes_per_token
from rsparse.calibration import Calibration
from rsparse.calibration.observe import calibrate_windows
from rsparse.conversion import sparsify
from rsparse.evaluation.likelihood import score_continuations
from rsparse.evaluation.perplexity import evaluate
from rsparse.losses import hidden_states
from rsparse.models.layout import linear_weights
from rsparse.runtime.generation import generate
from rsparse.sparse_model import achieved_sparsity, densify, is_sparse, measuring, state
from rsparse.token_policy import TokenPolicy

POLICIES = ("all", "decode", "last_fraction:0.5")
VOCABULARY, SEQ_LEN = 128, 24
CLOSE = 1e-9  # relative, in fp64: the same sums in another order


def check_method(
    prepare: Callable[..., Any],
    sparsity: float = 0.3,
    *,
    policies: Sequence[str] = POLICIES,
    zero_is_dense: bool = True,
    tolerance: float = 0.01,
    **options: Any,
) -> None:
    """Raises AssertionError, saying what does not hold, unless `prepare` keeps the contract on a tiny random Llama.

    Dense rows are the dense model's bit for bit, under every policy; sparsity 0 is the dense model (unless `zero_is_dense` is
    False); what is achieved is what was asked, within `tolerance`, and the bytes agree; a padded batch is its rows alone; a
    cache changes nothing; perplexity, likelihoods and generation run under `policies`; `densify` restores the model. Policies
    that the method refuses are left out of `policies`, and must then raise RSparseError.
    """
    model = tiny_llama()
    calibration = _calibration(model)

    @contextmanager
    def made(level: float) -> Iterator[Any]:
        given = {"calibration": calibration} if "calibration" in inspect.signature(prepare).parameters else {}
        sparsify(model, prepare(model, level, **options, **given), calibration, settle_tokens=1 << 20)
        try:
            assert is_sparse(model), "sparsify left a dense model"
            yield model
        finally:
            densify(model)

    before = _snapshot(model)
    with made(sparsity):
        _check_dense_rows(model, policies)
        _check_achieved(model, calibration, sparsity, policies[0], tolerance)
        for policy in map(TokenPolicy.parse, policies):
            _check_batches(model, policy)
            _check_verbs(model, policy)
        for refused in sorted(set(POLICIES) - set(policies)):
            _check_refusal(model, refused)
        if "decode" in policies:
            _check_cache(model)
    _check_restored(model, before)
    if zero_is_dense:
        expected = _states(model, _ids(3, 12))
        with made(0.0), state(model).policy.using(TokenPolicy.parse(policies[-1])):
            assert torch.equal(_states(model, _ids(3, 12)), expected), "sparsity 0 is not the dense model"


@torch.no_grad()
def tiny_llama(seed: int = 0) -> Any:
    """A random Llama in fp64 of two blocks, hidden size 48, 80 neurons, 4 heads on 2 keys; columns differ in norm."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            scale = torch.exp(0.5 * torch.randn(parameter.shape[1], generator=generator)) / parameter.shape[1] ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.double().eval()


def _ids(batch: int, tokens: int, seed: int = 0) -> Tensor:
    return torch.randint(4, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def _calibration(model: Any) -> Calibration:
    windows = _ids(72, SEQ_LEN, seed=1)
    return calibrate_windows(model, windows[:64], windows[64:], data="random ids", rows=400)


@torch.no_grad()
def _states(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    states: Tensor = model.base_model(ids, use_cache=False, **arguments).last_hidden_state
    return states


def _snapshot(model: Any) -> tuple[dict[str, Tensor], list[type], Tensor]:
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return tensors, [type(module) for module in model.modules()], _states(model, _ids(2, 9))


def _check_restored(model: Any, before: tuple[dict[str, Tensor], list[type], Tensor]) -> None:
    tensors, kinds, states = before
    now = model.state_dict()
    assert list(now) == list(tensors), "densify left other tensors than there were"
    assert all(torch.equal(now[name], tensor) for name, tensor in tensors.items()), "densify left other weights"
    assert [type(module) for module in model.modules()] == kinds, "densify left other modules"
    assert not is_sparse(model), "densify left a sparse model"
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules()), "densify left hooks"
    assert torch.equal(_states(model, _ids(2, 9)), states), "densify left another function"


def _check_dense_rows(model: Any, policies: Sequence[str]) -> None:
    rows, ids = state(model).policy, _ids(3, 12)
    dense = _states(tiny_llama(), ids)
    with rows.using(TokenPolicy("dense")):
        assert torch.equal(_states(model, ids), dense), "token policy dense is not the dense model"
    for policy in map(TokenPolicy.parse, policies):
        prompts = torch.tensor([7, 7, 7]) if policy.kind == "decode" else None
        with rows.using(policy, prompts):
            mixed = _states(model, ids)
        first = {"all": 1, "decode": 7, "last_fraction": 6}[policy.kind]
        assert torch.equal(mixed[:, :first], dense[:, :first]), f"dense rows are not the dense model's under {policy}"
        assert not torch.equal(mixed[:, first:], dense[:, first:]), f"nothing is sparse under {policy}"
    with rows.using(TokenPolicy("decode")):
        assert torch.equal(_states(model, ids), dense), "a prompt under decode is not the dense model's"


def _check_achieved(model: Any, calibration: Calibration, asked: float, policy: str, tolerance: float) -> None:
    result = evaluate(model, calibration.windows, TokenPolicy.parse(policy))
    found, dense = result.achieved_sparsity, dense_bytes_per_token(model)
    assert abs(found - asked) <= tolerance, f"sparsity {found:.4f} was achieved and {asked:g} asked"
    assert result.dense_bytes_per_token == dense
    saved = found * linear_weights(model) * model.dtype.itemsize
    # Score scales and the like are read besides; they are small.
    assert dense - saved - 1 <= result.bytes_per_token <= dense - 0.9 * saved, (
        f"{result.bytes_per_token} bytes a token do not go with an achieved sparsity of {found:.4f}: {dense} dense"
    )
    assert result.kl_to_dense is not None
    assert math.isfinite(result.kl_to_dense), "the sparse model's output is not finite"


def _check_batches(model: Any, policy: TokenPolicy) -> None:
    """Rows of other lengths in one batch, padded on either side, are each row alone, and count the same."""
    rows, lengths, prompts = state(model).policy, [8, 5, 12], [4, 2, 9]
    sequences = [_ids(1, length, seed=length) for length in lengths]
    for side in ("left", "right"):
        ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
        places = [slice(12 - n, 12) if side == "left" else slice(0, n) for n in lengths]
        for row, place in enumerate(places):
            ids[row, place], mask[row, place] = sequences[row], 1
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        with rows.using(policy, _prompts(policy, prompts)), measuring(model) as together:
            batched = _states(model, ids, attention_mask=mask, position_ids=positions)
        with measuring(model) as alone:
            for row, place in enumerate(places):
                with rows.using(policy, _prompts(policy, prompts[row : row + 1])):
                    expected = _states(model, sequences[row])
                assert _near(batched[row, place], expected[0]), f"a {side}-padded batch is not its rows alone under {policy}"
        same = achieved_sparsity(model, together)[0] - achieved_sparsity(model, alone)[0]
        assert abs(same) < CLOSE, f"a {side}-padded batch counts another sparsity than its rows alone under {policy}"
        assert bytes_per_token(model, achieved_sparsity(model, together)[1]) < dense_bytes_per_token(model)


def _check_cache(model: Any) -> None:
    """A prompt and then token by token with a cache is one call with the prompt dense."""
    from transformers import DynamicCache

    rows, ids = state(model).policy, _ids(2, 12)
    with rows.using(TokenPolicy("decode"), torch.tensor([8, 8])):
        expected = _states(model, ids)
    with rows.using(TokenPolicy("decode")), torch.no_grad():
        cache = DynamicCache()
        parts = [ids[:, :5], ids[:, 5:8], *ids[:, 8:].split(1, dim=1)]
        states = [model.base_model(part, past_key_values=cache).last_hidden_state for part in parts]
    assert _near(torch.cat(states, dim=1), expected), "decoding with a cache is not one call with the prompt dense"


def _check_verbs(model: Any, policy: TokenPolicy) -> None:
    result = evaluate(model, _ids(4, SEQ_LEN, seed=2), policy)
    assert math.isfinite(result.perplexity), f"perplexity is not finite under {policy}"
    assert 0 < result.sparse_row_share < 1, f"{result.sparse_row_share:.0%} of the rows are sparse under {policy}"
    requests = [([5, 6, 7, 8, 9, 10], [11, 12, 13, 14]), ([7, 8, 9, 10, 5], [20, 21])]
    together = score_continuations(model, requests, policy)
    alone = [score_continuations(model, [request], policy)[0] for request in requests]
    assert all(abs(a[0] - b[0]) < 1e-6 for a, b in zip(together, alone, strict=True)), (
        f"likelihoods differ in a batch: {policy}"
    )
    prompts = [[5, 6, 7, 8, 9, 10], [7, 8, 9]]
    both = generate(model, _Tokenizer(), prompts, max_new_tokens=4, ignore_eos=True, token_policy=policy)
    single = [generate(model, _Tokenizer(), [p], max_new_tokens=4, ignore_eos=True, token_policy=policy) for p in prompts]
    assert both.texts == [each.texts[0] for each in single], f"generated text differs in a batch under {policy}"


def _check_refusal(model: Any, policy: str) -> None:
    from rsparse.errors import RSparseError

    chosen = TokenPolicy.parse(policy)
    try:
        with state(model).policy.using(chosen, _prompts(chosen, [4, 4])):
            hidden_states(model, _ids(2, 9))
    except RSparseError:
        return
    raise AssertionError(f"it runs under {policy}, which is not among its policies")


def _prompts(policy: TokenPolicy, lengths: list[int]) -> Tensor | None:
    return torch.tensor(lengths) if policy.kind == "decode" else None


def _near(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).norm()) <= CLOSE * float(expected.norm())


class _Tokenizer:
    """What `generate` asks of a tokenizer, for prompts that are ids already."""

    pad_token_id = eos_token_id = 0

    def decode(self, ids: Any, **options: Any) -> str:
        return " ".join(map(str, ids))
