"""Documents of tokens laid into rows: windows of a stream, or texts packed whole.

All documents lie in one array of tokens; a row is where in it a window begins, how many tokens it
holds, and how many of these are context only: scored by an earlier row, or of another split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from genaug.data.raw import buffer
from genaug.types import DataError

MOST_OFFSETS = 2**24
"""Training windows up to this number stand at every offset; beyond it they stand further apart."""


class Document(NamedTuple):
    """[start, text..., end] or a part of it.

    tokens: ids, from the start token or, of a document cut in time, from its last context.
    seen:   how many of them are context only.
    label:  the class of the text.
    name:   what to call it in a message.
    """

    tokens: Integer[np.ndarray, " n"]
    seen: int
    label: int
    name: str


class Rows(NamedTuple):
    """Where in the tokens each row lies.

    first: position of the row's first token.
    size:  tokens in it; the rest of a row is padding.
    seen:  how many of them are context only.
    label: the class that the row counts for.
    """

    first: Int64[np.ndarray, " n"]
    size: Int32[np.ndarray, " n"]
    seen: Int32[np.ndarray, " n"]
    label: Int32[np.ndarray, " n"]


def lay(
    documents: Sequence[Document], dtype: np.dtype
) -> tuple[Integer[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """All tokens in a line, and which of them begin a document.

    Tokens are kept in memory up to 512 MB, beyond that in a nameless temporary file.
    """
    sizes = np.array([len(document.tokens) for document in documents], np.int64)
    stops = np.cumsum(sizes)
    tokens = buffer((int(stops[-1]) * dtype.itemsize,)).view(dtype)
    opens = np.zeros(len(tokens), np.bool_)
    for document, stop in zip(documents, stops, strict=True):
        tokens[stop - len(document.tokens) : stop] = document.tokens
    opens[stops - sizes] = True
    return tokens, opens


def offsets(documents: Sequence[Document], length: int, base: int) -> Rows:
    """A row at every offset of the joined documents, which begin at `base`.

    Beyond `MOST_OFFSETS` rows they stand further apart, but never so far that a token is missed.
    A row counts for the class of its first token. Raises DataError if the documents fill no row.
    """
    sizes = np.array([len(document.tokens) for document in documents], np.int64)
    starts, total = np.cumsum(sizes) - sizes, int(sizes.sum())
    if total < length:
        raise DataError(
            f"the training texts hold {total} tokens with their starts and ends, fewer than a row "
            f"of {length}: add texts, or use a --data.context of at most {max(total - 1, 1)}"
        )
    step = min(-(-(total - length + 1) // MOST_OFFSETS), length - 1)
    first = np.arange(0, total - length + 1, step, dtype=np.int64)
    labels = np.array([document.label for document in documents], np.int32)
    return Rows(
        first=base + first,
        size=np.full(len(first), length, np.int32),
        seen=np.zeros(len(first), np.int32),
        label=labels[np.searchsorted(starts, first, side="right") - 1],
    )


def strides(documents: Sequence[Document], length: int, stride: int, base: int) -> Rows:
    """Rows over each document by itself, so that each token not yet seen is scored in exactly one.

    A document's first row scores all but what is context; each next begins `stride` tokens on and
    scores what no row has reached: each of these tokens has at least `length - stride` before it.
    """
    sizes = np.array([len(document.tokens) for document in documents], np.int64)
    starts = base + np.cumsum(sizes) - sizes
    counts = 1 + -(-np.maximum(sizes - length, 0) // stride)
    owner = np.repeat(np.arange(len(documents)), counts)
    ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    seen = np.array([document.seen for document in documents], np.int32)[owner]
    return Rows(
        first=starts[owner] + stride * ordinal,
        size=np.minimum(sizes[owner] - stride * ordinal, length).astype(np.int32),
        seen=np.where(ordinal == 0, seen, length - stride).astype(np.int32),
        label=np.array([document.label for document in documents], np.int32)[owner],
    )


def pack(documents: Sequence[Document], length: int, base: int) -> tuple[list[Document], Rows]:
    """Whole documents in few rows, and the order to lay them in: a row's documents are neighbours.

    Best fit, longest first (Johnson et al. 1974), each class by itself: a row counts for one.
    """
    order: list[Document] = []
    rows: list[tuple[int, int, int]] = []
    for label in sorted({document.label for document in documents}):
        members = [document for document in documents if document.label == label]
        for bin_ in best_fit([len(document.tokens) for document in members], length):
            tokens = sum(len(members[i].tokens) for i in bin_)
            rows.append((base, tokens, label))
            order += [members[i] for i in bin_]
            base += tokens
    first, size, labels = np.array(rows, np.int64).reshape(-1, 3).T
    return order, Rows(
        first=first,
        size=size.astype(np.int32),
        seen=np.zeros(len(first), np.int32),
        label=labels.astype(np.int32),
    )


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Positions of the sizes in bins: each into the fullest that still has room, longest first."""
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a bin with room r is open
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = rooms >> sizes[item]
        if fitting:
            room = sizes[item] + (fitting & -fitting).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
            bins[chosen].append(item)
        else:
            room, chosen = capacity, len(bins)
            bins.append([item])
        by_room[room - sizes[item]].append(chosen)
        rooms |= 1 << (room - sizes[item])
    return bins


def shorten(documents: Iterable[Document], length: int, too_long: str) -> Iterator[Document]:
    """Documents of at most `length` tokens.

    too_long: "error" raises DataError for a longer one; "truncate" keeps its first `length` tokens,
              without an end; "split" makes several of it: each opens with the start token, so that
              every token of the text is scored, and only the last has the end.
    """
    for document in documents:
        tokens = document.tokens
        if len(tokens) <= length:
            yield document
        elif too_long == "error":
            raise DataError(
                f"{document.name} is {len(tokens)} tokens with its start and end, and a row holds "
                f"{length}: use --data.context {len(tokens) - 1}, --data.too-long truncate or "
                "--data.too-long split"
            )
        elif too_long == "truncate":
            yield document._replace(tokens=tokens[:length])
        else:
            for begin in range(1, len(tokens), length - 1):
                part = np.append(tokens[:1], tokens[begin : begin + length - 1])
                yield document._replace(tokens=part)


def gather(
    tokens: Integer[np.ndarray, " n"],
    opens: Bool[np.ndarray, " n"],
    rows: Rows,
    length: int,
    end: int,
) -> tuple[Int32[np.ndarray, "b length"], Int32[np.ndarray, "b length"]]:
    """The rows' tokens and segments: documents from 1, negative where context only, 0 = padding."""
    index = np.arange(length)
    size, seen = rows.size.reshape(-1, 1), rows.seen.reshape(-1, 1)
    where = rows.first.reshape(-1, 1) + np.minimum(index, size - 1)
    inside = index < size
    segments = np.cumsum(opens[where], axis=1, dtype=np.int32)
    segments += 1 - segments[:, :1]
    segments = np.where(index < seen, -segments, segments)
    return (
        np.where(inside, tokens[where], end).astype(np.int32),
        np.where(inside, segments, 0).astype(np.int32),
    )
