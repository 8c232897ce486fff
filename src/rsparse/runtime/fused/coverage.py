"""Which models, settings and calls the fused decode step covers, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rsparse.models import spec_for
from rsparse.sparse_model import RecipeState, is_sparse, state, unit_members
from rsparse.token_policy import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_ROWS = 8
ACTIVATIONS: Mapping[str, str] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
MOVING_ROTARY = ("dynamic", "longrope")  # frequencies that depend on the length so far

# What transformers' generation_config can hold that changes the tokens, and that is not among `Sampling`'s.
_OTHER_SETTINGS = (
    "begin_suppress_tokens", "bad_words_ids", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "guidance_scale", "max_time", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "penalty_alpha", "prompt_lookup_num_tokens", "remove_invalid_values", "sequence_bias",
    "stop_strings", "suppress_tokens", "watermarking_config",
)  # fmt: skip
# Those that matter once tokens are sampled.
_OTHER_WARPERS = ("epsilon_cutoff", "eta_cutoff", "min_p", "top_h", "typical_p")
_NEUTRAL: Mapping[str, Any] = {"typical_p": 1.0, "encoder_repetition_penalty": 1.0}


def refusal(
    model: PreTrainedModel, token_policy: TokenPolicy, *, rows: int, shortest: int, sampled: bool = False
) -> str | None:
    """Why `rows` sequences, the shortest prompt of so many tokens, cannot decode by the fused step; None where they can."""
    return step_refusal(model, token_policy, rows=rows, shortest=shortest) or _by_settings(model, sampled)


def step_refusal(model: PreTrainedModel, token_policy: TokenPolicy, *, rows: int, shortest: int) -> str | None:
    """`refusal` of the step alone, whatever chooses its tokens."""
    return _by_model(model) or _by_call(model, token_policy, rows, shortest)


def _by_model(model: PreTrainedModel) -> str | None:
    config = model.config
    decode = spec_for(config).decode
    if decode is None:
        return f"architecture {config.model_type} has no description of its decode step"
    activation = getattr(config, decode.activation)
    if activation not in ACTIVATIONS:
        return f"activation {activation} has no kernel"
    if getattr(config, "use_bidirectional_attention", False):
        return "its attention is bidirectional"
    if is_sparse(model) and not isinstance(state(model), RecipeState):
        return f"method {state(model).method} is no recipe for its linears"
    kinds = _rotary_kinds(config)
    if moving := next((kind for kind in kinds if any(name in kind for name in MOVING_ROTARY)), None):
        return f"rotary embedding {moving} changes with the length"
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        return f"the model is spread over {len(devices)} devices"
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if len(dtypes) > 1:
        return "its weights are of several dtypes"
    return None


def _by_call(model: PreTrainedModel, token_policy: TokenPolicy, rows: int, shortest: int) -> str | None:
    if rows > MAX_ROWS:
        return f"{rows} sequences are more than {MAX_ROWS}"
    if not is_sparse(model):
        return None
    if token_policy.kind != "decode":
        return f"under token policy {token_policy} more or less than the new tokens is sparse"
    if token_policy.sink_tokens > shortest:
        return f"a prompt is shorter than {token_policy.sink_tokens} sink tokens"
    if any(member.meter is not None for members in unit_members(model).values() for member in members):
        return "kept channels are being counted"
    return None


def _by_settings(model: PreTrainedModel, sampled: bool) -> str | None:
    found = model.generation_config
    for name in (*_OTHER_SETTINGS, *(_OTHER_WARPERS if sampled else ())):
        value = getattr(found, name, None)
        if value and value != _NEUTRAL.get(name):
            return f"the model's generation settings ask for {name}"
    if (getattr(found, "num_beams", None) or 1) > 1:
        return "the model's generation settings ask for num_beams"
    return None


def _rotary_kinds(config: Any) -> list[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    by_type = [value for value in parameters.values() if isinstance(value, Mapping)] or [parameters]
    return [str(each.get("rope_type", "default")) for each in by_type]
