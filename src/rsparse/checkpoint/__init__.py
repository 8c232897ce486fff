"""Sparse models on disk: an ordinary Hugging Face folder with a shard of its own for what rsparse adds."""

from rsparse.checkpoint.load import from_pretrained
from rsparse.checkpoint.quantizer import RSparseConfig, register
from rsparse.checkpoint.save import save_pretrained

__all__ = ["RSparseConfig", "from_pretrained", "register", "save_pretrained"]
