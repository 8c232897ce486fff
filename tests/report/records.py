"""Records written by hand, and pages read back."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "use", "path"}
DENSE_BYTES = 200_000_000
RUN = {"command": "rsparse bench quality tiny", "commit": "abc", "date": "2026-01-02T03:04:05+00:00", "seconds": 1.0}
ENV = {"cpu": "a processor", "threads": 1, "gpu": None, "backend": "reference"}
ENV |= {"python": "3", "torch": "2", "transformers": "5", "rsparse": "0.1"}


def record(config, metrics):
    base = {"model": "tiny.gguf", "weights_sha": "w1", "dtype": "float32"}
    return {"schema": 1, "run": dict(RUN), "env": dict(ENV), "config": base | config, "metrics": metrics}


def quality(preset, sparsity, *, text=None, nll=None, kl=None, rows=None, policy="all", **config):
    """A bench's cell: windows' mean −log p, or the 0/1 rows of one task."""
    found = {"suite": "quality", "preset": preset, "method": preset.partition("-")[0], "sparsity": sparsity}
    found |= {"token_policy": policy, "sink_tokens": 1, **config}
    metrics = {"achieved_sparsity": sparsity - 0.01 if sparsity else 0.0, "dense_bytes_per_token": DENSE_BYTES}
    metrics["bytes_per_token"] = round(DENSE_BYTES * (1 - 0.8 * sparsity))
    if text is not None:
        found |= {"data": text, "seq_len": 512}
        metrics |= {"perplexity": math.exp(sum(nll) / len(nll)), "tokens": 511 * len(nll), "window_nll": nll}
        metrics |= {} if kl is None else {"kl_to_dense": kl}
    else:
        acc = [float(row) for row in rows]
        entry = {
            "acc": sum(acc) / len(acc),
            "stderr": 0.1,
            "n": len(acc),
            "chance": 0.5,
            "rows": {"acc": rows, "acc_norm": rows},
        }
        metrics["tasks"] = {"words": entry}
    return record(found, metrics)


def write(folder, **records):
    """`a__b=record` becomes a/b.json."""
    for name, each in records.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(each))
    return folder


class Page(HTMLParser):
    """Elements by (tag, attributes), text by table cell, and all text; a tag left open is an error."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.tables, self.text, self._open = [], [], "", []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.text += data
        if any(tag in ("td", "th") for tag in self._open):
            cell = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = " ".join(f"{cell} {data}".split())

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    def table(self, *words):
        """The rows of the one table whose head has all `words`."""
        found = [table for table in self.tables if set(words) <= {word for cell in table[0] for word in cell.split()}]
        assert len(found) == 1, [table[0] for table in self.tables]
        return found[0]
