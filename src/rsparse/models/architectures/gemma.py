"""gemma: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec, DecodeSpec

SPEC = ArchSpec(
    model_type="gemma",
    blocks="model.layers",
    groups=GATED_DECODER,
    decode=DecodeSpec(norm_plus_one=True),
)
