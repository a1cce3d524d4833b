"""Batches as a pure function of (indices, seed, balance, step).

The stream: positions of `indices`, in a new order each epoch, epochs joined end to end, cut into
batches. Of a batch a process may take some rows alone; which batch step k is depends neither on
that nor on whether it is reached from 0 or from k - 1.

Grain runs the stream (random access, threads that read ahead, exact resume), but the order is
computed one epoch at a time with NumPy rather than by Grain's own shuffle, whose 15 microseconds of
Python an example cost more than a small model's training step.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import grain
import numpy as np
from jaxtyping import Int64, Integer

from genaug.data.dataset import Dataset
from genaug.data.splits import permutation
from genaug.data.text_dataset import TextDataset
from genaug.types import UserError

_ENDLESS = 2**62
# Reading ahead hides the decoding of large sets; for small ones more threads only compete.
_THREADS, _AHEAD = 2, 8


def pipeline(
    dataset: Dataset | TextDataset,
    indices: Integer[np.ndarray, " n"],
    *,
    batch_size: int,
    seed: int,
    balance: float = 0.0,
    rows: Integer[np.ndarray, " b"] | None = None,
    positions: bool = False,
) -> grain.MapDataset:
    """An endless dataset whose element `ds[step]` is the batch of that step, or these rows of it.

    A batch is what `dataset.arrays` gives: `{"image": uint8 [b, h, w, c], "label": int32 [b]}`, or
    `{"tokens": int32 [b, length], "segments": ..., "num_bytes": int32 [b]}`. `rows` are the
    positions in the batch that a process wants, of several that share the work
    (`layouts.local_rows`). With `positions` a batch says where its examples are and no more:
    `{"position": int32 [b]}`. With `balance` in [0, 1] class c is drawn in proportion to
    `count_c ** (1 - balance)`: 0 as it is, 1 each class equally often.
    Raises UserError for a batch that the examples cannot fill.
    """
    _check(len(indices), batch_size, seed, balance)
    indices = np.asarray(indices, np.int64)
    classes = _classes(dataset.labels[indices], balance)
    length = sum(target for _, target in classes)
    mine = np.arange(batch_size) if rows is None else np.asarray(rows, np.int64)

    @functools.lru_cache(maxsize=4)  # a batch touches two epochs at most, threads run ahead of it
    def epoch(number: int) -> np.ndarray:
        drawn = [
            _repeat(members, target, (seed, number, label))
            for label, (members, target) in enumerate(classes)
        ]
        return indices[np.concatenate(drawn)[permutation(length, seed, number)]]

    def examples(step: int) -> np.ndarray:
        number, offset = np.divmod(step * batch_size + mine, length)
        return np.concatenate([epoch(int(n))[offset[number == n]] for n in np.unique(number)])

    def where(found: np.ndarray) -> dict[str, np.ndarray]:
        return {"position": found.astype(np.int32)}

    read = where if positions else dataset.arrays
    return grain.MapDataset.source(range(_ENDLESS)).map(examples).map(read)


def batches(
    ds: grain.MapDataset, start: int = 0, stop: int | None = None, *, ahead: int = _AHEAD
) -> Iterator[dict[str, np.ndarray]]:
    """The batches from start up to, not with, stop; exact from any start.

    ahead: batches that lie ready, read by threads before they are asked for; never fewer than 8. A
           program of K updates asks for K at once, while the last is at work.
    """
    read = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=max(ahead, _AHEAD))
    iterator = iter(ds.to_iter_dataset(read))
    try:
        grain.experimental.set_next_index(iterator, start)
        step = start
        while stop is None or step < stop:
            yield next(iterator)
            step += 1
    finally:
        iterator.close()


def _classes(
    labels: Integer[np.ndarray, " n"], balance: float
) -> list[tuple[Int64[np.ndarray, " m"], int]]:
    """Each class's positions and how many of them an epoch holds; the largest keeps all."""
    if balance == 0:
        return [(np.arange(len(labels)), len(labels))]
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    largest = max(len(m) for m in members)
    return [(m, round(len(m) * (largest / len(m)) ** balance)) for m in members]


def _repeat(members: np.ndarray, target: int, seed: tuple[int, ...]) -> np.ndarray:
    """`target` of the members: all as often as it goes, and a rest that changes by epoch."""
    whole, rest = divmod(target, len(members))
    extra = members[permutation(len(members), *seed)[:rest]] if rest else members[:0]
    return np.concatenate([np.tile(members, whole), extra])


def _check(count: int, batch_size: int, seed: int, balance: float) -> None:
    if batch_size < 1:
        raise UserError(f"the batch size is {batch_size}; expected 1 or more")
    if count < batch_size:
        half = 2 ** max(count.bit_length() - 1, 0)
        hint = f"choose {half} or less" if count else "the split is empty"
        raise UserError(f"{count} examples do not fill a batch of {batch_size}: {hint}")
    if not 0 <= balance <= 1:
        raise UserError(f"balance is {balance}; expected 0 (as it is) to 1 (classes equally often)")
    if seed < 0:
        raise UserError(f"the seed is {seed}; expected 0 or more")
