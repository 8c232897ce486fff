from __future__ import annotations

import pytest
import torch

from rsparse.calibration.windows import SEPARATOR, bos_token, make_windows
from rsparse.errors import RSparseError
from tests.support.models import tiny_tokenizer, words

PLAIN, WITH_BOS = tiny_tokenizer(), tiny_tokenizer(add_bos=True)


def ids_of(text):
    return PLAIN(text)["input_ids"]


def test_bos_only_where_the_tokenizer_adds_it():
    assert PLAIN.bos_token_id == WITH_BOS.bos_token_id == 1
    assert bos_token(PLAIN) is None
    assert bos_token(WITH_BOS) == 1


def test_windows_are_the_stream_without_its_tail():
    text = words(60)
    windows = make_windows([text], PLAIN, 16)
    ids = ids_of(text)
    assert len(ids) % 16  # there is a tail
    assert windows.dtype == torch.int64
    assert windows.tolist() == [ids[start : start + 16] for start in range(0, len(ids) - 15, 16)]


def test_every_window_starts_with_bos_and_no_token_is_lost():
    text = words(60)
    windows = make_windows([text], WITH_BOS, 16)
    assert windows.shape[1] == 16
    assert set(windows[:, 0].tolist()) == {1}
    ids = ids_of(text)
    assert windows[:, 1:].flatten().tolist() == ids[: len(ids) // 15 * 15]
    assert 1 not in windows[:, 1:]


@pytest.mark.parametrize("tokenizer", [PLAIN, WITH_BOS])
def test_documents_are_separated_within_one_stream(tokenizer):
    documents = [words(7, seed) for seed in range(5)]
    windows = make_windows(documents, tokenizer, 8)
    body = windows[:, windows.shape[1] - (8 if tokenizer is PLAIN else 7) :].flatten().tolist()
    stream = ids_of(documents[0])
    for text in documents[1:]:
        stream += ids_of(SEPARATOR + text)
    assert body == stream[: len(body)]
    assert len(stream) - len(body) < 8


def until(limit, text):
    for _ in range(limit):
        yield text
    raise AssertionError("read further than was needed")


@pytest.mark.parametrize(("tokenizer", "body"), [(PLAIN, 10), (WITH_BOS, 9)])
def test_reading_stops_with_the_last_window(tokenizer, body):
    text = words(40)
    needed, tokens = 1, len(ids_of(text))
    while tokens < 30 * body:
        needed, tokens = needed + 1, tokens + len(ids_of(SEPARATOR + text))
    windows = make_windows(until(needed, text), tokenizer, 10, max_windows=30)
    assert windows.shape == (30, 10)
    with pytest.raises(AssertionError, match="further"):
        make_windows(until(needed - 1, text), tokenizer, 10, max_windows=30)


def test_fewer_windows_than_asked_is_not_an_error_here():
    windows = make_windows([words(20)], PLAIN, 16, max_windows=1000)
    assert torch.equal(windows, make_windows([words(20)], PLAIN, 16))


def test_exactly_one_window():
    text = words(10)
    length = len(ids_of(text))
    assert make_windows([text], PLAIN, length).tolist() == [ids_of(text)]
    assert make_windows([text], WITH_BOS, length + 1).tolist() == [[1, *ids_of(text)]]
    for tokenizer, seq_len in ((PLAIN, length + 1), (WITH_BOS, length + 2)):
        with pytest.raises(RSparseError, match=f"my.txt has only {length} tokens.*{length + 1}"):
            make_windows([text], tokenizer, seq_len, source="my.txt")


def test_too_short():
    with pytest.raises(RSparseError, match="at least 2"):
        make_windows([words(10)], PLAIN, 1)
    with pytest.raises(RSparseError, match="only 0 tokens"):
        make_windows([], PLAIN, 4)
