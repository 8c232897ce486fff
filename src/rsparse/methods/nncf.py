"""NNCF's activation sparsification (OpenVINO, `sparsify_activations`): magnitude, a level for each name pattern.

Its documentation's example, and the setting of its results on Llama-2-7B and Llama-3-8B, is 30 % for up_proj and
gate_proj and 50 % for down_proj, attention dense (Mixtral-8x7B: 40 % and 50 %); that is the default here. Departures:
levels are relative, scaled by one factor so that the asked total holds exactly; NNCF sets each as it is and
knows no total. Thresholds are settled by `sparsify` under the sparse model (source: an exponential moving average,
decay 0.2, of each calibration batch's quantile of |x|). Patterns are searched for in the linear's full name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rsparse.errors import RefusedError, RSparseError
from rsparse.methods._levels import MAX_LEVEL, check_grouping, recipe_of_levels
from rsparse.models.layout import unit_shapes
from rsparse.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEVELS = {".*up_proj.*": 0.3, ".*gate_proj.*": 0.3, ".*down_proj.*": 0.5}


def prepare(
    model: PreTrainedModel,
    sparsity: float,
    *,
    levels: Mapping[str, float] | str = LEVELS,
    grouping: str = "linear",
) -> Recipe:
    """`levels`: relative level by regular expression, or the string "PATTERN=LEVEL;PATTERN=LEVEL". Other linears stay dense."""
    check_grouping(grouping)
    shapes = unit_shapes(model, grouping)
    relative = _by_unit(_checked(levels), {name: tuple(linears) for name, (linears, _) in shapes.items()})
    sizes = {name: sum(linears.values()) * in_features for name, (linears, in_features) in shapes.items()}
    return recipe_of_levels(model, _scaled(relative, sizes, sparsity), method="nncf", criterion="magnitude", grouping=grouping)


def check(options: Mapping[str, Any]) -> None:
    """Raises RSparseError for levels that no model would take."""
    _checked(options.get("levels", LEVELS))


def _checked(levels: Mapping[str, float] | str) -> dict[re.Pattern[str], float]:
    """Compiled patterns with their levels. Raises RSparseError for what is no pattern or no level in [0, 1)."""
    if isinstance(levels, str):
        # The last '=' divides: a pattern may hold one, as in (?=...).
        pairs: list[tuple[str, object]] = [
            (pattern.strip(), level)
            for pattern, _, level in (part.rpartition("=") for part in levels.split(";") if part.strip())
        ]
    elif isinstance(levels, Mapping):
        pairs = list(levels.items())
    else:
        raise RSparseError(f"method nncf: levels must be a mapping or PATTERN=LEVEL;PATTERN=LEVEL, got {levels!r}")
    result = {}
    for pattern, level in pairs:
        try:
            value = float(level)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = -1.0
        if not (pattern and 0 <= value < 1):
            given = f"{pattern}={level}" if pattern else level
            raise RSparseError(f"method nncf: levels must be PATTERN=LEVEL with a level in [0, 1), got {given}")
        try:
            result[re.compile(pattern)] = value
        except re.error as error:
            raise RSparseError(f"method nncf: {pattern!r} is no regular expression ({error})") from None
    return result


def _by_unit(levels: Mapping[re.Pattern[str], float], units: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """The level of each unit, 0 where no pattern is found. A linear belongs to one pattern, a unit to one level."""
    matched: dict[str, str] = {}
    found: dict[str, float] = {}
    for pattern, level in levels.items():
        own = [name for linears in units.values() for name in linears if pattern.search(name)]
        if not own:
            raise RSparseError(f"method nncf: no linear of the model matches {pattern.pattern!r}")
        for name in own:
            if name in matched:
                raise RSparseError(f"method nncf: both {matched[name]!r} and {pattern.pattern!r} match {name}")
            matched[name], found[name] = pattern.pattern, level
    result = {}
    for unit, linears in units.items():
        own_levels = {found.get(name, 0.0) for name in linears}
        if len(own_levels) > 1:
            raise RSparseError(f"method nncf: the linears of group {unit} have different levels; use grouping 'linear'")
        result[unit] = own_levels.pop()
    return result


def _scaled(relative: Mapping[str, float], sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Levels times one factor, none above MAX_LEVEL, so that their weighted mean is `sparsity`."""
    wanted = sparsity * sum(sizes.values())
    reach = MAX_LEVEL * sum(size for name, size in sizes.items() if relative[name] > 0)
    if wanted > reach * (1 + 1e-12):
        raise RefusedError(
            f"method nncf: levels of at most {MAX_LEVEL} in the matched linears make "
            f"{reach / sum(sizes.values()):.3f} of all weights, and {sparsity:g} is asked; match more linears"
        )
    result = dict.fromkeys(sizes, 0.0)
    free = {name for name, level in relative.items() if level > 0}
    capped: set[str] = set()
    while free:
        rest = wanted - MAX_LEVEL * sum(sizes[name] for name in capped)
        factor = rest / sum(relative[name] * sizes[name] for name in free)
        over = {name for name in free if factor * relative[name] > MAX_LEVEL}
        if not over:
            return result | dict.fromkeys(capped, MAX_LEVEL) | {name: factor * relative[name] for name in free}
        free, capped = free - over, capped | over
    return result | dict.fromkeys(capped, MAX_LEVEL)
