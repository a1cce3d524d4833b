"""What the numbers of a config may be, where the name of a field says it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from genaug.types import UserError


class Bound(NamedTuple):
    """What a number must be, as a test and in words."""

    holds: Callable[[float], bool]
    words: str


_SHARE = Bound(lambda x: 0 <= x < 1, "from 0 to below 1")
_LEAST_0 = Bound(lambda x: 0 <= x < math.inf, "0 or more")
_ABOVE_0 = Bound(lambda x: 0 < x < math.inf, "above 0")
_LEAST_1 = Bound(lambda x: x >= 1, "at least 1")

BOUNDS = {
    "learning_rate": _LEAST_0,
    "b1": _SHARE,
    "b2": _SHARE,
    "momentum": _SHARE,
    "weight_decay": _LEAST_0,
    "clip_norm": _ABOVE_0,
    "warmup_steps": _LEAST_0,
    "hidden": _LEAST_1,
    "features": _LEAST_1,
    "score_samples": _LEAST_1,
    "ema_decay": _SHARE,
    "beta": _LEAST_0,
    "augment": _LEAST_0,
}
"""By the name of a field, in any dataclass: of optimizers, layers, and what families share."""


def check_numbers(config: Any) -> None:
    """Refuse what is no number, and what no optimizer or layer can use.

    config: a dataclass of dataclasses, tuples and values.
    """
    for path, name, value in _numbers(config, ""):
        bound = BOUNDS.get(name)
        if math.isnan(value):
            raise UserError(f"{path} is nan; it must be {bound.words if bound else 'a number'}.")
        if bound and not bound.holds(value):
            raise UserError(f"{path} is {value}; it must be {bound.words}.")


def _numbers(value: Any, path: str, name: str = "") -> Iterator[tuple[str, str, float]]:
    """Every number with where it stands, as on the command line, and the name of its field."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            where = f"{path}.{field.name}".lstrip(".").replace("_", "-")
            yield from _numbers(getattr(value, field.name), where, field.name)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _numbers(one, path, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, name, value
