"""A method with its options in one word, as a command line and a file name have it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rsparse.errors import RSparseError
from rsparse.methods._registry import check


@dataclass(frozen=True)
class MethodSpec:
    """`name` of a method and its `options` by name, all strings; `label` names it in files, tables and plots."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> MethodSpec:
        """From `rsparse` or `rsparse:rho=0.9,fit=svd`. Raises RSparseError for another form, and where `check` does."""
        name, colon, rest = text.strip().partition(":")
        check(name)
        options: dict[str, str] = {}
        for part in rest.split(",") if colon else []:
            key, equals, value = (word.strip() for word in part.partition("="))
            if not (key and equals and value) or key in options:
                raise RSparseError(f"method {text!r}: expected NAME or NAME:OPTION=VALUE,OPTION=VALUE")
            options[key] = value
        check(name, options=dict(options))
        return cls(name, tuple(options.items()))

    @property
    def label(self) -> str:
        """`rsparse-rho0.9-fit-svd`: letters, digits, dots and dashes alone."""
        words = [f"{key}{value}" if value[0].isdigit() else f"{key}-{value}" for key, value in sorted(self.options)]
        return "-".join([self.name, *(re.sub(r"[^\w.-]+", "_", word) for word in words)])
