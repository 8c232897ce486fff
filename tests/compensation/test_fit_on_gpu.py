"""A fit on a GPU, where attention's own backward adds in no fixed order."""

from __future__ import annotations

import pytest
import torch

from rsparse.compensation import compensate
from tests.compensation.fits import SETTINGS, contents, model_of, same
from tests.support.models import token_ids

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_seed_gives_one_fit(dtype):
    text = token_ids(16, 24, seed=11), token_ids(4, 24, seed=12)
    done = []
    for _ in range(2):
        model = model_of().to("cuda", dtype)
        done.append((compensate(model, *text, SETTINGS).history, contents(model)))
    (history, one), (again, other) = done
    assert history == again
    assert same(one, other)
