"""gemma3_text: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec

SPEC = ArchSpec(model_type="gemma3_text", blocks="model.layers", groups=GATED_DECODER)
