"""Plots as inline SVG in the page's own ink, and pictures as base64."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

PNG = b"\x89PNG\r\n\x1a\n"
INK = "#010203"  # stands for the colour of text, which is another in the dark
RC: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def plot(
    name: str, size: tuple[float, float], draw: Callable[[Any], None], *, alt: str, panels: tuple[int, int] = (1, 1)
) -> str:
    """SVG, `size` in inches; `name` is unlike any other's on the page. The same drawing gives the same bytes.

    `draw` gets the axis, of which a legend is made below it, or where there are several `panels` the array of them.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots(*panels)
        for axis in figure.axes:
            axis.patch.set_alpha(0)
        draw(axes)
        handles, labels = axes.get_legend_handles_labels() if panels == (1, 1) else ([], [])
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(out.getvalue(), name, alt)


def _inline(svg: str, name: str, alt: str) -> str:
    """Without prolog and styles for a page of its own; ids made unique; ink as currentColor."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(INK, "currentColor").replace("#000000", "currentColor")
    svg = re.sub(r' height="[\d.]+pt"', "", svg, count=1)  # as high as its width makes it
    return svg.replace("<svg ", f'<svg role="img" aria-label={quoteattr(alt)} ', 1)


def embedded(file: Path, alt: str) -> str | None:
    """A PNG file as an image of the page; None where there is none that is whole."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if not data.startswith(PNG) or b"IEND" not in data[-12:]:
        return None
    return f'<img alt={quoteattr(alt)} src="data:image/png;base64,{base64.b64encode(data).decode("ascii")}">'
