"""Two ways to one number, in interleaved pairs, as lines of a table: the machinery of comparisons.

A ratio is peer / ours of one pair (above 1: ours is faster). Who goes first alternates.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

HEAD = (
    "| what | peer | difference (at most) | peer / ours (min to max) | wanted | ours, s | peer, s "
    "| held | remarks |"
)
RULE = "|---|---|---|---|---|---|---|---|---|"
NOT_MEASURED = "not measured"


class Agreement(NamedTuple):
    """How far two results lie apart, and what a reader should know about it."""

    difference: float
    remark: str = ""


class Comparison(NamedTuple):
    """Two ways to the same result, each blocking; their inputs are ready."""

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    compare: Callable[[Any, Any], Agreement]
    remark: str = ""


class Row(NamedTuple):
    """A line of the table before it is measured.

    name: what `--only` takes; rows may share it.
    tolerance: the difference that is still agreement.
    wanted: the ratio at full size, None where none was set.
    make: whether small sizes are asked for in; raises `ModuleNotFoundError` without the peer.
    most_pairs: where a call of the peer takes minutes.
    """

    name: str
    title: str
    peer: str
    tolerance: float
    wanted: float | None
    make: Callable[[bool], Comparison]
    most_pairs: int | None = None


class Measured(NamedTuple):
    """What came out; seconds of pair i are `ours[i]` and `peer[i]`."""

    agreement: Agreement
    ours: list[float]
    peer: list[float]
    remark: str = ""

    @property
    def ratios(self) -> list[float]:
        """peer / ours, a pair each."""
        return [theirs / own for own, theirs in zip(self.ours, self.peer, strict=True)]


def relative(got: Any, want: Any) -> float:
    """The largest difference over the largest value; of numbers, the relative difference."""
    scale = float(np.abs(want).max())
    return float(np.abs(np.asarray(got) - np.asarray(want)).max()) / (scale or 1.0)


def measure(
    comparison: Comparison, pairs: int, clock: Callable[[], float] = time.perf_counter
) -> Measured:
    """Compare the results of a first call, which also compiles and warms up, then time pairs."""
    sides = comparison.ours, comparison.peer
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Peers' own; what they print would break the table.
        agreement = comparison.compare(*[side() for side in sides])
        seconds: tuple[list[float], list[float]] = ([], [])
        for i in range(pairs):
            for which in (0, 1) if i % 2 == 0 else (1, 0):
                began = clock()
                sides[which]()
                seconds[which].append(clock() - began)
    return Measured(agreement, *seconds, comparison.remark)


def run(row: Row, pairs: int, quick: bool) -> str:
    """Make, measure and write a row; a peer that is not there or fails is a row that says so."""
    pairs = min(pairs, row.most_pairs or pairs)
    try:
        return line(row, measure(row.make(quick), pairs), quick)
    except ModuleNotFoundError as error:
        return without(row, f"{NOT_MEASURED}: {error.name} is not installed")
    except Exception as error:  # A peer's may be any; the other rows are still measured.
        said = " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())
        return without(row, f"{NOT_MEASURED}: {said}")


def line(row: Row, measured: Measured, quick: bool) -> str:
    """One line of the table; the wanted ratio is that of full size and judges nothing else."""
    middle = statistics.median(measured.ratios)
    broken = []
    if not measured.agreement.difference <= row.tolerance:  # NaN breaks it too.
        broken.append("differs")
    if row.wanted is not None and not quick and middle < row.wanted:
        broken.append("slower than wanted")
    own, theirs = (statistics.median(side) for side in (measured.ours, measured.peer))
    remarks = [measured.remark, measured.agreement.remark]
    if row.most_pairs is not None:
        remarks.append(f"{len(measured.ours)} pair{'s' * (len(measured.ours) > 1)}")
    cells = (
        row.title,
        row.peer,
        f"{measured.agreement.difference:.1e} ({row.tolerance:.0e})",
        f"{middle:.3g} ({min(measured.ratios):.3g} to {max(measured.ratios):.3g})",
        "" if row.wanted is None else f"{row.wanted:g}",
        f"{own:.3g}",
        f"{theirs:.3g}",
        f"**no: {', '.join(broken)}**" if broken else "yes",
        "; ".join(filter(None, remarks)),
    )
    return f"| {' | '.join(cells)} |"


def without(row: Row, reason: str) -> str:
    """The line of a row that has no numbers."""
    wanted = "" if row.wanted is None else f"{row.wanted:g}"
    return f"| {row.title} | {row.peer} | | | {wanted} | | | **no** | {reason} |"
