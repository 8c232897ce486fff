"""What a record's method is called in a table."""

from __future__ import annotations

from rsparse.report.reading import Record, number, text
from rsparse.reproduce.naming import title_of


def method(record: Record) -> str:
    """The name of the bench's own label, else the method with the settings that tell it from its like."""
    if preset := text(record.config, "preset"):
        return title_of(preset)
    config, name = record.config, text(record.config, "method") or "unnamed"
    rhos = config.get("rho")
    if name == "dense" or not isinstance(rhos, list) or not rhos:
        return title_of(name)
    words = [text(config, "criterion").replace("_", " ").replace(", ", " and ")]
    ranked = name != "sparse_only" and all(isinstance(rho, (int, float)) for rho in rhos)
    if ranked:
        low, high = min(rhos), max(rhos)
        words.insert(0, f"rho {low:g}" if low == high else f"rho {low:g} to {high:g}")
        words.append(f"fit {fit}" if (fit := text(config, "fit")) else "")
    if (grouping := text(config, "grouping")) not in ("", "linear"):
        factors = f", factors {'stacked' if config.get('stacked') else 'per linear'}" if ranked else ""
        words.append(f"{grouping}ed{factors}")
    if text(config, "compensation"):
        words.append("compensated")
    return f"{name} ({', '.join(word for word in words if word)})"


def bare(record: Record) -> str:
    """The method without options, as its file is called."""
    return text(record.config, "preset").partition("-")[0] or text(record.config, "method")


def has_options(record: Record) -> bool:
    return "-" in text(record.config, "preset")


def level(record: Record) -> float:
    """The asked sparsity; 0 for the dense model."""
    return number(record.config, "sparsity") or 0.0


def level_title(asked: float, *, dense: bool = True) -> str:
    """Above rows of one level; without `dense`, 0 is a method that has a level of its own."""
    return f"{asked:.0%} asked" if asked else "dense" if dense else "a level of its own"


def is_dense(record: Record) -> bool:
    return text(record.config, "method") == "dense"


def is_random(record: Record) -> bool:
    """Whether a shape with random weights stood for the model, so that its speed counts and nothing else."""
    return text(record.config, "weights") == "random"
