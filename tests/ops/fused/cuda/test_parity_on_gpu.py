"""A whole decode step where its kernels run, against the model's own modules."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from rsparse.benchmark.parity.measure import measure
from rsparse.ops import dispatch
from rsparse.runtime.fused.session import WARM_UP
from tests.runtime.fused.cases import sparse
from tests.support.models import token_ids

DEVICE, PROMPT = torch.device("cuda"), 6
pytestmark = pytest.mark.skipif(
    dispatch.refusal("triton", DEVICE, torch.bfloat16) is not None, reason="no GPU that kernels run on"
)


@pytest.mark.parametrize("behind", [WARM_UP, 24])
def test_steps_with_the_modules_masks(behind, monkeypatch):
    """`WARM_UP` tokens are as few as a capture takes."""
    # Measured, the tile settings of so small a model take minutes.
    monkeypatch.setattr("rsparse.ops.fused.tune.tune_once", lambda *given: None)
    model = sparse("qwen2").to(DEVICE, torch.bfloat16)
    found = measure(model, token_ids(2, PROMPT + behind), PROMPT, "triton")
    assert found.modules.shape == (2, behind - 1)
    assert float(found.steps["imposed_masks"][1].mean()) < 1e-2
