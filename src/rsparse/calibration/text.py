"""Where text comes from: a file, the bundled text, or a data set on the Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rsparse.errors import RSparseError
from rsparse.quiet import quiet_hub

BUNDLED = "bundled"
DEFAULT = "allenai/c4:en"


@dataclass(frozen=True)
class TextSource:
    """Text by name: `bundled`, `bundled:test`, a `.txt` or `.jsonl` path, or `owner/dataset[:config[:split]]`."""

    name: str

    def documents(self) -> Iterator[str]:
        """Documents in order; a `.txt` file is one. Raises RSparseError where there are none."""
        empty = True
        for text in self._read():
            if text.strip():
                empty = False
                yield text
        if empty:
            raise RSparseError(f"{self.name}: there is no text in it")

    def check(self) -> None:
        """Read the first document, unless that is on the Hub: before hours of work, not after. Raises RSparseError."""
        if not self._on_hub:
            next(self.documents())

    @property
    def _on_hub(self) -> bool:
        path = Path(self.name)
        if self.name.partition(":")[0] == BUNDLED or path.suffix in (".txt", ".jsonl") or path.is_file():
            return False
        return "/" in self.name and not path.is_absolute() and not self.name.startswith(".")

    def _read(self) -> Iterator[str]:
        path = Path(self.name)
        if self._on_hub:
            yield from _read_hub(self.name)
        elif self.name.partition(":")[0] == BUNDLED:
            yield from bundled(self.name.partition(":")[2] or "train")
        elif path.suffix == ".jsonl":
            yield from _read_jsonl(path)
        elif path.is_file():
            yield _read_file(path)
        else:
            raise RSparseError(f"text file {self.name} does not exist")


def bundled(split: str = "train") -> Iterator[str]:
    """The language reference that every CPython carries (PSF licence): two topics of three to `train`, one to `test`."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise RSparseError("this Python came without pydoc_data, the bundled text; name a .txt file instead") from None
    if split not in ("train", "test"):
        raise RSparseError(f"bundled text has the parts train and test, not {split!r}")
    names = sorted(topics)
    test = [topics[name] for number, name in enumerate(names) if number % 3 == 2]
    if split == "test":
        yield from test
        return
    # Topics repeat each other's paragraphs; what the test part holds must not be calibrated on.
    seen = {paragraph.strip() for text in test for paragraph in text.split("\n\n")}
    for number, name in enumerate(names):
        if number % 3 != 2:
            kept = "\n\n".join(part for part in topics[name].split("\n\n") if part.strip() not in seen)
            if kept.strip():
                yield kept


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RSparseError(f"cannot read text file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RSparseError(f"text file {path} is not UTF-8 (byte {error.start})") from error


def _read_jsonl(path: Path) -> Iterator[str]:
    for number, line in enumerate(_read_file(path).split("\n"), 1):  # JSON strings may hold other line ends
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise RSparseError(f"{path}, line {number}: expected a JSON object with a string 'text'")
        yield text


def _read_hub(name: str) -> Iterator[str]:
    dataset, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    from datasets import load_dataset

    try:
        with quiet_hub():
            rows = load_dataset(dataset, config or None, split=split or "train", streaming=True)
        for row in rows:
            if not isinstance(row["text"], str):
                raise KeyError("text")
            yield row["text"]
    except KeyError:
        raise RSparseError(f"data set {name} has no column 'text' of strings") from None
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise RSparseError(
            f"cannot read data set {name} from the Hub ({reason[0] if reason else type(error).__name__}); "
            f"name a .txt or .jsonl file instead, or `{BUNDLED}`"
        ) from error


def wikitext_join(text: str) -> str:
    """The usual WikiText-2 convention over the raw file: rows joined by a blank line, blank rows empty."""
    return "\n\n".join(line + "\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n"))
