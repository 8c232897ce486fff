"""Names for what a user wants, and the methods behind them."""

from __future__ import annotations

# Measured gains and costs: docs/quality.md.
PRESETS = {"fast": "teal", "balanced": "joint", "best": "joint:criterion=column_norm,lowrank=false+compensate"}
