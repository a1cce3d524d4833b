"""Text to token ids and back: bytes as they are, or byte-level BPE (Sennrich et al. 2016;
Radford et al. 2019) as Hugging Face `tokenizers` trains and writes it.

Both give every text back exactly. Ids from 0 to `num_text - 1` stand for bytes of text; the ids
that open and close a text come after them (`TokenSpec`).
"""

from __future__ import annotations

import hashlib
import json as json_module
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Integer

from genaug.types import DataError, UserError


@runtime_checkable
class Tokenizer(Protocol):
    """Text as ids. `digest` (sha256) is equal where the ids mean the same."""

    @property
    def num_text(self) -> int:
        """How many ids stand for text."""
        ...

    @property
    def digest(self) -> str:
        """The sha256 of what the ids mean."""
        ...

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids of a text. Raises DataError if they would not give it back."""
        ...

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """The text of ids, U+FFFD where it is no UTF-8. Raises UserError for other ids."""
        ...

    def num_bytes(self, ids: Integer[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """How many bytes of text each id stands for. Raises UserError for other ids."""
        ...


@dataclass(frozen=True)
class Bytes:
    """The 256 bytes of UTF-8 as they are."""

    num_text: int = field(default=256, init=False)
    digest: str = field(default=hashlib.sha256(b"bytes").hexdigest(), init=False)

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """One id a byte."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """The bytes read as UTF-8, U+FFFD where they are none."""
        return _known(ids, self).astype(np.uint8).tobytes().decode(errors="replace")

    def num_bytes(self, ids: Integer[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """One each."""
        return np.ones_like(_known(ids, self), np.int32)


@dataclass(frozen=True)
class BPE:
    """Byte-level BPE. `json` is the tokenizer.json, `table` the bytes of each id."""

    json: str = field(repr=False)
    table: tuple[bytes, ...] = field(repr=False)
    encoder: Any = field(repr=False, compare=False)

    @property
    def num_text(self) -> int:
        """How many ids stand for text."""
        return len(self.table)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the tokenizer.json."""
        return hashlib.sha256(self.json.encode()).hexdigest()

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """The ids that the merges give. Raises DataError if they would not give the text back."""
        ids = self.encoder.encode(text, add_special_tokens=False).ids
        if b"".join([self.table[i] for i in ids]) != text.encode():
            raise DataError(
                f"the tokenizer changes the text {text[:40]!r}: it normalises or drops characters; "
                "use a byte-level one, e.g. from `genaug tokenizer`"
            )
        return np.asarray(ids, np.int32)

    def decode(self, ids: Integer[np.ndarray, " n"]) -> str:
        """The ids' bytes read as UTF-8, U+FFFD where they are none."""
        known = _known(ids, self).tolist()
        return b"".join([self.table[i] for i in known]).decode(errors="replace")

    def num_bytes(self, ids: Integer[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """The length of each id's bytes."""
        return self._lengths[_known(ids, self)]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(token) for token in self.table], np.int32)


def _known(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    bad = (ids < 0) | (ids >= tokenizer.num_text)
    if bad.any():
        raise UserError(
            f"token id {ids[bad][0]} is outside the tokenizer's vocabulary (0 to "
            f"{tokenizer.num_text - 1}): the ids were made with another tokenizer"
        )
    return ids


def size_to_learn(name: str) -> int | None:
    """The N of "bpe:N", a BPE that the training text is yet to give; None for any other name."""
    kind, _, size = name.partition(":")
    if kind != "bpe":
        return None
    if not size.isdecimal() or int(size) < 256:
        raise UserError(
            f"--data.tokenizer is {name!r}; expected bpe:N with N, the number of ids, 256 (the "
            "bytes) or more, e.g. bpe:2048"
        )
    return int(size)


def read_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of this name, or in this file. Raises UserError, or DataError for the file."""
    if name == "bytes":
        return Bytes()
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(
            f"--data.tokenizer is {name!r}, which is no file; expected bytes, bpe:N or the path of "
            "a tokenizer.json"
        )
    try:
        return bpe(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, DataError) as error:
        raise DataError(f"{path}: {error}") from error


def bpe(json: str) -> BPE:
    """The tokenizer of a tokenizer.json's text.

    Raises DataError for one that is not byte-level BPE or has not all 256 bytes, UserError if the
    package `tokenizers` is missing. Tokens that the file marks as special are read as plain text.
    """
    tokenizers = _tokenizers()
    try:
        encoder = tokenizers.Tokenizer.from_str(json)
        content = json_module.loads(json)
    # The package raises bare Exception for whatever it cannot read.
    except Exception as error:
        raise DataError(f"not a tokenizer.json of Hugging Face tokenizers: {error}") from error
    if fault := _not_byte_level(content):
        raise DataError(f"{fault}; expected byte-level BPE, e.g. from `genaug tokenizer`")
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    added = {i: str(token.content) for i, token in encoder.get_added_tokens_decoder().items()}
    vocabulary = {i: token for token, i in encoder.get_vocab(with_added_tokens=True).items()}
    byte = {character: i for i, character in enumerate(_alphabet())}
    table = [b""] * (max(vocabulary) + 1)
    for i, token in vocabulary.items():
        try:
            table[i] = added[i].encode() if i in added else bytes(byte[c] for c in token)
        except KeyError as error:
            raise DataError(f"token {token!r} is not in the alphabet of bytes") from error
    if missing := sorted(set(range(256)) - {t[0] for t in table if len(t) == 1}):
        raise DataError(
            f"{len(missing)} of the 256 bytes have no token (first: 0x{missing[0]:02x}): train it "
            "with the whole byte alphabet, e.g. by `genaug tokenizer`"
        )
    return BPE(json, tuple(table), encoder)


def _not_byte_level(content: Any) -> str:
    """What keeps a tokenizer.json from giving every text back, in words, or nothing."""
    model, split = content["model"], content["pre_tokenizer"] or {}
    steps = split.get("pretokenizers", [split])
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    if model.get("type") != "BPE":
        return f"its model is {model.get('type')}"
    if not levels:
        return "it does not work on bytes (no ByteLevel pre-tokenizer)"
    if content["normalizer"]:
        return f"it normalises text ({content['normalizer']['type']})"
    if any(level.get("add_prefix_space") for level in levels):
        return "it puts a space before each text (add_prefix_space)"
    if model.get("dropout"):
        return f"it encodes at random (dropout {model['dropout']})"
    return ""


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """A byte-level BPE trained on texts, as the text of a tokenizer.json. Needs no network.

    It has no special tokens, splits words as GPT-2 does (Radford et al. 2019) and joins pairs seen
    twice or more; few texts give fewer than `vocab_size` tokens. Raises UserError for a size below
    the 256 bytes that every text may hold.
    """
    if vocab_size < 256:
        raise UserError(f"--vocab-size is {vocab_size}; expected 256 (the bytes) or more")
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=sorted(_alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def show(
    tokens: Int32[np.ndarray, "n length"],
    segments: Int32[np.ndarray, "n length"],
    tokenizer: Tokenizer,
) -> list[str]:
    """The text of each row: without start, end and padding, several texts joined as they stand."""
    text = (segments != 0) & (tokens < tokenizer.num_text)
    return [tokenizer.decode(row[keep]) for row, keep in zip(tokens, text, strict=True)]


def _alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 stands for itself, the rest for U+0100 upward (GPT-2's `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(0x100 + rank) for rank, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            'byte-level BPE is in the package tokenizers: pip install "genaug[text]", or use '
            "--data.tokenizer bytes"
        ) from error
    return tokenizers
