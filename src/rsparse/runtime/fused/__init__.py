"""Decode by fused ops: the model's linears packed, a step captured as one CUDA graph."""

from rsparse.runtime.fused.coverage import refusal, step_refusal
from rsparse.runtime.fused.model import FusedModel, fused_model, release
from rsparse.runtime.fused.sampling import Sampler, Sampling
from rsparse.runtime.fused.session import Session

__all__ = ["FusedModel", "Sampler", "Sampling", "Session", "fused_model", "refusal", "release", "step_refusal"]
