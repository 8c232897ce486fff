from __future__ import annotations

import pytest

from rsparse.errors import RSparseError
from rsparse.token_policy import KINDS, TokenPolicy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("all", TokenPolicy("all")),
        ("decode", TokenPolicy("decode")),
        ("dense", TokenPolicy("dense")),
        ("last_fraction:0.1", TokenPolicy("last_fraction", 0.1)),
        ("last_fraction:1", TokenPolicy("last_fraction", 1.0)),
    ],
)
def test_parse_and_print_are_inverse(text, policy):
    assert TokenPolicy.parse(text) == policy
    assert str(policy) == text
    assert TokenPolicy.parse(text, sink_tokens=3).sink_tokens == 3


def test_defaults():
    assert TokenPolicy() == TokenPolicy("all", None, 1)
    assert {TokenPolicy.parse(text).kind for text in ("all", "decode", "last_fraction:0.5", "dense")} == set(KINDS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("most", "most"),
        ("", "unknown"),
        ("ALL", "ALL"),
        ("last_fraction", "last_fraction:0.1"),
        ("last_fraction:", "last_fraction:0.1"),
        ("last_fraction:x", "'x' is not a number"),
        ("last_fraction:0", r"\(0, 1\]"),
        ("last_fraction:1.5", r"\(0, 1\]"),
        ("last_fraction:-0.1", r"\(0, 1\]"),
        ("last_fraction:nan", r"\(0, 1\]"),
        ("all:0.1", "takes no share"),
        ("decode:0.1", "takes no share"),
    ],
)
def test_what_is_no_policy_is_refused(text, says):
    with pytest.raises(RSparseError, match=says) as caught:
        TokenPolicy.parse(text)
    assert "\n" not in str(caught.value)


def test_negative_sinks_are_refused():
    with pytest.raises(RSparseError, match="sink_tokens"):
        TokenPolicy("all", sink_tokens=-1)
