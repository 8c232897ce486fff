"""What was measured on what: data, calibration, token policy, weights, versions, hardware, dates."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from rsparse.benchmark.settings import SETTINGS_FILE
from rsparse.report.parts import Facts, Heading, Paragraph, Part, Section, slug
from rsparse.report.reading import Record, text
from rsparse.reproduce.naming import title_of

ORDER, TITLE = 20, "Protocol"
LIMIT = 12  # values in one line
INTRO = (
    "A folder of records is one study. Token policy: `all`, every token but the sinks runs sparse; `decode`, the prompt is "
    "dense and what follows sparse; `last_fraction:F`, the last F of each sequence is sparse. Figures under two policies do "
    "not compare. A weights hash is of the weights as loaded, so that another dtype has another."
)


def build(records: Sequence[Record]) -> Section | None:
    studies: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        studies.setdefault((record.model, record.folder), []).append(record)
    parts: list[Part] = [Paragraph(INTRO)]
    seen = ""
    for model, folder in sorted(studies):
        if model != seen:
            seen = model
            parts.append(Heading(model, slug(TITLE, model)))
        parts.append(Heading("Records in the folder itself" if folder == "." else f"`{folder}`", slug(TITLE, model, folder), 4))
        parts.append(Facts([(name, value) for name, value in _facts(studies[model, folder]) if value]))
    return Section(TITLE, parts)


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    dates = sorted(day for r in records if (day := text(r.run, "date")[:10]))
    versions = [
        _values((text(r.env, name) for r in records), f"{name} ") for name in ("rsparse", "torch", "transformers", "python")
    ]
    stamps = _stamps(records[0])
    return [
        ("records", f"{len({r.path for r in records})}"),
        ("called", _values(text(r.config, "model") for r in records)),
        ("weights", _values(_weights(r) for r in records)),
        ("methods", _values(title_of(text(r.config, "preset") or text(r.config, "method")) for r in records)),
        ("token policy", _values(text(r.config, "token_policy") for r in records)),
        ("sink tokens", _values(text(r.config, "sink_tokens") for r in records)),
        ("window", _values((text(r.config, "seq_len") for r in records), ending=" tokens")),
        ("test texts", _values(_text(r, stamps.get("texts", {})) for r in records)),
        ("tasks", _values(_task(name, stamps.get("tasks", {})) for r in records for name in _tasks(r))),
        ("calibration", _values(text(r.config, "calibration") for r in records)),
        ("compensation", _values(text(r.config, "compensation") for r in records)),
        ("hardware", _values(r.machine for r in records)),
        ("backend", _values(text(r.env, "backend") for r in records)),
        ("versions", ", ".join(filter(None, versions))),
        ("commit", _values(text(r.run, "commit") for r in records) or "not recorded"),
        ("dates", " to ".join(sorted({dates[0], dates[-1]})) if dates else ""),
        ("command", _command(records)),
    ]


def _values(found: Iterable[str], start: str = "", ending: str = "") -> str:
    """Each value once, sorted; how many more there are."""
    values = sorted(set(filter(None, found)))
    more = f" and {len(values) - LIMIT} more" if len(values) > LIMIT else ""
    return f"{start}{', '.join(values[:LIMIT])}{more}{ending}" if values else ""


def _weights(record: Record) -> str:
    words = [f"`{sha}`" if (sha := text(record.config, "weights_sha")) else "", text(record.config, "dtype")]
    return " ".join(filter(None, [*words, text(record.config, "weights")]))


def _text(record: Record, stamps: dict[str, str]) -> str:
    name = text(record.config, "data")
    stamp = stamps.get(name.rpartition(".")[0] or name)
    return f"{name} (sha-256 `{stamp}`)" if stamp and name else name


def _task(name: str, stamps: dict[str, str]) -> str:
    return f"{name} (`{stamps[name]}`)" if name in stamps else name


def _tasks(record: Record) -> list[str]:
    tasks = record.metrics.get("tasks")
    return list(tasks) if isinstance(tasks, dict) else []


def _command(records: Sequence[Record]) -> str:
    commands = sorted({command.replace("__main__.py", "rsparse", 1) for r in records if (command := text(r.run, "command"))})
    if not commands:
        return ""
    return f"`{commands[0]}`" + (f" and {len(commands) - 1} like it" if len(commands) > 1 else "")


def _stamps(record: Record) -> dict[str, dict[str, str]]:
    """Content hashes of texts and tasks that the bench keeps above or beside its records."""
    levels = len(record.folder.split("/")) if record.folder != "." else 0
    for parent in list(record.file.parents)[: levels + 1]:
        try:
            data = json.loads((parent / SETTINGS_FILE).read_text(encoding="utf-8"))
            return {
                part: {str(k): str(v) for k, v in data[part].items()}
                for part in ("texts", "tasks")
                if isinstance(data.get(part), dict)
            }
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
    return {}
