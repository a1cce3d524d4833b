"""What the report shows of an audit (`evaluation.audit`): numbers as text, remarks said once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genaug.charts import floats, number

NAMES = {
    "fid": "FID",
    "fd": "Fréchet distance",
    "kid": "KID",
    "kd": "Kernel distance",
    "mind": "MIND",
    "fid_infinity": "FID at infinite n",
    "fd_infinity": "Fréchet distance at infinite n",
    "mmd": "Gaussian MMD",
    "clipped_density": "Clipped density",
    "clipped_coverage": "Clipped coverage",
    "mifid": "MiFID",
    "mifd": "Memorisation-informed distance",
    "classifier_score": "Classifier score",
    "inception_score": "Inception Score",
    "vendi": "Vendi score",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "closer_to_train": "Closer to training data",
    "exact_copies": "Exact copies",
    "near_copies": "Near copies",
    "standing_out": "One neighbour stands out",
    "authenticity": "Authenticity",
    "copying_test": "Copying test C_T",
}

Entry = Mapping[str, Any]


def view(entries: Sequence[Entry]) -> dict[str, Any]:
    """Rows over all classes, a table by class, and every remark with the measures it is about."""
    whole = [entry for entry in entries if entry["group"] is None]
    by_remark: dict[str, list[str]] = {}
    for entry in whole:
        for remark in entry["remarks"]:
            by_remark.setdefault(remark, []).append(title(entry))
    remarks = [(", ".join(names), remark) for remark, names in by_remark.items()]
    return {
        "rows": [row(entry) for entry in whole],
        "by_class": _by_class(entries),
        "remarks": remarks,
    }


def title(entry: Entry) -> str:
    """The metric's name for a reader, and the feature net that it belongs to."""
    base, _, net = entry["name"].partition("/")
    return NAMES.get(base, base) + (f" ({net})" if net else "")


def row(entry: Entry) -> dict[str, Any]:
    """One result as text: a share in per cent."""
    value, low, high, floor = floats(entry[key] for key in ("value", "low", "high", "floor"))
    factor, digits = (100, 1) if entry["share"] else (1, _digits(high if value < high else value))
    worse = {"lower": low > floor, "higher": high < floor}.get(entry["better"])
    texts = {
        key: number(factor * x, digits)
        for key, x in (("value", value), ("low", low), ("high", high), ("floor", floor))
    }
    return {
        "name": title(entry),
        "unit": " %" if entry["share"] else "",
        **texts,
        "better": entry["better"],
        "worse": None if math.isnan(floor) else worse,
        "n": entry["n"],
        "meaning": entry["meaning"],
    }


def _by_class(entries: Sequence[Entry]) -> dict[str, Any]:
    """The measures that were taken class by class: a line a class, a column a measure."""
    some = [entry for entry in entries if entry["group"] is not None]
    lines: dict[str, list[dict[str, Any]]] = {}
    for entry in some:
        lines.setdefault(entry["group"], []).append(row(entry))
    return {"titles": list(dict.fromkeys(title(entry) for entry in some)), "lines": lines}


def _digits(size: float) -> int:
    """Decimals that show three figures of a number of this size."""
    if not math.isfinite(size) or size <= 0:
        return 1
    return min(max(2 - math.floor(math.log10(size)), 0), 6)
