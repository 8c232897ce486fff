"""llama: see spec.py for the fields."""

from rsparse.models.spec import GATED_DECODER, ArchSpec

SPEC = ArchSpec(model_type="llama", blocks="model.layers", groups=GATED_DECODER)
