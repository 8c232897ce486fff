"""A method with its options in one word, as a command line and a file name have it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rsparse.compensation import FitSettings
from rsparse.errors import RSparseError
from rsparse.methods._presets import PRESETS
from rsparse.methods._registry import check, makes_recipe

Options = tuple[tuple[str, str], ...]
FIT = "compensate"


@dataclass(frozen=True)
class MethodSpec:
    """`name` of a method and its `options`; `fit` are those of a compensation after it, None where there is none; `preset` is
    the name that stood for all of it. Options are strings by name. `label` names it in files, tables and plots."""

    name: str
    options: Options = ()
    fit: Options | None = None
    preset: str = ""

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """From `rsparse`, `rsparse:rho=0.9,fit=svd`, `teal+compensate`, `teal+compensate:steps=100`, or a preset's name.

        Raises RSparseError for another form, and where `check` does.
        """
        text = text.strip()
        preset = text if text in PRESETS else ""
        head, plus, tail = PRESETS.get(text, text).partition("+")
        name, options = _parts(head, text)
        check(name, options=dict(options))
        if not plus:
            return cls(name, options, None, preset)
        what, fit = _parts(tail, text)
        if what != FIT:
            raise RSparseError(f"method {text!r}: only +{FIT} can follow a method, not +{what}")
        if name == "dense":
            raise RSparseError("the dense model has nothing to compensate")
        if not makes_recipe(name):
            raise RSparseError(f"method {name} is no recipe for the model's linears: it cannot be compensated")
        FitSettings.parse(dict(fit), "cpu")
        return cls(name, options, fit, preset)

    @property
    def label(self) -> str:
        """`rsparse-rho0.9-fit-svd`, `teal-compensate-steps100`: letters, digits, dots and dashes alone."""
        if self.preset:
            return self.preset
        fit = () if self.fit is None else (FIT, *_words(self.fit))
        return "-".join([self.name, *_words(self.options), *fit])


def _parts(word: str, text: str) -> tuple[str, Options]:
    name, colon, rest = word.strip().partition(":")
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (each.strip() for each in part.partition("="))
        if not (key and equals and value) or key in options:
            raise RSparseError(f"method {text!r}: expected NAME or NAME:OPTION=VALUE,OPTION=VALUE")
        options[key] = value
    return name.strip(), tuple(options.items())


def _words(options: Options) -> list[str]:
    words = [f"{key}{value}" if value[0].isdigit() else f"{key}-{value}" for key, value in sorted(options)]
    return [re.sub(r"[^\w.-]+", "_", word) for word in words]
