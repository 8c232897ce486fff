"""Rows that end with a string, against what they are without it."""

from __future__ import annotations

import pytest

from tests.runtime.test_generation import NEW, PROMPTS, pair, tokens
from tests.support.models import tiny_tokenizer


def first_end(text, stops):
    """Length of the shortest beginning of `text` that holds one of `stops`."""
    return min((text.index(stop) + len(stop) for stop in stops if stop in text), default=len(text))


@pytest.mark.parametrize("batch", [PROMPTS, PROMPTS[1:2]])
def test_it_stops_at_strings(batch):
    dense, model = pair("qwen2")
    tokenizer = tiny_tokenizer()
    free = tokens(model, batch)
    of_first = free.texts[0]
    stops = [of_first[7:9], of_first[12], "no such text"]  # the first one spans two tokens or more
    assert first_end(of_first, stops) < len(of_first)
    found = tokens(model, batch, stop=stops)
    total = 0
    for index, text in enumerate(free.texts):
        ids = free.token_ids[index].tolist()
        count = next((n for n in range(1, NEW + 1) if any(stop in tokenizer.decode(ids[:n]) for stop in stops)), NEW)
        total += count
        assert found.token_ids[index, :count].tolist() == ids[:count]
        assert found.texts[index] == tokenizer.decode(ids[:count], skip_special_tokens=True)
        assert text.startswith(found.texts[index])
    assert found.new_tokens == total < NEW * len(batch)
    # on a sparse model as on a dense one, and nothing is stopped without one
    assert tokens(model, batch, stop=["no such text"]).token_ids.tolist() == free.token_ids.tolist()
    assert tokens(dense, batch, stop=[tokens(dense, batch).texts[0][0]]).new_tokens < NEW * len(batch)


def test_a_stop_string_does_not_begin_in_the_prompt():
    model = pair("qwen2")[1]
    text = tokens(model, ["the river"]).texts[0]
    across = "r" + text[0]
    assert across not in text
    assert tokens(model, ["the river"], stop=[across]).texts[0] == text


def test_a_stop_string_longer_than_the_text():
    model = pair("qwen2")[1]
    text = tokens(model, PROMPTS[:1]).texts[0]
    assert tokens(model, PROMPTS[:1], stop=[text + "x"]).texts[0] == text
    assert tokens(model, PROMPTS[:1], stop=[text]).texts[0] == text
