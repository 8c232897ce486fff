"""Storages of a study that cannot be opened, or that go in the middle."""

from __future__ import annotations

import optuna
import pytest

from rsparse.errors import RSparseError
from rsparse.search import study as module
from rsparse.search.study import SearchStudy
from tests.search.studies import KINDS, opened, worked


@pytest.mark.parametrize(
    ("storage", "says"),
    [
        ("postgresql://127.0.0.1:9/none", "cannot open the study's storage"),
        ("nonsense", "URL"),
        ("sqlite:///{}/broken", "not a database"),
        ("journal:{}/broken", "cannot open"),
        ("sqlite:///{}", "cannot open"),
        ("journal:{}", "directory"),
        ("sqlite:///{}/broken/new.db", "broken"),
    ],
)
def test_storages_that_cannot_be_opened(tmp_path, storage, says):
    (tmp_path / "broken").write_bytes(b"what is this\n" * 400)
    with pytest.raises(RSparseError, match=says) as caught:
        opened(storage.format(tmp_path))
    assert "\n" not in str(caught.value)
    assert (tmp_path / "broken").read_bytes() == b"what is this\n" * 400


def test_the_storages_folder_is_made(tmp_path):
    for kind in KINDS:
        assert worked(opened(f"{kind}{tmp_path}/{kind[0]}/deep/study")) == (0, 0)


def test_workers_that_make_a_database_at_once_all_get_it(sqlite, monkeypatch):
    """The race is played: the first tries find tables that another process is making."""
    real, fails = optuna.create_study, ["table studies already exists", "UNIQUE constraint failed: alembic_version"]

    def racing(**options):
        if fails:
            raise optuna.exceptions.StorageInternalError(fails.pop())
        return real(**options)

    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(optuna, "create_study", racing)
    assert worked(opened(sqlite)) == (0, 0)
    fails.append("disk I/O error")
    with pytest.raises(RSparseError, match="disk I/O"):
        opened(sqlite)


def tell(study):
    study.tell([1.0], 1.0, False)


@pytest.mark.parametrize("then", [tell, SearchStudy.done, lambda study: study.claim(0, 3), SearchStudy.give_up])
@pytest.mark.parametrize("harm", ["removed", "broken"])
def test_a_database_that_goes_in_the_middle(storage, tmp_path, monkeypatch, harm, then):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # Optuna's between its tries
    study = opened(storage)
    worked(study)
    study.claim(0, 3)
    file = tmp_path / "study"
    content = file.read_bytes()
    file.unlink() if harm == "removed" else file.write_bytes(b"garbage\n" * 2000)
    with pytest.raises(RSparseError, match="storage") as caught:
        then(study)
    assert "\n" not in str(caught.value)
    assert "exceeding max length" not in str(caught.value)
    assert harm == "broken" or "is gone" in str(caught.value)
    assert file.exists() == (harm == "broken")  # no new, headless one
    file.write_bytes(content)  # it comes back
    assert list(opened(storage).done()) == [(0, 0)]


def test_a_study_that_somebody_deletes(storage):
    study = opened(storage)
    worked(study)
    optuna.delete_study(study_name="search", storage=module._storage(storage))
    with pytest.raises(RSparseError, match="cannot read"):
        study.done()
    with pytest.raises(RSparseError, match="cannot"):
        study.claim(0, 3)
