"""The ratios of `python -m benchmarks` as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from benchmarks import race
from benchmarks.throughput_table import TITLES
from genaug.charts import Axis

TEMPLATE = Path(__file__).with_name("throughput.svg.j2")
TICKS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class Bar(NamedTuple):
    """A peer's ratio in a case: above 1, genaug is faster. must: what is wanted, if anything."""

    peer: str
    middle: float
    low: float
    high: float
    must: float | None

    @property
    def held(self) -> bool:
        """Whether nothing more is wanted."""
        return self.must is None or self.middle >= self.must


def bars(record: Mapping[str, Any]) -> list[Bar]:
    """Of every peer of a case, its fastest form."""
    found = []
    for peer in race.peers(record):
        if name := race.best(record, peer):
            ratios = race.ratios(record, name)
            must = record["must"].get(peer)
            found.append(Bar(name, statistics.median(ratios), min(ratios), max(ratios), must))
    return found


def axis_of(found: Sequence[Bar]) -> Axis:
    """A logarithmic axis that holds 1 and all bars, with a little room."""
    values = [v for one in found for v in (one.low, one.high, one.must) if v] + [1.0]
    return Axis(math.log10(min(values)) - 0.08, math.log10(max(values)) + 0.08)


def rows(results: Mapping[str, Any], at: Axis) -> Iterator[dict[str, Any]]:
    """Lines from the top: a part's title, a case's, a peer's bar in percent of the axis."""
    where = lambda value: None if value is None else at.at(math.log10(value))  # noqa: E731
    for part, title in TITLES.items():
        records = [one for one in results["cases"] if one["part"] == part and bars(one)]
        if records:
            yield {"part": title}
        for record in records:
            yield {"case": record["title"]}
            for one in bars(record):
                yield {
                    "peer": one.peer,
                    "held": one.held,
                    "middle": where(one.middle),
                    "low": where(one.low),
                    "high": where(one.high),
                    "must": where(one.must),
                    "text": f"{one.middle:.2f} ({one.low:.2f} to {one.high:.2f})",
                }


def picture(results: Mapping[str, Any]) -> str:
    """An SVG that stands alone."""
    at = axis_of([one for record in results["cases"] for one in bars(record)])
    low, high = 10**at.low, 10**at.high
    ticks = [(at.at(math.log10(tick)), f"{tick:g}") for tick in TICKS if low <= tick <= high]
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(rows=list(rows(results, at)), ticks=ticks, one=at.at(0.0))
