"""Prepared texts as rows of tokens: random access, and what is true of all of them.

Every text is cut into a training, a validation and a test part, of which two are empty when whole
texts are held out. Held-out text is scored with what stands before it in its own text as context,
be that training text; every byte of it, and every end, is scored in exactly one row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import jax
import numpy as np
from absl import logging
from jaxtyping import Bool, Int32, Int64, Integer

from genaug.data import windows
from genaug.data.splits import TEST, TRAIN, VALID, Splits, hold_out
from genaug.data.text import TextData
from genaug.data.text_sources import Texts, check
from genaug.data.text_store import read_prepared
from genaug.data.tokens import BPE, Tokenizer, bpe, read_tokenizer, size_to_learn, train_bpe
from genaug.data.windows import Document, Rows
from genaug.files import save_arrays, write_atomically
from genaug.types import DataError, Spec, TokenSpec, UserError

Parts = tuple[bytes, bytes, bytes]
"""A text's training, validation and test part; joined they are the text."""


@dataclass(frozen=True, kw_only=True)
class TextDataset:
    """Rows of tokens that do not change, addressed by position 0..n-1.

    spec:        a row: tokens int32 [length] (TokenSpec), segments int32 [length], num_bytes int32.
    labels:      the class that each row counts for; all 0 where there are no classes.
    class_names: () where the texts have no classes.
    fingerprint: sha256 of the texts, before they were tokens.
    tokens:      all documents in a line, in memory up to 512 MB, beyond that in a file.
    opens:       which tokens begin a document.
    bytes_of_id: how many bytes of text each id of the spec stands for.
    """

    spec: Spec
    labels: Int32[np.ndarray, " n"]
    class_names: tuple[str, ...]
    name: str
    licence: str
    origin: str
    fingerprint: str
    directory: Path
    tokenizer: Tokenizer
    tokens: Integer[np.ndarray, " t"]
    opens: Bool[np.ndarray, " t"]
    rows: Rows
    bytes_of_id: Int32[np.ndarray, " v"]

    def __len__(self) -> int:
        return len(self.labels)

    def arrays(self, indices: Integer[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """The rows at `indices`: tokens, segments int32 [b, length] and num_bytes int32 [b].

        Segments number a row's documents from 1; 0 is padding (its token is the end), and a
        negative number the same document as context only. The target at t + 1 counts where
        `segments[t + 1] > 0` and `segments[t]` is the same document; num_bytes is the text that the
        targets that count stand for, the end being 0 bytes.
        """
        spec = self.spec["tokens"]
        assert isinstance(spec, TokenSpec)
        rows = Rows(*(field[indices] for field in self.rows))
        tokens, segments = windows.gather(self.tokens, self.opens, rows, spec.shape[0], spec.end)
        # What opens a document is no target, but stands for no text either.
        num_bytes = (self.bytes_of_id[tokens[:, 1:]] * (segments[:, 1:] > 0)).sum(axis=1)
        return {"tokens": tokens, "segments": segments, "num_bytes": num_bytes.astype(np.int32)}


def read(config: TextData) -> tuple[TextDataset, Splits]:
    """Texts from their source, written into the data directory unless they are there, as rows.

    Raises UserError for a config that cannot be, DataError for data that is missing or wrong.
    """
    check(config)
    size = size_to_learn(config.tokenizer)
    tokenizer = None if size else read_tokenizer(config.tokenizer)
    texts, fingerprint, directory = read_prepared(config)
    if config.conditional and not texts.class_names:
        raise UserError(
            f"--data.conditional needs texts with classes, and {texts.name} has none: give "
            "--data.label-column, or a folder with one folder a class"
        )
    num_classes = len(texts.class_names) if config.conditional else 0
    parts = cut(texts, config)
    tokenizer = tokenizer or _learned(parts, size or 0, directory)
    spec = TokenSpec(config.context + 1, tokenizer.num_text, num_classes)
    tokens, opens, rows, splits = _lay_out(
        _documents(texts, parts, tokenizer, spec, directory, _stride(config)),
        spec,
        config,
    )
    lengths = tokenizer.num_bytes(np.arange(tokenizer.num_text))
    dataset = TextDataset(
        spec={
            "tokens": spec,
            "segments": jax.ShapeDtypeStruct(spec.shape, np.int32),
            "num_bytes": jax.ShapeDtypeStruct((), np.int32),
        },
        labels=rows.label,
        class_names=texts.class_names,
        name=texts.name,
        licence=texts.licence,
        origin=texts.origin,
        fingerprint=fingerprint,
        directory=directory,
        tokenizer=tokenizer,
        tokens=tokens,
        opens=opens,
        rows=rows,
        bytes_of_id=np.append(lengths, np.zeros(1 + num_classes, np.int32)),
    )
    return dataset, splits


def train_tokenizer(config: TextData, vocab_size: int, out: Path) -> BPE:
    """A byte-level BPE trained on the training text that `config` names, written to `out`.

    Raises UserError for a size below 256 or an `out` that is there, DataError for the data.
    """
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out, or remove it")
    texts, _, _ = read_prepared(config)
    json = _train(cut(texts, config), vocab_size)
    write_atomically(out, json)
    return bpe(json)


def _train(parts: Sequence[Parts], vocab_size: int) -> str:
    return train_bpe((part[TRAIN].decode() for part in parts), vocab_size)


def _learned(parts: Sequence[Parts], vocab_size: int, directory: Path) -> BPE:
    """The BPE that the training text gives: learned once, then kept beside the texts."""
    key = hashlib.sha256(b"\0".join(part[TRAIN] for part in parts)).hexdigest()[:16]
    path = directory / f"bpe_{vocab_size}_{key}.json"
    if not path.is_file():
        json = _train(parts, vocab_size)
        try:
            write_atomically(path, json)
        except OSError as error:
            logging.warning("the BPE is not kept: cannot write %s (%s)", path, error.strerror)
            return bpe(json)
    tokenizer = read_tokenizer(str(path))
    assert isinstance(tokenizer, BPE)
    return tokenizer


def cut(texts: Texts, config: TextData) -> list[Parts]:
    """Each text's training, validation and test part, as `config.holdout` says.

    "tail" cuts at the start of a character, so that each part is text. Equal texts stay together
    under "texts". Raises DataError if nothing can be held out or a class is left without training.
    """
    if config.holdout == "tail":
        parts = [_cut_tail(text, config) for text in texts.texts]
    else:
        digests = np.frombuffer(
            b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts.texts),
            np.uint64,
        )
        chosen = hold_out(
            texts.labels,
            digests,
            test_fraction=config.test_fraction,
            valid_fraction=config.valid_fraction,
            seed=config.split_seed,
        )
        for label, name in enumerate(texts.class_names):
            if not np.any(chosen[texts.labels == label] == TRAIN):
                raise DataError(
                    f"{texts.name}: class {name!r} has no training text; add texts, remove the "
                    "class, or hold out less"
                )
        empty: Parts = (b"", b"", b"")
        parts = [
            (*empty[:part], text, *empty[part + 1 :])  # type: ignore[misc]
            for text, part in zip(texts.texts, chosen.tolist(), strict=True)
        ]
    wanted = {"training": 1.0, "valid": config.valid_fraction, "test": config.test_fraction}
    for which, (name, share) in enumerate(wanted.items()):
        if share > 0 and not any(part[which] for part in parts):
            raise DataError(
                f"{texts.name} has {len(parts)} text(s), too few for a {name} split: add texts, "
                f"change the fractions, or use --data.holdout tail"
            )
    return parts


def _cut_tail(text: bytes, config: TextData) -> Parts:
    test = len(text) - round(config.test_fraction * len(text))
    valid = test - round(config.valid_fraction * len(text))
    valid, test = (_character(text, position) for position in (valid, test))
    return text[:valid], text[valid:test], text[test:]


def _character(text: bytes, position: int) -> int:
    """The start of the UTF-8 character that holds this byte."""
    while 0 < position < len(text) and text[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _stride(config: TextData) -> int:
    return config.stride or max(config.context // 4, 1)


def _documents(
    texts: Texts,
    parts: Sequence[Parts],
    tokenizer: Tokenizer,
    spec: TokenSpec,
    directory: Path,
    stride: int,
) -> list[list[Document]]:
    """The documents of each split: its part of each text, after as much context as a row needs."""
    ids, stops = _encode([part for text in parts for part in text], tokenizer, directory)
    starts = np.append(0, stops)
    documents: list[list[Document]] = [[], [], []]
    for i, text in enumerate(parts):
        label = int(texts.labels[i])
        start = np.array([spec.end + 1 + label if spec.num_classes else spec.end], np.int32)
        present = [which for which in (TRAIN, VALID, TEST) if text[which]]
        for which in present:
            before = np.append(start, ids[starts[3 * i] : starts[3 * i + which]])
            before = before[-(spec.shape[0] - stride) :]
            body = ids[starts[3 * i + which] : starts[3 * i + which + 1]]
            end = [spec.end] if which == present[-1] else []
            tokens = np.concatenate([before, body, np.array(end, np.int32)])
            seen = len(before) if which != present[0] else 0
            documents[which].append(Document(tokens, seen, label, texts.names[i]))
    return documents


def _encode(
    parts: Sequence[bytes], tokenizer: Tokenizer, directory: Path
) -> tuple[Int32[np.ndarray, " t"], Int64[np.ndarray, " p"]]:
    """The ids of all parts in a line, and where each part's stop.

    What BPE made of the parts is kept beside the texts and read from there the next time.
    """
    key = hashlib.sha256(tokenizer.digest.encode() + b"".join(b"%d " % len(p) for p in parts))
    path = directory / f"tokens_{key.hexdigest()[:16]}.npz"
    if isinstance(tokenizer, BPE) and path.is_file():
        try:
            # NumPy leaves a damaged archive open that it opened itself.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                ids, stops = archive["ids"], archive["stops"]
            tokenizer.num_bytes(ids)
        except (OSError, ValueError, BadZipFile, UserError) as error:
            raise DataError(f"{path}: {error}; remove the file and it is made again") from error
        return ids, stops
    encoded = [tokenizer.encode(part.decode()) for part in parts]
    ids = np.concatenate(encoded)
    stops = np.cumsum([len(part) for part in encoded], dtype=np.int64)
    if isinstance(tokenizer, BPE):
        try:
            save_arrays(path, {"ids": ids, "stops": stops})
        except OSError as error:
            logging.warning("tokens are not kept: cannot write %s (%s)", path, error.strerror)
    return ids, stops


def _lay_out(
    documents: Sequence[Sequence[Document]], spec: TokenSpec, config: TextData
) -> tuple[np.ndarray, np.ndarray, Rows, Splits]:
    """All documents in a line, the rows over them, and which rows are whose."""
    length, base = spec.shape[0], 0
    line: list[Document] = []
    rows: list[Rows] = []
    for which, own in enumerate(documents):
        if config.packing == "whole":
            short = list(windows.shorten(own, length, config.too_long))
            own, found = windows.pack(short, length, base)
        elif which == TRAIN:
            found = windows.offsets(own, length, base)
        else:
            found = windows.strides(own, length, _stride(config), base)
        base += sum(len(document.tokens) for document in own)
        line += own
        rows.append(found)
    dtype = np.uint16 if spec.vocab_size <= 2**16 else np.int32
    tokens, opens = windows.lay(line, np.dtype(dtype))
    stops = np.cumsum([len(part.first) for part in rows])
    splits = Splits(*np.split(np.arange(stops[-1], dtype=np.int64), stops[:-1]))
    return tokens, opens, Rows(*(np.concatenate(f) for f in zip(*rows, strict=True))), splits
