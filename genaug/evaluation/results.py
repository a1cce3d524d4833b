"""One measured number with all that is needed to read it, keep it and set it beside another."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Literal

import numpy as np

import genaug
from genaug.evaluation.intervals import Interval
from genaug.types import UserError

Better = Literal["lower", "higher", "none"]

VERSIONS = ("jax", "numpy", "scipy")
"""Of the libraries that compute."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One measured number.

    name: `fid`, `fd/<feature net>`, `precision`, `closer_to_train`, ...
    value, low, high: the number and its 95 % interval.
    floor: what real, unseen data scores at the same size; None if there is no such number.
    better: which way is better.
    n: how many synthetic examples it was measured on.
    share: whether it is a share, from 0 to 1.
    meaning: a plain sentence for a reader who does not know the metric.
    remarks: what the reader must know of this one: sentences that may belong to several results.
    group: the class that it was measured on; None for the whole sets.
    provenance: what it was computed with, of and by. Results that differ here are of two kinds.
    """

    name: str
    value: float
    low: float
    high: float
    floor: float | None
    better: Better
    n: int
    share: bool
    meaning: str
    remarks: tuple[str, ...] = ()
    group: str | None = None
    provenance: Mapping[str, str] = dataclasses.field(default_factory=dict)


def provenance(reference: np.ndarray, seed: int, **what: str) -> dict[str, str]:
    """What a number depends on besides the synthetic set, as words.

    reference: the real examples that it is measured against; their bytes are digested.
    what:      the feature net, the digest of its weights, k, ...
    """
    return {
        **what,
        "reference": content_digest(reference)[:16],
        "seed": str(seed),
        "genaug": genaug.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in VERSIONS},
    }


def content_digest(array: np.ndarray) -> str:
    """SHA-256 of an array: dtype, shape and bytes."""
    sha = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def change(new: Result, old: Result) -> Interval:
    """How far `new` lies above `old`, two measurements of one kind on two synthetic sets.

    Their half-intervals are added as those of independent numbers. Both were measured against the
    same real examples, so the interval is on the wide side.

    Raises:
        UserError: of two kinds: another metric, class, size, or anything else of the provenance.
    """
    kinds = [{"name": r.name, "class": r.group, "n": r.n, **r.provenance} for r in (new, old)]
    differing = [
        f"{key}: {kinds[1].get(key)} -> {kinds[0].get(key)}"
        for key in dict.fromkeys([*kinds[0], *kinds[1]])
        if kinds[0].get(key) != kinds[1].get(key)
    ]
    if differing:
        raise UserError(
            f"{new.name} was measured in two ways and cannot be compared ({'; '.join(differing)}): "
            "measure both again with the same command."
        )
    low = math.hypot(new.value - new.low, old.high - old.value)
    high = math.hypot(new.high - new.value, old.value - old.low)
    difference = new.value - old.value
    return Interval(difference, difference - low, difference + high)


def by_remark(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Every remark, once, with the results that it is about."""
    found: dict[str, list[Result]] = {}
    for result in results:
        for remark in result.remarks:
            found.setdefault(remark, []).append(result)
    return found


def to_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Plain dictionaries, ready for `json.dumps`."""
    return [dataclasses.asdict(result) for result in results]


def from_json(rows: Any) -> list[Result]:
    """The inverse of `to_json`.

    Raises:
        UserError: JSON of something else.
    """
    try:
        return [Result(**{**row, "remarks": tuple(row.get("remarks", ()))}) for row in rows]
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"these are no results of an audit ({error}): `genaug evaluate --json` writes them"
        ) from error
