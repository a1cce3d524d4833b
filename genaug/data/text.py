"""What the user says about text data. Imports nothing heavy: --help reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from genaug.data.splits import Splits
    from genaug.data.text_dataset import TextDataset


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Which texts, how they become rows of tokens, and how they are split.

    Text is UTF-8 and kept byte for byte, line ends included; only a byte order mark is removed.
    """

    source: str = "pydoc_topics"
    """pydoc_topics, fortunes, a file (.txt .jsonl .csv), a folder, or a prepared directory."""
    text_column: str = "text"
    """The column of a .csv, or the field of a .jsonl's lines, that holds the text."""
    label_column: str | None = None
    """The one that names the class. None: no classes, unless the folders of a folder name them."""
    separator: str | None = None
    """Line that stands between the texts of a .txt file. None: each file is one text."""
    tokenizer: str = "bytes"
    """bytes; bpe:N, N ids learned from the training text; or the path of a byte-level BPE's
    tokenizer.json, as Hugging Face tokenizers writes it."""
    context: int = 256
    """Tokens that a model sees; a row holds one more."""
    packing: Literal["stream", "whole"] = "stream"
    """stream: windows at any offset of the joined texts. whole: texts stay whole, several a row."""
    too_long: Literal["error", "truncate", "split"] = "error"
    """What becomes of a text longer than the context, where texts stay whole."""
    conditional: bool = False
    """Open each text with a token that names its class."""
    holdout: Literal["texts", "tail"] = "texts"
    """texts: hold out whole texts, a share of each class. tail: the last part of every text."""
    valid_fraction: float = 0.1
    """Share held out for validation: of each class's texts, or of each text's bytes."""
    test_fraction: float = 0.0
    """Share held out for testing, likewise."""
    split_seed: int = 0
    """Seed of the choice of whole texts. Another seed is another split of the same texts."""
    stride: int | None = None
    """Tokens from one window over held-out text to the next. None: a quarter of the context."""
    skip_bad: bool = False
    """Leave bad texts out, each named in the log, rather than stop at the first."""
    directory: str | None = None
    """Where prepared data lives. None: $GENAUG_DATA_DIR, else ~/.cache/genaug/data."""

    def read(self) -> tuple[TextDataset, Splits]:
        """The rows, and which train, validate and test. Raises UserError or DataError."""
        from genaug.data.text_dataset import read

        return read(self)
