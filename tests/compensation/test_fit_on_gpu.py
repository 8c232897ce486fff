"""A fit on a GPU, where attention's own backward adds in no fixed order."""

from __future__ import annotations

import pytest
import torch

from rsparse.calibration import calibrate
from rsparse.compensation import FitSettings, compensate
from rsparse.conversion import sparsify
from tests.compensation.fits import contents, same
from tests.support.models import text_file, tiny_model, tiny_tokenizer, token_ids
from tests.support.recipes import uniform

SHAPE = {"hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 1024}
DEVICE = "cuda"
SETTINGS = FitSettings(steps=12, batch_tokens=4096, check_every=6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_seed_gives_one_fit(tmp_path):
    """Windows of several tiles of keys and heads of 64, whose gradients flash attention adds up as they come."""
    text = token_ids(16, 512, seed=11), token_ids(4, 512, seed=12)
    source, done = text_file(tmp_path, 5000), []
    for _ in range(2):
        model = tiny_model("llama", dtype=torch.bfloat16, **SHAPE).to(DEVICE)
        sparsify(model, uniform(model), calibrate(model, tiny_tokenizer(), str(source), tokens=2048, seq_len=512))
        done.append((compensate(model, *text, SETTINGS).history, contents(model)))
    (history, one), (again, other) = done
    assert history == again
    assert same(one, other)
