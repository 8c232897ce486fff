"""Settings for all tests."""

from __future__ import annotations

import torch

# Matrices here have 48 columns: more threads make them slower, and sums depend on their number.
torch.set_num_threads(1)
