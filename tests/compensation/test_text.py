"""A text's windows: some to fit on, others to stop by."""

from __future__ import annotations

import pytest
import torch

from rsparse.calibration.text import TextSource
from rsparse.calibration.windows import make_windows
from rsparse.compensation import fit_windows
from rsparse.errors import RSparseError
from tests.support.models import text_file, tiny_tokenizer


def test_every_sixteenth_window_is_held_out(tmp_path):
    path, tokenizer = str(text_file(tmp_path, 600)), tiny_tokenizer()
    windows, heldout = fit_windows(path, tokenizer, 24)
    whole = make_windows(TextSource(path).documents(), tokenizer, 24)
    assert len(whole) > 48
    assert torch.equal(heldout, whole[::16])
    assert torch.equal(windows, torch.stack([window for place, window in enumerate(whole) if place % 16]))


def test_no_more_tokens_than_asked(tmp_path):
    path, tokenizer = str(text_file(tmp_path, 600)), tiny_tokenizer()
    windows, heldout = fit_windows(path, tokenizer, 24, 24 * 20 + 23)
    assert (len(windows), len(heldout)) == (18, 2)
    few, held = fit_windows(path, tokenizer, 24, 1)  # a fit needs two
    assert (len(few), len(held)) == (1, 1)
    assert torch.equal(torch.cat([held, few]), torch.cat([heldout[:1], windows[:1]]))


def test_windows_start_with_bos_where_the_tokenizer_adds_it(tmp_path):
    windows, heldout = fit_windows(str(text_file(tmp_path, 100)), tiny_tokenizer(add_bos=True), 24)
    assert (windows[:, 0] == 1).all()
    assert (heldout[:, 0] == 1).all()


@pytest.mark.parametrize(
    ("words", "seq_len", "tokens", "says"),
    [
        (12, 24, 1000, r"text-12-0\.txt fills one window of 24 tokens; a fit needs two"),
        (3, 24, 1000, "one window needs 24"),
        (100, 24, 0, "tokens must be at least 1, got 0"),
        (100, 24, -5, "tokens must be at least 1"),
        (100, 0, 1000, "seq_len must be at least 2"),
        (100, 1, 1000, "seq_len must be at least 2"),
    ],
)
def test_too_little(tmp_path, words, seq_len, tokens, says):
    with pytest.raises(RSparseError, match=says) as caught:
        fit_windows(str(text_file(tmp_path, words)), tiny_tokenizer(), seq_len, tokens)
    assert "\n" not in str(caught.value)


def test_a_missing_text():
    with pytest.raises(RSparseError, match=r"nowhere\.txt"):
        fit_windows("nowhere.txt", tiny_tokenizer(), 24)
