"""A study as the record of who does what: claims, deaths and signatures."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time

import optuna
import pytest

from rsparse.errors import RSparseError
from rsparse.search import study as module
from rsparse.search.study import LEASE_SECONDS, Done, SearchStudy, check_study
from tests.search.studies import KINDS, SETTINGS, opened, worked


def states(storage):
    found = optuna.load_study(study_name="search", storage=module._storage(storage))
    return [trial.state.name for trial in found.trials]


def changed(storage, number, **attributes):
    """As another machine would have written it."""
    found = optuna.load_study(study_name="search", storage=module._storage(storage))
    trial = next(trial for trial in found.trials if trial.number == number)
    for name, value in attributes.items():
        found._storage.set_trial_user_attr(trial._trial_id, name, value)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_slots_are_done_one_after_another_and_found_again(storage):
    study = opened(storage)
    assert study.done() == {}
    assert worked(study, 2.0) == (0, 0)
    assert worked(study, 1 / 3, stopped=True) == (0, 1)
    assert worked(study, 0.1) == (0, 2)
    assert study.claim(0, 3) is None
    assert worked(study, 4.0, generation=1) == (1, 0)
    expected = {
        (0, 0): Done((0, 0), [0.25, 1.0], 2.0, False),
        (0, 1): Done((0, 1), [0.25, 1.0], 1 / 3, True),
        (0, 2): Done((0, 2), [0.25, 1.0], 0.1, False),
        (1, 0): Done((1, 0), [0.25, 1.0], 4.0, False),
    }
    assert study.done() == expected
    assert opened(storage).done() == expected


def test_genes_come_back_to_the_last_digit(storage):
    genes = [0.123457, 1.0, 0.0, 0.1, 0.3, 0.7] * 40
    study = opened(storage)
    study.claim(0, 1)
    study.tell(genes, 3.141592653589793, False)
    (found,) = opened(storage).done().values()
    assert found.genome == genes
    assert found.value == 3.141592653589793


def test_what_a_living_worker_holds_is_not_given_again(storage):
    first, second = opened(storage), opened(storage)
    assert first.claim(0, 2) == (0, 0)
    assert second.claim(0, 2) == (0, 1)
    assert opened(storage).claim(0, 2) is None
    assert first.done() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_never_both_keep_a_slot(tmp_path, kind):
    storage, together, kept = f"{kind}{tmp_path}/study", threading.Barrier(3), []
    opened(storage)

    def work():
        study = opened(storage)
        together.wait()
        while (slot := study.claim(0, 8)) is not None:
            kept.append(slot)
            study.tell([1.0], 1.0, False)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kept) == [(0, index) for index in range(8)]


def test_a_slot_is_visible_as_soon_as_its_number_is(storage, monkeypatch):
    """Else a second worker, who looks in between, keeps the slot, and the first, of the lower number, keeps it too."""
    study, seen = opened(storage), []
    real = optuna.Trial

    def looking(of, trial_id):
        seen.append(opened(storage).claim(0, 1))
        return real(of, trial_id)

    monkeypatch.setattr(optuna, "Trial", lambda *args: monkeypatch.undo() or looking(*args))
    assert study.claim(0, 1) == (0, 0)
    assert seen == [None]


def test_the_lower_number_keeps_a_slot_that_two_take_at_once(storage, monkeypatch):
    first, second = opened(storage), opened(storage)
    real = second._sign_up
    order = []

    def overtaken(slot):
        if not order:
            order.append(first.claim(0, 3))
        real(slot)

    monkeypatch.setattr(second, "_sign_up", overtaken)
    assert second.claim(0, 3) == (0, 1)
    assert order == [(0, 0)]
    assert states(storage) == ["RUNNING", "FAIL", "RUNNING"]


def test_a_claim_that_meets_many_rivals_ends(storage, monkeypatch):
    """Each round either keeps a slot or finds one more taken: no more rounds than slots."""
    study, rounds = opened(storage), []
    real = study._sign_up

    def overtaken(slot):
        rounds.append(opened(storage).claim(0, 4))
        real(slot)

    monkeypatch.setattr(study, "_sign_up", overtaken)
    assert study.claim(0, 4) is None
    assert rounds == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_a_dead_workers_slot_is_taken_at_once_on_its_machine(storage):
    study = opened(storage)
    study.claim(0, 1)
    assert opened(storage).claim(0, 1) is None
    changed(storage, 0, worker=[module.socket.gethostname(), dead_pid()])
    assert worked(opened(storage), population=1) == (0, 0)


def test_a_killed_child_that_nobody_asked_for_is_dead():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert module._runs(process.pid)
    process.kill()
    deadline = time.time() + 5
    while module._runs(process.pid) and time.time() < deadline:
        time.sleep(0.01)
    assert not module._runs(process.pid)  # a zombie until wait()
    process.wait()
    assert not module._runs(process.pid)
    assert module._runs(os.getpid())
    assert module._runs(1)


def test_a_silent_workers_slot_is_taken_after_a_while_elsewhere(storage, monkeypatch):
    opened(storage).claim(0, 1)
    changed(storage, 0, worker=["elsewhere", dead_pid()])
    now = time.time()
    for later, slot in [(LEASE_SECONDS - 5, None), (LEASE_SECONDS + 5, (0, 0))]:
        monkeypatch.setattr(module.time, "time", lambda later=later: now + later)
        assert opened(storage).claim(0, 1) == slot


def test_a_process_of_the_same_number_holds_no_slot_for_ever(storage, monkeypatch):
    opened(storage).claim(0, 1)
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + LEASE_SECONDS + 5)
    assert opened(storage).claim(0, 1) == (0, 0)


def test_a_worker_signs_as_long_as_it_works(storage, monkeypatch):
    monkeypatch.setattr(module, "SIGN_SECONDS", 0.02)
    study = opened(storage)
    study.claim(0, 1)
    signed = lambda: opened(storage)._trials()[0].user_attrs["signed"]  # noqa: E731
    first, threads = signed(), threading.active_count()
    with study.signing():
        deadline = time.time() + 5
        while signed() == first and time.time() < deadline:
            time.sleep(0.02)
        assert signed() > first
    assert threading.active_count() == threads
    last = signed()
    time.sleep(0.1)
    assert signed() == last
    study.tell([1.0], 1.0, False)


def test_a_storage_that_cannot_be_signed_to_does_not_stop_the_work(sqlite, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SIGN_SECONDS", 0.01)
    study = opened(sqlite)
    study.claim(0, 1)
    (tmp_path / "study").rename(tmp_path / "away")
    with study.signing():
        time.sleep(0.1)
    (tmp_path / "away").rename(tmp_path / "study")
    study.tell([1.0], 1.0, False)
    assert len(opened(sqlite).done()) == 1


def test_what_was_given_up_is_taken_again(storage):
    study = opened(storage)
    study.claim(0, 1)
    study.give_up()
    assert study.done() == {}
    assert worked(opened(storage), population=1) == (0, 0)
    assert states(storage) == ["FAIL", "COMPLETE"]


def test_of_two_results_of_a_slot_the_first_counts(storage, monkeypatch):
    slow, quick = opened(storage), opened(storage)
    slow.claim(0, 2)
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + LEASE_SECONDS + 5)
    assert quick.claim(0, 2) == (0, 0)
    quick.tell([1.0], 1.5, False)
    slow.tell([1.0], 1.25, False)
    for study in (slow, quick, opened(storage)):
        assert study.done() == {(0, 0): Done((0, 0), [1.0], 1.25, False)}
    assert quick.claim(0, 2) == (0, 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_fitness_that_is_not_finite_is_refused(storage, value):
    study = opened(storage)
    worked(study)
    study.claim(0, 3)
    with pytest.raises(RSparseError, match=rf"fitness of candidate \[0, 1\] is {value}"):
        study.tell([1.0], value, False)
    assert list(opened(storage).done()) == [(0, 0)]
    assert worked(opened(storage)) == (0, 1)


@pytest.mark.parametrize("changes", [{"sparsity": 0.4}, {"more": 1}])
def test_a_study_of_another_search_is_refused(storage, changes):
    worked(opened(storage))
    with pytest.raises(RSparseError, match="the study 'search' is of another search: its ") as caught:
        opened(storage, **changes)
    assert next(iter(changes)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(opened(storage).done()) == 1
    assert SearchStudy(storage, "another", SETTINGS | changes).done() == {}


def test_a_study_that_lacks_a_setting_is_of_another_search(storage):
    opened(storage, extra=3)
    with pytest.raises(RSparseError, match="its extra is 3, here it is None"):
        opened(storage)


def test_trials_of_others_in_the_study_do_not_count(storage):
    study = opened(storage)
    study.study.tell(study.study.ask(), 1.0)
    study.study.ask()
    assert study.done() == {}
    assert worked(study) == (0, 0)


def test_seconds_come_back(storage):
    study = opened(storage)
    study.claim(0, 3)
    study.tell([1.0], 2.0, False, (0.5, 3.0, 4.25))
    found = opened(storage).done()[0, 0]
    assert (found.seconds, found.factors_seconds, found.elapsed) == (0.5, 3.0, 4.25)


def test_a_study_is_checked_by_what_is_known_of_it(storage, tmp_path):
    opened(storage)
    before = (tmp_path / "study").read_bytes()
    check_study(storage, "search", SETTINGS)
    check_study(storage, "search", {"sparsity": 0.5})
    check_study(storage, "another", {"sparsity": 0.6})  # not there yet
    with pytest.raises(RSparseError) as early:
        check_study(storage, "search", {"sparsity": 0.6})
    assert (tmp_path / "study").read_bytes() == before
    with pytest.raises(RSparseError) as late:
        opened(storage, sparsity=0.6)
    assert str(early.value) == str(late.value)
    assert "its sparsity is 0.5, here it is 0.6" in str(early.value)


@pytest.mark.parametrize("kind", KINDS)
def test_checking_makes_no_storage(tmp_path, kind):
    check_study(f"{kind}{tmp_path}/deep/study", "search", SETTINGS)
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken").write_bytes(b"what is this\n" * 400)
    with pytest.raises(RSparseError, match=r"^cannot open the study's storage \(.*\)$"):
        check_study(f"{kind}{tmp_path}/broken", "search", SETTINGS)
