"""A table, as its page has it."""

from __future__ import annotations


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]
