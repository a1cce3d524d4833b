"""Data: a source becomes a prepared dataset, index splits, and batches that a step addresses.

    config = Data(source="mnist5k")
    dataset = load(config)
    parts = split(dataset, config)
    ds = pipeline(dataset, parts.train, batch_size=128, seed=0)
    ds[17]                                  # batch 17, always the same one

Texts likewise: `dataset, parts = TextData(source="pydoc_topics").read()`.

Names are resolved on first use: a command line that only needs `Data` imports no grain.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from genaug.data.config import Data
from genaug.data.text import TextData

if TYPE_CHECKING:
    from genaug.data.batching import batches, pipeline
    from genaug.data.dataset import Dataset, load
    from genaug.data.listing import Entry, catalogue
    from genaug.data.splits import Splits, split
    from genaug.data.store import write_examples
    from genaug.data.synthetic import SyntheticSource, mix
    from genaug.data.text_dataset import TextDataset, train_tokenizer
    from genaug.data.tokens import BPE, Bytes, Tokenizer, bpe, read_tokenizer, show, train_bpe

__all__ = [
    "BPE",
    "Bytes",
    "Data",
    "Dataset",
    "Entry",
    "Splits",
    "SyntheticSource",
    "TextData",
    "TextDataset",
    "Tokenizer",
    "batches",
    "bpe",
    "catalogue",
    "load",
    "mix",
    "pipeline",
    "read_tokenizer",
    "show",
    "split",
    "train_bpe",
    "train_tokenizer",
    "write_examples",
]

_HOME = {
    "BPE": "tokens",
    "Bytes": "tokens",
    "Dataset": "dataset",
    "Entry": "listing",
    "Splits": "splits",
    "SyntheticSource": "synthetic",
    "TextDataset": "text_dataset",
    "Tokenizer": "tokens",
    "batches": "batching",
    "bpe": "tokens",
    "catalogue": "listing",
    "load": "dataset",
    "mix": "synthetic",
    "pipeline": "batching",
    "read_tokenizer": "tokens",
    "show": "tokens",
    "split": "splits",
    "train_bpe": "tokens",
    "train_tokenizer": "text_dataset",
    "write_examples": "store",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
