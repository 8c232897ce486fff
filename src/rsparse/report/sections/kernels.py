"""Time of each linear and of the MLP block, beside the dense paths of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from rsparse.analysis import kernel_plot
from rsparse.analysis.kernel_table import DENSE, UNITS, conditions, measured
from rsparse.report.figures import plot
from rsparse.report.parts import EMPTY, Cell, Column, Heading, Paragraph, Part, Picture, Rows, Section, Table, slug
from rsparse.report.reading import Record, number, text

ORDER, TITLE = 62, "Kernels"
SIZES = ("us", "batch", "speedup", "bytes_read", "dense_bytes", "bytes_per_second")
RANKS = {"none": "", "recipe": ", low rank"}
ALT = (
    "Five panels of speed-up over the best dense path by the share of its bytes that is read, a panel a linear and one for the "
    "MLP block; a sixth of TB/s by the bytes of a call"
)
INTRO = (
    "One product at a time, on weights that are not in the cache: µs of the sparse kernel, of the best dense path of the same "
    "run and of cuBLAS. A speed-up above 1 is a gain, over that best path or over cuBLAS. The last column is the rate at which "
    "the sparse kernel reads, as a share of the rate at which the GPU copies: near 100 % nothing but fewer bytes would make it "
    "faster. What a whole token takes is under Speed."
)


def build(records: Sequence[Record]) -> Section | None:
    found: dict[tuple[str, str], list[Record]] = {}
    for record in filter(_is_kernels, records):
        found.setdefault((record.machine, record.folder), []).append(record)
    if not found:
        return None
    parts: list[Part] = [Paragraph(INTRO)]
    for place, ((machine, _), mine) in enumerate(sorted(found.items())):
        plain = [{"config": dict(r.config), "env": dict(r.env), "metrics": dict(r.metrics)} for r in mine]
        parts.append(Paragraph(f"On {machine}, records of {mine[0].place}. {conditions(plain)}"))
        drawn = partial(kernel_plot.draw, records=plain)
        picture = plot(f"k{place}", kernel_plot.SIZE, drawn, alt=ALT, panels=kernel_plot.PANELS)
        parts.append(Picture(picture, ALT, f"{ALT}. Dashed, with open marks: low rank. On {machine}.", wide=True))
        for record in sorted(mine, key=lambda r: (r.model, text(r.config, "dtype"), r.path)):
            parts.append(Heading(f"{record.model}, {machine}", slug(TITLE, record.path.removesuffix(".json"))))
            parts += _tables(record)
    return Section(TITLE, parts, frozenset(record.path for mine in found.values() for record in mine))


def _is_kernels(record: Record) -> bool:
    """Not what `--json` wrote of several shapes."""
    if text(record.config, "suite") != "kernels" or "models" in record.config:
        return False
    rows = record.metrics.get("rows")
    known = all(text(record.config, name) for name in ("dtype", "masks", "triton", "repeats")) and text(record.env, "torch")
    if not known or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return False
    ran = [row for row in rows if "us" in row]
    return bool(ran) and all(_is_whole(row) for row in ran)


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether it has what the table and the plot read."""
    sizes = [*(number(row, name) for name in SIZES), number(_best(row), "us")]
    shapes, copy = row.get("shapes"), row.get("copy_bytes_per_second", "")
    return (
        all(size is not None and size > 0 for size in sizes)
        and number(row, "sparsity") is not None
        and (copy is None or number(row, "copy_bytes_per_second") is not None)
        and row.get("unit") in UNITS
        and row.get("ranks") in list(RANKS)
        and isinstance(row.get("commit", 0), (str, type(None)))
        and isinstance(row.get("dense_best"), str)
        and isinstance(shapes, list)
        and all(isinstance(each, list) and len(each) == 2 for each in shapes)
    )


def _best(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The best dense path's entry; empty where there is none."""
    return _dense(row, text(row, "dense_best"))


def _dense(row: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    paths = row.get("dense")
    entry = paths.get(name) if isinstance(paths, dict) else None
    return entry if isinstance(entry, dict) else {}


def _tables(record: Record) -> list[Part]:
    """One a batch, rows by level."""
    plain = {"metrics": record.metrics}
    tables: list[Part] = []
    for batch in sorted({row["batch"] for row in measured(plain)}):
        rows = sorted(measured(plain, batch), key=lambda row: (UNITS.index(row["unit"]), list(RANKS).index(row["ranks"])))
        paths = {text(row, "dense_best") for row in rows}
        one = DENSE.get(min(paths), min(paths)) if len(paths) == 1 else ""
        columns = [Column("linear or block", numeric=False), Column("sparse", "µs")]
        columns += [Column("best dense", f"µs, {one}" if one else "µs"), Column("cuBLAS", "µs")]
        columns += [Column("over best dense", "×"), Column("over cuBLAS", "×"), Column("of copy rate", "%")]
        levels = sorted({row["sparsity"] for row in rows})
        groups = [Rows(f"{level:.0%} asked", [_row(row, one) for row in rows if row["sparsity"] == level]) for level in levels]
        shapes = dict.fromkeys(f"{kernel_plot.TITLES[row['unit']]} {_shapes(row)}" for row in rows if row["unit"] != "mlp")
        caption = f"{record.model} on {record.machine}, {text(record.config, 'dtype')}, batch {batch}. In → out: "
        caption += f"{'; '.join(shapes) or _shapes(rows[0])}. Record `{record.path}`."
        tables.append(Table(caption, columns, groups))
    return tables


def _shapes(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{a} → {b}" for a, b in row["shapes"])


def _row(row: Mapping[str, Any], path: str) -> list[Cell]:
    """`path` is the best dense one, where it is that of all rows."""
    best, copy, cublas = _best(row)["us"], number(row, "copy_bytes_per_second"), number(_dense(row, "cublas"), "us")
    name, share = text(row, "dense_best"), 100 * row["bytes_per_second"] / copy if copy else None
    gain = number(row, "speedup_cublas")
    return [
        Cell(kernel_plot.TITLES[row["unit"]] + RANKS[row["ranks"]]),
        Cell(f"{row['us']:.1f}", sort=row["us"]),
        Cell(f"{best:.1f}", "" if path else DENSE.get(name, name), sort=best),
        EMPTY if cublas is None else Cell(f"{cublas:.1f}", sort=cublas),
        Cell(f"×{row['speedup']:.2f}", sort=row["speedup"]),
        EMPTY if gain is None else Cell(f"×{gain:.2f}", sort=gain),
        EMPTY if share is None else Cell(f"{share:.0f}", sort=share),
    ]
