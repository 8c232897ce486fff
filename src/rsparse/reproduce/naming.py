"""What a method is called for a reader: one name in tables, notes and the report."""

from __future__ import annotations

import re

from rsparse.methods import MethodSpec, names
from rsparse.reproduce.table import PAPER_METHOD

OPTION = re.compile(r"([a-z_]+)(\d.*)")


def title(spec: MethodSpec) -> str:
    """`R-Sparse (searched)` for the paper's; `rsparse (fit svd, rho 0.9)`; its label where it is compensated or a preset."""
    if spec.fit is not None or spec.preset:
        return spec.label
    words = [f"{name} {value}" for name, value in sorted(spec.options)]
    if spec.name == PAPER_METHOD:
        return f"R-Sparse ({', '.join([PAPER_METHOD, *words])})"
    return f"{spec.name} ({', '.join(words)})" if words else spec.label


def title_of(label: str) -> str:
    """The same of `MethodSpec.label`, which is what records keep; a label that is not made of a method's options stays."""
    name, *words = label.split("-")
    options: list[tuple[str, str]] = []
    while words:
        word = words.pop(0)
        if found := OPTION.fullmatch(word):
            options.append((found[1], found[2]))
        elif words:
            options.append((word, words.pop(0)))
        else:
            return label
    spec = MethodSpec(name, tuple(options))
    whole = name in names() and spec.label == label and not any(key == "compensate" for key, _ in options)
    return title(spec) if whole else label
