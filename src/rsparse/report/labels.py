"""What a record's method is called in a table."""

from __future__ import annotations

from rsparse.report.reading import Record, number, text


def method(record: Record) -> str:
    """The bench's own label, else the method with the settings that tell it from its like."""
    if preset := text(record.config, "preset"):
        return preset
    config, name = record.config, text(record.config, "method") or "unnamed"
    rhos = config.get("rho")
    if name == "dense" or not isinstance(rhos, list) or not rhos:
        return name
    words = [text(config, "criterion").replace("_", " ")]
    if name != "sparse_only" and all(isinstance(rho, (int, float)) for rho in rhos):
        low, high = min(rhos), max(rhos)
        words.insert(0, f"rho {low:g}" if low == high else f"rho {low:g} to {high:g}")
        words.append(f"fit {text(config, 'fit')}")
    if (grouping := text(config, "grouping")) not in ("", "linear"):
        words.append(f"{grouping}ed, factors {'stacked' if config.get('stacked') else 'per linear'}")
    if text(config, "compensation"):
        words.append("compensated")
    return f"{name} ({', '.join(word for word in words if word)})"


def level(record: Record) -> float:
    """The asked sparsity; 0 for the dense model."""
    return number(record.config, "sparsity") or 0.0


def level_title(asked: float, *, dense: bool = True) -> str:
    """Above rows of one level; without `dense`, 0 is a method that has a level of its own."""
    return f"{asked:.0%} asked" if asked else "dense" if dense else "a level of its own"


def is_dense(record: Record) -> bool:
    return text(record.config, "method") == "dense"
