"""qwen3: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec

SPEC = ArchSpec(model_type="qwen3", blocks="model.layers", groups=GATED_DECODER)
