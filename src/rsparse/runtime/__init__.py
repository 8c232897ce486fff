"""Generation with a sparse model: dense prefill, sparse decode."""

from rsparse.runtime.generation import GenerationResult, generate

__all__ = ["GenerationResult", "generate"]
