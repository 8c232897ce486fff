"""What `rsparse analyze` saw: the picture, and the line that says what to see in it."""

from __future__ import annotations

from collections.abc import Sequence

from rsparse.report.figures import embedded
from rsparse.report.parts import Bullets, Facts, Heading, Paragraph, Part, Picture, Section, slug
from rsparse.report.reading import Record, number, text

ORDER, TITLE = 80, "Analyses"
SETTINGS = (
    "data", "samples", "seq_len", "token_policy", "sink_tokens", "sparsity", "levels", "phases", "methods", "rho", "policies",
    "calibration", "dtype", "weights_sha",
)  # fmt: skip
INTRO = (
    "Each looks at a model through a claim of the paper; whether the claim holds is about this model, text and number of "
    "tokens, no more."
)


def build(records: Sequence[Record]) -> Section | None:
    mine = [r for r in records if text(r.config, "suite") == "analyze" and text(r.config, "kind")]
    if not mine:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    for record in sorted(mine, key=lambda r: (r.model, text(r.config, "kind"), r.path)):
        parts += _analysis(record)
    return Section(TITLE, parts, frozenset(record.path for record in mine))


def _analysis(record: Record) -> list[Part]:
    kind = text(record.config, "kind")
    lines = record.metrics.get("lines")
    said = [str(line) for line in lines] if isinstance(lines, list) else []
    title = f"{kind.replace('-', ' ')}, {record.model}"
    parts: list[Part] = [Heading(title[:1].upper() + title[1:], slug(TITLE, record.path.removesuffix(".json")))]
    parts.append(Bullets(said) if said else Paragraph("The record has no line that says what to see: run the analysis again."))
    alt = f"Plot of {kind} for {record.model}; the lines before it say what is to be seen"
    picture = embedded(record.file.with_suffix(".png"), alt)
    if picture is None:
        parts.append(Paragraph(f"Its picture, `{record.file.stem}.png`, is not beside the record, or is damaged."))
    else:
        parts.append(Picture(picture, alt, f"{title[:1].upper()}{title[1:]}", wide=True))
    pairs = [(name.replace("_", " "), shown) for name in SETTINGS if (shown := text(record.config, name)) not in ("", "0")]
    if tokens := number(record.metrics, "tokens"):
        pairs.append(("tokens", f"{tokens:,.0f}"))
    return [*parts, Facts([*pairs, ("record", f"`{record.path}`")])]
