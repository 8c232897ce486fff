"""qwen2: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec, DecodeSpec

SPEC = ArchSpec(model_type="qwen2", blocks="model.layers", groups=GATED_DECODER, decode=DecodeSpec(windowed="layer_types"))
