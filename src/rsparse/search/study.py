"""An Optuna study as the record of a search: who takes which candidate, and what came out.

A candidate is a slot (generation, index). Its genome follows from the seed and the slots of earlier generations, so any worker
on any machine can make it; the study only says which slots are done, and which somebody works on. Workers sign their trial
every few seconds; one that was killed leaves a trial that nobody signs, and its slot is taken again: at once on its own
machine, where its process is gone, and after a minute elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from rsparse.errors import RSparseError
from rsparse.same import check_same

Slot = tuple[int, int]
POLL_SECONDS = 0.5
TRIES = 10  # to make the tables
SIGN_SECONDS = 10.0
LEASE_SECONDS = 60.0  # without a signature, beyond what clocks of several machines differ by


@dataclass(frozen=True)
class Done:
    """A finished slot: its fitness, or a lower bound that failed (`stopped`).

    `seconds` are the evaluation's, `factors_seconds` of the factors where its worker had to make them for it, `elapsed` all
    since the worker's last one, or since its start: other slots waited for and the study's own work are in it.
    """

    slot: Slot
    genome: list[float]
    value: float
    stopped: bool
    seconds: float = 0.0
    factors_seconds: float = 0.0
    elapsed: float = 0.0


class SearchStudy:
    """Opens or makes the study `name` in `storage`. Raises RSparseError where it is of another search, or cannot be reached."""

    def __init__(self, storage: str, name: str, settings: dict[str, Any]) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._file = _file(storage)
        self._guard("open", lambda: self._open(storage, name, settings))

    def _open(self, storage: str, name: str, settings: dict[str, Any]) -> None:
        self.study = _created(storage, name)
        there = self.study.user_attrs.get("settings")
        if there is None:
            self.study.set_user_attr("settings", settings)
            return
        _compare(name, there, settings, {*there, *settings})

    def done(self) -> dict[Slot, Done]:
        """Finished slots. Of two trials of one slot, which are equal, the first counts."""
        found: dict[Slot, Done] = {}
        for trial in self._trials():
            if trial.state == TrialState.COMPLETE and trial.value is not None and "slot" in trial.user_attrs:
                attributes = trial.user_attrs
                slot = (int(attributes["slot"][0]), int(attributes["slot"][1]))
                seconds = attributes.get("seconds", ())
                found.setdefault(slot, Done(slot, attributes["genome"], trial.value, bool(attributes["stopped"]), *seconds))
        return found

    def claim(self, generation: int, population: int) -> Slot | None:
        """A slot of `generation` that nobody has done or works on, or None where the others are at the last ones."""
        while True:
            taken = {tuple(t.user_attrs["slot"]) for t in self._trials() if "slot" in t.user_attrs and _holds(t)}
            free = [(generation, index) for index in range(population) if (generation, index) not in taken]
            if not free:
                return None
            self._guard("write to", functools.partial(self._sign_up, free[0]))
            # Of two who take one slot at once, the lower number keeps it: slot and number become visible together.
            rivals = (t for t in self._trials() if t.number < self._trial.number and _holds(t))
            if all(tuple(t.user_attrs.get("slot", ())) != free[0] for t in rivals):
                return free[0]
            self.give_up()

    def _sign_up(self, slot: Slot) -> None:
        attributes = {"worker": [socket.gethostname(), os.getpid()], "signed": time.time(), "slot": list(slot)}
        trial = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        # Not `ask`, after which a trial has its number but, for a while, no slot: two could keep one.
        self._trial = optuna.Trial(self.study, self.study._storage.create_new_trial(self.study._study_id, trial))

    @contextlib.contextmanager
    def signing(self) -> Iterator[None]:
        """Sign the slot claimed last for as long as the block runs."""
        over, trial = threading.Event(), self._trial

        def sign() -> None:
            while not over.wait(SIGN_SECONDS):
                with contextlib.suppress(Exception):  # a storage that is gone shows when the result is written
                    trial.set_user_attr("signed", time.time())

        thread = threading.Thread(target=sign, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def tell(self, genome: list[float], value: float, stopped: bool, seconds: Sequence[float] = ()) -> None:
        """The result of the slot claimed last; `seconds` are the three of `Done`."""
        if not math.isfinite(value):
            self.give_up()
            raise RSparseError(f"the fitness of candidate {self._trial.user_attrs['slot']} is {value}; the study is as it was")

        def write() -> None:
            self._trial.set_user_attr("genome", genome)
            self._trial.set_user_attr("stopped", stopped)
            self._trial.set_user_attr("seconds", list(seconds))
            self.study.tell(self._trial, value)

        self._guard("write to", write)

    def give_up(self) -> None:
        """Leave the slot claimed last to others."""
        self._guard("write to", lambda: self.study.tell(self._trial, state=TrialState.FAIL))

    def wait(self) -> None:
        time.sleep(POLL_SECONDS)

    def _trials(self) -> list[FrozenTrial]:
        found: list[FrozenTrial] = self._guard("read", lambda: self.study.get_trials(deepcopy=False))
        return found

    def _guard(self, what: str, action: Callable[[], Any]) -> Any:
        with _storage_errors(what):
            if what != "open" and self._file and not self._file.exists():  # a journal would go on in a new, headless file
                raise RSparseError(f"cannot {what} the study's storage: {self._file} is gone")
            return action()


def check_study(storage: str, name: str, settings: dict[str, Any]) -> None:
    """Raises RSparseError where the study is there and is of another search by `settings`, which may be some of its own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = _file(storage)
    if file and not file.exists():
        return
    with _storage_errors("open"):
        try:
            there = optuna.load_study(storage=_storage(storage), study_name=name).user_attrs.get("settings")
        except KeyError:  # no such study yet
            return
    if there is not None:
        _compare(name, there, settings, set(settings))


def _compare(name: str, there: dict[str, Any], here: dict[str, Any], keys: set[str]) -> None:
    check_same(f"the study {name!r} is of another search", there, here, keys, "choose another --study or --storage")


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """SQLAlchemy's, the driver's, the journal's: all mean that the storage is not there."""
    try:
        yield
    except RSparseError:
        raise
    except Exception as error:
        found = error.__cause__ or error  # Optuna's own line guesses at a value that is too long
        reason = (str(found).strip().splitlines() or [type(found).__name__])[0]
        kept = "" if what == "open" else "; what was finished is kept there"
        raise RSparseError(f"cannot {what} the study's storage ({reason[:200]}){kept}") from error


def _holds(trial: FrozenTrial) -> bool:
    """Whether a trial's slot is done, or in the hands of a worker that lives."""
    if trial.state == TrialState.COMPLETE:
        return True
    attributes = trial.user_attrs
    if trial.state != TrialState.RUNNING or "slot" not in attributes:
        return False
    host, pid = attributes["worker"]
    if host == socket.gethostname() and not _runs(int(pid)):
        return False
    return time.time() - float(attributes["signed"]) < LEASE_SECONDS


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):  # a killed child is a zombie until its parent asks for it
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _created(storage: str, name: str) -> optuna.Study:
    """The study, opened or made. Workers that start at once all make the tables of a new database, and all but one fail."""
    for attempt in range(TRIES):
        try:
            return optuna.create_study(storage=_storage(storage), study_name=name, load_if_exists=True)
        except Exception as error:
            if attempt == TRIES - 1 or not any(word in str(error) for word in ("already exists", "UNIQUE", "unique")):
                raise
            time.sleep(random.uniform(0, POLL_SECONDS))
    raise AssertionError("unreachable")


def _storage(url: str) -> Any:
    if file := _file(url):
        file.parent.mkdir(parents=True, exist_ok=True)
    if url.startswith("journal:"):
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(url.removeprefix("journal:")))
    return url


def _file(url: str) -> Path | None:
    """The file that a storage is, where it is one."""
    name = url.partition(":")[2].removeprefix("///").partition("?")[0]
    return Path(name) if name and url.startswith(("sqlite:///", "journal:")) else None
