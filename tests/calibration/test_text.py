from __future__ import annotations

import json

import datasets
import pytest

from rsparse.calibration.text import TextSource, bundled, wikitext_join
from rsparse.errors import RSparseError


def refused(name, says):
    with pytest.raises(RSparseError, match=says) as caught:
        list(TextSource(str(name)).documents())
    assert "\n" not in str(caught.value)


def test_txt_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo ü\n", encoding="utf-8")
    assert list(TextSource(str(path)).documents()) == ["one\n\ntwo ü\n"]


def test_a_file_of_any_name_is_read(tmp_path):
    path = tmp_path / "README"
    path.write_text("text")
    assert list(TextSource(str(path)).documents()) == ["text"]


def test_jsonl_is_one_document_a_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "url": 3}\n\n{"text": "two\\nlines"}\n{"text": "  "}\n')
    assert list(TextSource(str(path)).documents()) == ["one", "two\nlines"]


def test_only_line_feeds_end_a_line_of_jsonl(tmp_path):
    # JSON allows these inside a string, and json.dumps(ensure_ascii=False) writes them so
    texts = ["one\u2028two", "three\u0085four", "five\u2029six"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert list(TextSource(str(path)).documents()) == texts


@pytest.mark.parametrize("line", ["{", "3", '"text"', "[]", "null", '{"txt": "a"}', '{"text": null}', '{"text": 3}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    refused(path, r"a\.jsonl, line 2.*'text'")


def test_bad_files(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"abc\xe9")
    refused(tmp_path / "latin.txt", r"latin\.txt is not UTF-8 \(byte 3\)")
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    refused(tmp_path / "latin.jsonl", "is not UTF-8")
    for name in ("empty.txt", "blank.jsonl"):
        (tmp_path / name).write_text(" \n\n")
        refused(tmp_path / name, "no text")
    refused(tmp_path / "none.txt", "does not exist")
    refused(tmp_path / "none.jsonl", "none.jsonl")
    refused("none.txt", "does not exist")
    refused("./none", "does not exist")
    refused(tmp_path, "does not exist")


def test_bundled_parts():
    train, test = list(bundled("train")), list(bundled("test"))
    assert len("".join(train)) > len("".join(test)) > 50_000
    assert list(TextSource("bundled").documents()) == train
    assert list(TextSource("bundled:train").documents()) == train
    assert list(TextSource("bundled:test").documents()) == [text for text in test if text.strip()]
    refused("bundled:dev", "'dev'")


def test_bundled_parts_share_no_paragraph():
    """Topics of CPython's reference repeat each other: `compound` holds `if`, `while` and `for` as a whole."""

    def paragraphs(split):
        parts = (part.strip() for document in bundled(split) for part in document.split("\n\n"))
        return {part for part in parts if len(part) > 80}

    shared = paragraphs("train") & paragraphs("test")
    assert not shared, f"{len(shared)} of {len(paragraphs('test'))} paragraphs of the test part are in train"


def test_wikitext_join_by_hand():
    """The raw file against "\\n\\n".join over the data set's rows: blank rows are empty, the others end in a line feed."""
    raw = " \n = A = \n \n One . \n Two . \n \n"
    rows = ["", " = A = \n", "", " One . \n", " Two . \n", ""]
    assert wikitext_join(raw) == "\n\n".join(rows)
    assert wikitext_join(raw) == "\n\n = A = \n\n\n\n\n One . \n\n\n Two . \n\n\n"
    assert wikitext_join(raw.removesuffix("\n")) == wikitext_join(raw)


class Hub:
    """Stands in for datasets.load_dataset."""

    def __init__(self, rows=(), error=None):
        self.rows, self.error, self.calls, self.read = rows, error, [], 0

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if self.error is not None:
            raise self.error
        return self._stream()

    def _stream(self):
        for row in self.rows:
            self.read += 1
            yield row


@pytest.mark.parametrize(
    ("name", "arguments", "split"),
    [
        ("owner/data", ("owner/data", None), "train"),
        ("owner/data:en", ("owner/data", "en"), "train"),
        ("owner/data:en:test", ("owner/data", "en"), "test"),
        ("owner/data::validation", ("owner/data", None), "validation"),
    ],
)
def test_the_hub_is_streamed(monkeypatch, name, arguments, split):
    hub = Hub([{"text": "one"}, {"text": ""}, {"text": "two"}, {"text": "three"}])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    documents = TextSource(name).documents()
    assert [next(documents), next(documents)] == ["one", "two"]
    assert hub.read == 3
    assert hub.calls == [(arguments, {"split": split, "streaming": True})]


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("no route"), RuntimeError("")])
def test_a_failing_hub_is_one_line_with_a_way_out(monkeypatch, error):
    monkeypatch.setattr(datasets, "load_dataset", Hub(error=error))
    refused("owner/data", f"owner/data.*{str(error).splitlines()[0] if str(error) else 'RuntimeError'}.*.bundled.")


def test_a_hub_that_fails_midway(monkeypatch):
    def rows():
        yield {"text": "one"}
        raise ConnectionError("lost")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: rows())
    refused("owner/data", "lost.*.bundled.")


def test_hub_data_without_text(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", Hub([{"content": "one"}]))
    refused("owner/data", "no column 'text'")
    monkeypatch.setattr(datasets, "load_dataset", Hub([]))
    refused("owner/data", "no text")
    monkeypatch.setattr(datasets, "load_dataset", Hub([{"text": ["a", "b"]}]))
    refused("owner/data", "owner/data.*'text'")


def test_check_reads_the_first_document_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n{"txt": 3}\n')
    TextSource(str(path)).check()
    path.write_text('{"txt": 3}\n{"text": "fine"}\n')
    with pytest.raises(RSparseError, match="line 1"):
        TextSource(str(path)).check()


def test_check_leaves_the_hub_alone(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: pytest.fail("asked the Hub"))
    TextSource("allenai/c4:en").check()
