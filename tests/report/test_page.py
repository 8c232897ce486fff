"""The page as a whole: nothing from outside, nothing that a file could smuggle in, the same bytes each time, usable by all."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest

from rsparse.report import write_report
from rsparse.report.build import render
from rsparse.report.reading import read
from tests.report.records import Page, quality, record, write

EVIL = "<script>alert(1)</script>\"'&$x_{$"


@pytest.fixture
def folder(tmp_path):
    nll = {0.0: [1.0, 2.0], 0.4: [1.1, 2.1], 0.5: [1.2, 2.4]}
    cells = {
        f"s__{preset}{level:g}".replace(".", "_"): quality(preset, level, text="a.txt", nll=nll[level])
        for preset in ("teal", "wina")
        for level in (0.4, 0.5)
    }
    cells["s__dense"] = quality("dense", 0.0, text="a.txt", nll=nll[0.0])
    cells["s__tasks"] = quality("teal", 0.5, rows="1101")
    search = {"suite": "search", "population": 8, "generations": 2, "sparsity": 0.5, "objective": "kl"}
    cells["s__search"] = record(search, {"history": [0.5, 0.4], "sparse_only_fitness": 0.45})
    return write(tmp_path / "results", **cells)


@pytest.fixture
def page(folder):
    return Page(render(*read(folder), "title")[0])


def test_nothing_is_loaded_from_elsewhere(page):
    for tag, attrs in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action", "srcset"):
            value = attrs.get(name, "")
            linked = tag == "a" and value.startswith("https://arxiv.org/")
            assert linked or value.startswith(("#", "data:")) or not value, (tag, name, value)
    policy = next(attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_styles_name_no_address(folder):
    html, _ = render(*read(folder), "title")
    assert "@import" not in html
    assert all(part.startswith(("#", "data:")) for part in html.split("url(")[1:])


def test_anchors_are_unique_and_every_link_has_its_own(page):
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    links = [attrs["href"][1:] for tag, attrs in page.elements if tag == "a" and attrs["href"].startswith("#")]
    assert links
    assert set(links) <= set(ids)


def test_names_of_one_slug_have_anchors_of_their_own(folder):
    write(
        folder,
        t=quality("teal", 0.5, rows="1101", model="a.b", weights_sha="2"),
        u=quality("teal", 0.5, rows="1101", model="a-b", weights_sha="3"),
    )
    ids = Page(render(*read(folder), "title")[0]).attributes("id")
    assert {"tasks-a-b", "tasks-a-b-2"} <= set(ids)
    assert len(ids) == len(set(ids))


def test_tables_and_pictures_are_told_to_who_does_not_see_them(page):
    heads = [attrs.get("scope") for tag, attrs in page.elements if tag == "th"]
    assert set(heads) == {"col", "row", "rowgroup"}
    count = {
        name: sum(tag == name for tag, _ in page.elements)
        for name in ("table", "caption", "figure", "figcaption", "h1", "main", "nav")
    }
    assert count["table"] == count["caption"] > 2
    assert count["figure"] == count["figcaption"] == 2
    assert (count["h1"], count["main"], count["nav"]) == (1, 1, 1)
    assert all(attrs.get("role") == "img" and attrs["aria-label"] for tag, attrs in page.elements if tag == "svg")
    assert dict(page.elements)["html"] == {"lang": "en"}


def strings(value, path=()):
    """Paths of all strings below."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from strings(each, (*path, key))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            yield from strings(each, (*path, place))
    elif isinstance(value, str):
        yield path


def test_what_files_say_is_text(tmp_path):
    cells = {"a": quality("teal", 0.4, text="a.txt", nll=[1.0, 2.0]), "b": quality("teal", 0.5, text="a.txt", nll=[1.0, 2.0])}
    cells["c"] = record({"suite": "analyze", "kind": "rank"}, {"lines": ["seen"]})
    cells["d"] = record({"suite": "refused", "preset": "cats", "sparsity": 0.5}, {"refused": "floor"})
    cells["e"] = quality("teal", 0.5, rows="1101", text=None)
    cells["e"]["metrics"]["tasks"][EVIL] = cells["e"]["metrics"]["tasks"].pop("words")
    for each in cells.values():
        for path in strings(each):
            if path[-1] not in ("suite", "rows", "acc", "acc_norm"):
                inner = each
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = EVIL
    html, _ = render(*read(write(tmp_path, **copy.deepcopy(cells))), EVIL)
    found = Page(html)
    assert sum(tag == "script" for tag, _ in found.elements) == 1
    assert "alert(1)" not in html.replace("&lt;script&gt;alert(1)&lt;/script&gt;", "")
    assert {attrs["aria-label"].startswith(EVIL) for tag, attrs in found.elements if tag == "svg"} == {True}


def test_the_same_files_give_the_same_bytes(folder, tmp_path):
    code = "import sys, pathlib, rsparse.report; rsparse.report.write_report(*map(pathlib.Path, sys.argv[1:]))"
    for name, seed in (("one", "1"), ("two", "2")):
        command = [sys.executable, "-c", code, str(folder), str(tmp_path / f"{name}.html")]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_an_old_page_stays_where_the_new_one_fails(folder, tmp_path, monkeypatch):
    out = tmp_path / "out.html"
    out.write_text("old")
    monkeypatch.setattr("rsparse.report.build.render", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(folder, out)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "results"]


@pytest.mark.parametrize("junk", [True, 10**400, float("nan"), [None], {"a": {}}], ids=["true", "huge", "nan", "list", "dict"])
def test_junk_in_a_record_is_no_mistake_of_the_program(tmp_path, monkeypatch, junk):
    monkeypatch.setattr("rsparse.report.sections.pareto.plot", lambda *arguments, **more: "")
    whole = quality("teal", 0.5, text="a.txt", nll=[1.0, 2.0], kl=0.1, rho=[0.5], criterion=["magnitude"])
    whole["metrics"] |= {
        "tasks": quality("teal", 0.5, rows="1101")["metrics"]["tasks"],
        "tokens_per_second": 3.0,
        "speedup": 1.2,
    }
    for part in ("config", "metrics", "run", "env"):
        for name in whole[part]:
            broken = copy.deepcopy(whole)
            broken[part][name] = junk
            write(tmp_path, good=whole, broken=broken)
            render(*read(tmp_path), "title")
