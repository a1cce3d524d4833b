"""Numbers in words, and axes, lines and dots of a chart in percent of its plot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


def number(value: Any, digits: int = 1, signed: bool = False) -> str:
    """A number with a true minus; a dash for one that is missing, "0.0" rather than "-0.0"."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    rounded = round(value, digits) or 0.0  # no negative zero
    return f"{rounded:{'+' if signed and rounded else ''},.{digits}f}".replace("-", "−")


def points(values: Sequence[Any]) -> str:
    """Scores of seeds, 0 to 1, as mean ± standard deviation in points."""
    mean, sd = mean_sd(values)
    return number(mean) + ("" if math.isnan(sd) else f" ± {number(sd)}")


def change(interval: Sequence[Any]) -> str:
    """A difference with its interval, in points."""
    estimate, low, high = (number(100 * v, signed=True) for v in floats(interval))
    return f"{estimate} ({low} to {high})"


def floats(values: Iterable[Any]) -> list[float]:
    """JSON numbers; a missing one is NaN."""
    return [math.nan if value is None else float(value) for value in values]


def mean_sd(values: Sequence[Any]) -> tuple[float, float]:
    """Mean and standard deviation in points of the seeds that have a score."""
    known = [100 * value for value in floats(values) if not math.isnan(value)]
    if not known:
        return math.nan, math.nan
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else math.nan


class Axis(NamedTuple):
    """A range of values and where on the plot each lies."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Percent of the way from `low` to `high`."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, about: int = 5, signed: bool = False) -> list[tuple[float, str]]:
        """Positions and labels of round values."""
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * raw)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        values = [i * step for i in range(first, last + 1)]
        return [(self.at(value), number(value, digits, signed)) for value in values]


def axis(values: Iterable[float]) -> Axis:
    """An axis that holds all values that are finite, with a little room at both ends."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or max(0.01 * abs(low), 0.5)
    return Axis(low - room, high + room)


def line(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """The `points` of an SVG polyline, y upwards; values that are not finite are left out."""
    known = [(x.at(a), round(100 - y.at(b), 2)) for a, b in points if math.isfinite(b)]
    return " ".join(f"{a:g},{b:g}" for a, b in known)


def dots(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> list[tuple[float, float]]:
    """Positions of the points that lie on the plot."""
    inside = [(a, b) for a, b in points if y.low <= b <= y.high]
    return [(x.at(a), round(100 - y.at(b), 2)) for a, b in inside]
