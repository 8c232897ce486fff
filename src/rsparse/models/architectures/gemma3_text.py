"""gemma3_text: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec, DecodeSpec

SPEC = ArchSpec(
    model_type="gemma3_text",
    blocks="model.layers",
    groups=GATED_DECODER,
    decode=DecodeSpec(
        norm_plus_one=True,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        q_norm="self_attn.q_norm",
        k_norm="self_attn.k_norm",
        activation="hidden_activation",
        final_softcap="final_logit_softcapping",
        windowed="layer_types",
        rotary_by_type=True,
    ),
)
