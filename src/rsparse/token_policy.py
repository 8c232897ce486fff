"""Which tokens run sparse: part of every accuracy figure."""

from __future__ import annotations

from dataclasses import dataclass

from rsparse.errors import RSparseError

KINDS = ("all", "decode", "last_fraction", "dense")


@dataclass(frozen=True)
class TokenPolicy:
    """Decides for each token whether a linear runs dense (`W x + b`) or sparse.

    `all`: every token but the first `sink_tokens` of a sequence is sparse. `decode`: the prompt is dense,
    what follows is sparse. `last_fraction:F`: the last F of a sequence is sparse (the paper's code uses
    F = 0.1, TEAL 0.5). `dense`: nothing is sparse. Sinks stay dense under every kind.
    """

    kind: str = "all"
    fraction: float | None = None
    sink_tokens: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise RSparseError(f"token policy {self.kind!r} is unknown; choose one of all, decode, last_fraction:F, dense")
        if self.kind == "last_fraction" and self.fraction is None:
            raise RSparseError("token policy last_fraction needs its share, as in last_fraction:0.1")
        if self.kind != "last_fraction" and self.fraction is not None:
            raise RSparseError(f"token policy {self.kind} takes no share; only last_fraction does")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise RSparseError(f"token policy last_fraction needs a share in (0, 1], got {self.fraction}")
        if self.sink_tokens < 0:
            raise RSparseError(f"sink_tokens must be 0 or more, got {self.sink_tokens}")

    @classmethod
    def parse(cls, text: str, sink_tokens: int = 1) -> TokenPolicy:
        """Read `all`, `decode`, `dense` or `last_fraction:0.1`."""
        kind, _, share = text.partition(":")
        try:
            fraction = float(share) if share else None
        except ValueError:
            raise RSparseError(f"token policy {text!r}: {share!r} is not a number") from None
        return cls(kind, fraction, sink_tokens)

    def __str__(self) -> str:
        return self.kind if self.fraction is None else f"{self.kind}:{self.fraction:g}"
