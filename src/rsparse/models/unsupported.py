"""Model types that are refused by name, with what stands in the way."""

FUSED = "its q/k/v and gate/up weights are fused, and a unit needs a linear of its own"

REASONS = {
    "phi3": FUSED,
    "phi4_multimodal": FUSED,
    "phi": "its MLP has no gate, so its linears are not the ones that rsparse knows",
    "gemma3": "it has a vision tower; use the text-only checkpoint (model type gemma3_text)",
    "gpt_neox": "its q/k/v weight is fused, and a unit needs a linear of its own",
    "gpt2": "its projections are Conv1D modules, not linears",
}
