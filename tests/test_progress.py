"""Lines for logs, a bar for terminals."""

from __future__ import annotations

import io
import sys

import pytest

from rsparse import progress as module
from rsparse.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def alarm(monkeypatch):
    """Timers that a test rings."""
    timers = []

    class Timer:
        def __init__(self, seconds, ring):
            self.seconds, self.ring, self.state = seconds, ring, "made"
            timers.append(self)

        def start(self):
            self.state = "started"

        def cancel(self):
            self.state = "cancelled"

    monkeypatch.setattr(module.threading, "Timer", Timer)
    return timers


def count(bar, clock, steps, seconds):
    with bar:
        for _ in range(steps):
            clock[0] += seconds
            bar.update()


def test_short_work_writes_nothing_into_a_log(capsys, clock):
    count(progress(10, "sparsify"), clock, 10, 2)
    assert capsys.readouterr().err == ""


def test_long_work_writes_a_line_now_and_then(capsys, clock):
    count(progress(100, "calibrate", unit="window"), clock, 40, 2)  # 80 seconds
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "calibrate: 15/100 windows, 0.5 windows/s, 02:50 left",
        "calibrate: 30/100 windows, 0.5 windows/s, 02:20 left",
    ]


def test_slow_steps_write_a_line_each(capsys, clock):
    count(progress(3, "sparsify", unit="block"), clock, 3, 200)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"sparsify: {done}/3 blocks" for done in (1, 2, 3)]


def test_a_first_line_comes_before_the_first_item(capsys, clock, alarm):
    with progress(30, "allocate", unit="trial") as bar:
        (timer,) = alarm
        assert (timer.state, timer.seconds, timer.daemon) == ("started", module.FIRST_SECONDS, True)
        clock[0] += 5
        timer.ring()
        clock[0] += 29
        bar.update()  # a line was written 29 seconds ago
        clock[0] += 1
        bar.update()
    assert timer.state == "cancelled"
    assert capsys.readouterr().err.splitlines() == [
        "allocate: 0/30 trials",
        "allocate: 2/30 trials, 0.0571 trials/s, 08:10 left",
    ]


def test_the_first_line_says_what_is_done_by_then(capsys, clock, alarm):
    with progress(30, "calibrate", unit="window") as bar:
        clock[0] += 5
        bar.update(10)
        alarm[0].ring()
    assert capsys.readouterr().err == "calibrate: 10/30 windows, 2 windows/s, 00:10 left\n"


def test_a_real_alarm(capsys, monkeypatch):
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.01)
    with progress(3, "sparsify", unit="block") as bar:
        bar._first.join()
    assert capsys.readouterr().err == "sparsify: 0/3 blocks\n"


def test_what_was_done_before_makes_no_rate(capsys, clock):
    with progress(100, "allocate", unit="trial", done=80) as bar:
        clock[0] += 40
        bar.update()
    assert capsys.readouterr().err == "allocate: 81/100 trials, 0.025 trials/s, 12:40 left\n"


def test_updates_count_what_they_say(capsys, clock):
    with progress(64, "wikitext", unit="window") as bar:
        clock[0] += 60
        bar.update(16)
    assert capsys.readouterr().err == "wikitext: 16/64 windows, 0.267 windows/s, 03:00 left\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress(4, "sparsify", unit="block") as bar:
        bar.update(4)
    assert "100%" in stream.getvalue()
    assert "4/4" in stream.getvalue()
    with progress(100, "allocate", unit="trial", done=80) as bar:
        assert (bar.n, bar.initial) == (80, 80)
