"""Data: a source becomes a prepared dataset, index splits, and batches that a step addresses.

    config = Data(source="mnist5k")
    dataset = load(config)
    parts = split(dataset, config)
    ds = pipeline(dataset, parts.train, batch_size=128, seed=0)
    ds[17]                                  # batch 17, always the same one

Names are resolved on first use: a command line that only needs `Data` imports no grain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genaug.data.config import Data

if TYPE_CHECKING:
    from genaug.data.batching import batches, pipeline
    from genaug.data.dataset import Dataset, load
    from genaug.data.listing import Entry, catalogue
    from genaug.data.splits import Splits, split
    from genaug.data.store import write_examples

__all__ = [
    "Data",
    "Dataset",
    "Entry",
    "Splits",
    "batches",
    "catalogue",
    "load",
    "pipeline",
    "split",
    "write_examples",
]

_HOME = {
    "Dataset": "dataset",
    "Entry": "listing",
    "Splits": "splits",
    "batches": "batching",
    "catalogue": "listing",
    "load": "dataset",
    "pipeline": "batching",
    "split": "splits",
    "write_examples": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
