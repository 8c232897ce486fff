"""What other libraries print while rsparse loads."""

from __future__ import annotations

import logging

import pytest
import transformers
from transformers import modeling_gguf_pytorch_utils as gguf_module

from rsparse.quiet import quiet_hub, quiet_loading, quiet_saving


@pytest.mark.parametrize("quiet", [quiet_hub, quiet_loading])
def test_the_hubs_retries(quiet):
    from huggingface_hub.utils import logging as hub_logging

    logger = hub_logging.get_logger("huggingface_hub.utils._http")  # as the module that retries names it
    hub_logging.set_verbosity_warning()
    with quiet():
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    assert logger.isEnabledFor(logging.WARNING)


def test_transformers_notes_and_bars():
    logger = transformers.logging.get_logger("transformers.modeling_utils")
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    with quiet_loading():
        assert not logger.isEnabledFor(logging.WARNING)
        assert not transformers.logging.is_progress_bar_enabled()
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


def test_the_bar_of_gguf_files_stays_out_of_logs(capsys):
    """For the architectures that transformers still reads through this module."""
    bar = gguf_module.tqdm
    list(gguf_module.tqdm([1, 2]))
    assert capsys.readouterr().err
    with quiet_loading():
        assert list(gguf_module.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capsys.readouterr().err == ""
    assert gguf_module.tqdm is bar


def test_settings_come_back_after_an_error():
    bar, before = gguf_module.tqdm, transformers.logging.get_verbosity()
    with pytest.raises(ValueError, match="stop"), quiet_loading():
        raise ValueError("stop")
    assert gguf_module.tqdm is bar
    assert transformers.logging.get_verbosity() == before


def test_saving_shows_no_bar_in_a_log(monkeypatch):
    assert transformers.logging.is_progress_bar_enabled()
    with quiet_saving():
        assert not transformers.logging.is_progress_bar_enabled()
    assert transformers.logging.is_progress_bar_enabled()
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with quiet_saving():
        assert transformers.logging.is_progress_bar_enabled()
