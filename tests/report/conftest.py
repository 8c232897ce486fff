"""The page of given records."""

from __future__ import annotations

import pytest

from rsparse.report.build import render
from rsparse.report.reading import read
from tests.report.records import Page, write


@pytest.fixture
def page(tmp_path):
    def made(**records):
        write(tmp_path, **records)
        return Page(render(*read(tmp_path), "title")[0])

    return made
