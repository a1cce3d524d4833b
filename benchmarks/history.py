"""What `python -m benchmarks` keeps of a run, a JSON file each, and what changed between two."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine, race
from genaug.files import read_json, write_json
from genaug.types import DataError

THRESHOLD = 0.10  # smaller changes of a ratio are not told


def write(folder: Path, results: Mapping[str, Any]) -> Path:
    """Keep a run under the time of its end."""
    path = folder / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
    write_json(path, results)
    return path


def read(path: Path) -> dict[str, Any]:
    """A run that was kept. DataError if it is none."""
    if not path.is_file():
        raise DataError(f"{path} is not there: name two files that python -m benchmarks has kept.")
    found = read_json(path)
    if not isinstance(found, dict) or "cases" not in found:
        raise DataError(f"{path} is no result of python -m benchmarks.")
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and the third; of one value, itself."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def moved(before: Sequence[float], after: Sequence[float]) -> float | None:
    """How far the median of ratios moved, as a share of it; None within the threshold or the noise.

    Beyond the noise: the middle halves of the two do not meet.
    """
    change = statistics.median(after) / statistics.median(before) - 1.0
    (low_a, high_a), (low_b, high_b) = quartiles(before), quartiles(after)
    meet = low_a <= high_b and low_b <= high_a
    return None if meet or abs(change) <= THRESHOLD else change


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Lines: every ratio that changed, what came or went, and how many stayed."""
    if not machine.same(before["machine"], after["machine"]):
        yield "! Of different machines: ratios may differ for that alone."
    old = {record["name"]: record for record in before["cases"]}
    stayed = 0
    for record in after["cases"]:
        earlier = old.get(record["name"])
        if earlier is None:
            yield f"{record['title']}: new"
            continue
        for peer in dict.fromkeys([*race.peers(earlier), *race.peers(record)]):
            was, now = race.best(earlier, peer), race.best(record, peer)
            what = f"{record['title']}, against {peer}"
            if was is None or now is None:
                if was != now:
                    yield f"{what}: {'measured now' if was is None else 'no longer measured'}"
                continue
            values = race.ratios(earlier, was), race.ratios(record, now)
            change = moved(*values)
            if change is None:
                stayed += 1
                continue
            a, b = (statistics.median(v) for v in values)
            word = "faster" if change > 0 else "SLOWER"
            yield f"{what}: {a:.2f} -> {b:.2f} ({100 * change:+.0f} %, genaug is {word})"
    for name in old.keys() - {record["name"] for record in after["cases"]}:
        yield f"{old[name]['title']}: not run"
    yield f"{stayed} ratios within {100 * THRESHOLD:.0f} % or their noise"
