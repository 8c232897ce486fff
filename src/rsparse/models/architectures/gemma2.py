"""gemma2: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec, DecodeSpec

SPEC = ArchSpec(
    model_type="gemma2",
    blocks="model.layers",
    groups=GATED_DECODER,
    decode=DecodeSpec(
        norm_plus_one=True,
        attention_post_norm="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
        activation="hidden_activation",
        attention_softcap="attn_logit_softcapping",
        final_softcap="final_logit_softcapping",
        windowed="layer_types",
    ),
)
