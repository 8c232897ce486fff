"""qwen3: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec, DecodeSpec

SPEC = ArchSpec(
    model_type="qwen3",
    blocks="model.layers",
    groups=GATED_DECODER,
    decode=DecodeSpec(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", windowed="layer_types"),
)
