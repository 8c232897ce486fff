"""Kernels and decoding on a GPU: docs/gpu.md."""

from __future__ import annotations

from typing import Any

from rsparse.analysis import decode_table, kernel_table


def kernels_block(records: list[dict[str, Any]]) -> str:
    """Time and rate of a block's units by shape; nothing where there are no records."""
    if not records:
        return ""
    plots = "![speed-up over the share of the bytes that is read, and a roofline](kernels.png)"
    return "\n".join([kernel_table.protocol(records), "", plots, "", kernel_table.markdown(records, level=3)])


def decode_block(records: list[dict[str, Any]]) -> str:
    """Tokens a second by model; nothing where there are no records."""
    if not records:
        return ""
    plots = "![speed-up over sparsity, and tokens a second over length](decode.png)\n\n" if levels(records) > 1 else ""
    return f"{plots}{decode_table.markdown(records, level=3)}"


def levels(records: list[dict[str, Any]]) -> int:
    """How many sparsities: a picture of one says nothing."""
    return len({record["config"]["sparsity"] for record in records})
