"""A bench of tiny models that several test files run."""

from __future__ import annotations

import json
from pathlib import Path

from rsparse.benchmark.grid import Grid
from rsparse.benchmark.quality import QualityBench
from rsparse.benchmark.settings import Settings
from rsparse.evaluation.tasks import load_tasks
from rsparse.methods import MethodSpec
from rsparse.token_policy import TokenPolicy
from tests.support.models import tiny_model, tiny_tokenizer

ALL, DECODE = TokenPolicy("all"), TokenPolicy("decode")
SEQ_LEN = 24


def settings(files: Path, **changes) -> Settings:
    return Settings(str(files / "calibration.txt"), **({"calibration_tokens": 480, "seq_len": SEQ_LEN} | changes))


def grid(files: Path, *methods: str, **changes) -> Grid:
    texts = [str(files / "one.txt"), str(files / "two.txt")]
    given = {"models": ["tiny"], "levels": [0.4], "policies": [ALL], "texts": texts, "tasks": True} | changes
    return Grid(methods=[MethodSpec.parse(text) for text in methods or ("sparse_only",)], **given)


class Bench:
    """A QualityBench on tiny models that counts loads and keeps what it said."""

    def __init__(self, files: Path, wanted: Grid, **changes):
        self.loads, self.said = [], []
        tasks = load_tasks(None, files / "tasks")
        self.out = files / "out"
        self.bench = QualityBench(wanted, settings(files, **changes), self.out, self.load, tasks, self.said.append)

    def load(self, name):
        self.loads.append(name)
        self.model = tiny_model("llama")
        return self.model, tiny_tokenizer()

    def run(self):
        return self.bench.run()

    def names(self):
        return sorted(path.name for path in self.out.glob("*/*.json"))

    def record(self, name):
        return json.loads((self.out / "tiny" / f"{name}.json").read_text())
