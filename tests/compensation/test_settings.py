"""Settings of a fit: as a command line has them, and what a device can bear."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from rsparse.compensation import FitSettings
from rsparse.errors import RSparseError


def test_a_cpu_gets_less_than_an_eighth_of_the_work():
    whole, cpu = FitSettings.for_device("cuda"), FitSettings.for_device("cpu")
    assert whole == FitSettings() == FitSettings.for_device("xpu")
    assert (whole.steps, whole.batch_tokens, cpu.steps, cpu.batch_tokens) == (200, 4096, 60, 1024)
    assert cpu == replace(whole, steps=60, batch_tokens=1024, learning_rate=0.005, factor_rate=1.0)
    assert cpu.steps * cpu.batch_tokens < whole.steps * whole.batch_tokens / 8


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_parse_without_options_is_the_devices_default(device):
    assert FitSettings.parse({}, device) == FitSettings.for_device(device)


def test_parse_reads_each_as_its_type():
    given = {
        "steps": "7", "batch_tokens": "96", "learning_rate": "2e-3", "factor_rate": "3", "levels": "False", "factors": "true",
        "check_every": "3", "patience": "1", "seed": "12",
    }  # fmt: skip
    found = FitSettings.parse(given, "cpu")
    assert found == FitSettings(7, 96, 0.002, 3.0, False, True, 3, 1, 12)
    assert set(given) == set(asdict(found))  # an option for every setting
    assert [type(value) for value in asdict(found).values()] == [type(value) for value in asdict(FitSettings()).values()]
    assert FitSettings.parse({"levels": "false"}, "cpu") == replace(FitSettings.for_device("cpu"), levels=False)


@pytest.mark.parametrize(
    "name", ["colour", "parse", "for_device", "check_window", "__doc__", "__class__", "__dict__", "__module__", "", "Steps"]
)
def test_what_is_no_setting_is_refused(name):
    with pytest.raises(RSparseError, match=f"^compensate takes no option '{name}'$"):
        FitSettings.parse({name: "3"}, "cpu")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("steps", "many", "compensate: steps must be like 60, got 'many'"),
        ("steps", "2.5", "compensate: steps must be like 60, got '2.5'"),
        ("steps", "inf", "compensate: steps must be like 60, got 'inf'"),
        ("levels", "perhaps", "compensate: levels must be like True, got 'perhaps'"),
        ("learning_rate", "fast", "compensate: learning_rate must be like 0.005, got 'fast'"),
        ("steps", "0", "steps must be at least 1, got 0"),
        ("batch_tokens", "-1", "batch_tokens must be at least 1, got -1"),
        ("check_every", "0", "check_every must be at least 1, got 0"),
        ("patience", "0", "patience must be at least 1, got 0"),
        ("seed", "-1", "seed must be 0 or more, got -1"),
        ("learning_rate", "0", r"learning_rate must be in \(0, 1\], got 0.0"),
        ("learning_rate", "1.01", r"learning_rate must be in \(0, 1\], got 1.01"),
        ("learning_rate", "nan", r"learning_rate must be in \(0, 1\], got nan"),
        ("learning_rate", "inf", r"learning_rate must be in \(0, 1\], got inf"),
        ("factor_rate", "0", r"factor_rate must be in \(0, 100\], got 0.0"),
        ("factor_rate", "101", r"factor_rate must be in \(0, 100\], got 101.0"),
    ],
)
def test_values_out_of_range(name, text, says):
    with pytest.raises(RSparseError, match=f"^{says}$"):
        FitSettings.parse({name: text}, "cpu")


def test_the_ends_of_ranges_are_in():
    FitSettings(steps=1, batch_tokens=1, learning_rate=1, factor_rate=100, check_every=1, patience=1, seed=0)


def test_a_step_holds_a_window():
    settings = FitSettings(batch_tokens=48)
    settings.check_window(48)
    with pytest.raises(RSparseError, match=r"^batch_tokens 48 is less than one window of 49 tokens$"):
        settings.check_window(49)


def test_they_do_not_change():
    with pytest.raises(FrozenInstanceError):
        FitSettings().steps = 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1"),
        ({"check_every": 0}, "check_every must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"learning_rate": 0.0}, r"learning_rate must be in \(0, 1\]"),
        ({"learning_rate": 1.5}, "learning_rate"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"seed": -1}, "seed must be 0 or more"),
    ],
)
def test_settings_out_of_range(changes, says):
    with pytest.raises(RSparseError, match=says):
        FitSettings(**changes)


def test_settings_by_device_and_from_words():
    assert FitSettings.for_device("cuda") == FitSettings()
    small = FitSettings.for_device("cpu")
    assert small.steps * small.batch_tokens < FitSettings().steps * FitSettings().batch_tokens / 8
    words = {"steps": "7", "learning_rate": "0.5", "levels": "false", "factors": "True"}
    assert FitSettings.parse(words, "cpu") == replace(small, steps=7, learning_rate=0.5, levels=False)
    assert FitSettings.parse({}, "cuda") == FitSettings()
    for given, says in (
        ({"colour": "red"}, "takes no option 'colour'"),
        ({"__doc__": "red"}, "takes no option"),
        ({"parse": "red"}, "takes no option"),
        ({"steps": "many"}, "steps must be like 60, got 'many'"),
        ({"steps": "1.5"}, "steps must be like"),
        ({"levels": "1"}, "levels must be like True, got '1'"),
        ({"steps": "0"}, "steps must be at least 1"),
    ):
        with pytest.raises(RSparseError, match=says):
            FitSettings.parse(given, "cpu")
