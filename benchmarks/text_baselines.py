"""What a language model must beat: `xz -9` and Kneser-Ney byte n-grams on the same held-out text.

    python -m benchmarks.text_baselines                                  # pydoc topics, last 10 %
    python -m benchmarks.text_baselines --source fortunes --holdout texts

Bits per byte of the validation text of a `TextData`, that is of the bytes that `num_bytes` counts,
given the training text. What each method is given besides:

- xz "after the training text": growth of the compressed size when the held-out text is appended to
  the training text. Nothing of either is further back than its dictionary (64 MiB) up to that size.
  The held-out parts follow one another, so that each is also given those before it.
- xz "alone": the held-out text by itself, container included. No training text at all.
- n-grams: fitted on the training text alone and then fixed. The first bytes of a held-out part see
  as context the end of the training part of the same text (holdout "tail") or its start ("texts").
- None of them pays for the end of a text; a language model's bits include it, at 0 bytes.

Kneser-Ney: interpolated (Kneser & Ney 1995; Chen & Goodman 1998, section 2.7), and modified, with
three discounts (section 3).
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Sequence

import numpy as np

from genaug.data import TextData
from genaug.data.text_dataset import cut
from genaug.data.text_store import read_prepared

BEGIN = 256
"""The symbol that stands before a text, as often as a context is long. Never predicted."""
ORDERS = range(1, 9)


def kneser_ney(
    training: Sequence[bytes],
    held_out: Sequence[tuple[bytes, bytes]],
    order: int,
    *,
    modified: bool = False,
) -> np.ndarray:
    """The probability of each held-out byte under an interpolated Kneser-Ney n-gram.

    With a(h w) the count of an n-gram in the training texts (at the highest order) or of the
    different symbols seen before it (below), and D its order's discount,

        p(w | h) = max(a(h w) - D, 0) / sum_w a(h w) + lambda(h) p(w | h without its first symbol)

    where lambda makes it sum to one; below one byte it is uniform, 1/256; a context never seen
    leaves it all to the next shorter one (Chen & Goodman 1998, section 2.7). The symbol before a
    text's beginning counts as a symbol like the others, but is never predicted.

    held_out: (context, text) pairs; the probabilities of the texts' bytes come joined, float64.
    modified: D_1, D_2, D_3+ by count (section 3) rather than n1 / (n1 + 2 n2) for all.
    """
    pad = np.full(order - 1, BEGIN)
    pieces, fits, asks = [], [], []
    for context, text, known in [(b"", text, True) for text in training] + [
        (context, text, False) for context, text in held_out
    ]:
        symbols = np.frombuffer(context + text, np.uint8)
        target = np.arange(len(symbols)) >= len(context)
        pieces += [pad, symbols]
        fits += [np.zeros(len(pad), bool), np.full(len(symbols), known)]
        asks += [np.zeros(len(pad), bool), target & (not known)]
    symbols, fit, ask = (np.concatenate(x) for x in (pieces, fits, asks))
    grams, counts = _counts(symbols, fit, order)
    probability = np.full(int(ask.sum()), 1 / 256)
    places = np.flatnonzero(ask)
    for k in range(1, order + 1):
        # The context of a gram is the gram one shorter that ends one symbol earlier.
        context_at = np.zeros(len(symbols), np.int64) if k == 1 else np.roll(grams[k - 2], 1)
        context_of = np.zeros(len(counts[k - 1]), np.int64)
        context_of[grams[k - 1]] = context_at
        probability = _interpolate(
            counts[k - 1],
            context_of,
            grams[k - 1][places],
            context_at[places],
            probability,
            modified,
        )
    return probability


def _counts(
    symbols: np.ndarray, fit: np.ndarray, order: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each length the number of the gram that ends at each place, and each gram's a(.)."""
    grams, suffix_of = [symbols.astype(np.int64)], [np.zeros(257, np.int64)]
    for k in range(2, order + 1):
        shorter = grams[-1]
        first = np.roll(symbols, k - 1)  # what it brings round to the front is never asked for
        keys, number = np.unique(first * (shorter.max() + 1) + shorter, return_inverse=True)
        suffix_of.append(keys % (shorter.max() + 1))
        grams.append(number)
    counts = [np.bincount(grams[-1][fit], minlength=grams[-1].max() + 1)]
    for k in range(order - 1, 0, -1):
        seen = np.unique(grams[k][fit])
        counts.append(np.bincount(suffix_of[k][seen], minlength=max(257, grams[k - 1].max() + 1)))
    return grams, counts[::-1]


def _interpolate(
    counts: np.ndarray,
    context_of: np.ndarray,
    gram: np.ndarray,
    context: np.ndarray,
    shorter: np.ndarray,
    modified: bool,
) -> np.ndarray:
    """p(w | h) from the counts of one order and the probabilities of the next shorter one."""
    discounts = _discounts(counts, modified)
    taken = discounts[np.minimum(counts, 3)]
    num_contexts = int(max(context_of.max(), context.max())) + 1
    total = np.bincount(context_of, weights=counts, minlength=num_contexts)
    freed = np.bincount(context_of, weights=taken, minlength=num_contexts)
    known = total[context] > 0
    divisor = np.where(known, total[context], 1)
    own = (counts - taken)[gram] / divisor
    return np.where(known, own + freed[context] / divisor * shorter, shorter)


def _discounts(counts: np.ndarray, modified: bool) -> np.ndarray:
    """What is taken off a count of 0, 1, 2 and 3 or more; half where nothing was seen once."""
    n1, n2, n3, n4 = (float(np.sum(counts == i)) for i in range(1, 5))
    d = n1 / (n1 + 2 * n2) if n1 else 0.5
    if not (modified and n1 and n2 and n3):
        return np.array([0, d, d, d])
    three = [0, 1 - 2 * d * n2 / n1, 2 - 3 * d * n3 / n2, 3 - 4 * d * n4 / n3]
    return np.clip(three, 0, [0, 1, 2, 3])  # counts of a small text may ask for less than nothing


def bits_per_byte(probability: np.ndarray) -> float:
    """The mean code length."""
    return float(-np.mean(np.log2(probability)))


def xz_bits(before: bytes, text: bytes, preset: int = 9 | lzma.PRESET_EXTREME) -> float:
    """Bits per byte that `text` adds to a compressed `before`; alone where that is empty."""
    alone = len(lzma.compress(before, preset=preset)) if before else 0
    return 8 * (len(lzma.compress(before + text, preset=preset)) - alone) / len(text)


def repeated(before: bytes, text: bytes, length: int = 50) -> float:
    """The share of the windows of `length` bytes in `text` that stand verbatim in `before`."""
    seen = {before[i : i + length] for i in range(len(before) - length + 1)}
    windows = [text[i : i + length] for i in range(len(text) - length + 1)]
    return sum(window in seen for window in windows) / max(len(windows), 1)


def table(config: TextData) -> str:
    """All figures, as a Markdown table."""
    parts = cut(read_prepared(config)[0], config)
    training = [train for train, _, _ in parts if train]
    held_out = [(train, valid) for train, valid, _ in parts if valid]
    before, text = b"".join(training), b"".join(valid for _, valid in held_out)
    lines = [
        f"{config.source}, holdout {config.holdout}: {len(before):,} bytes of {len(training)} "
        f"texts to train on, {len(text):,} bytes of {len(held_out)} held out, of which "
        f"{repeated(before, text):.1%} of the 50-byte windows stand verbatim in the training text",
        "",
        "| method | bits per byte |",
        "|---|---|",
    ]
    for title, preset in (("xz -9", 9), ("xz -9e", 9 | lzma.PRESET_EXTREME)):
        lines.append(f"| {title}, after the training text | {xz_bits(before, text, preset):.3f} |")
        lines.append(f"| {title}, alone | {xz_bits(b'', text, preset):.3f} |")
    for modified in (False, True):
        for order in ORDERS:
            bits = bits_per_byte(kneser_ney(training, held_out, order, modified=modified))
            title = "modified Kneser-Ney" if modified else "Kneser-Ney"
            lines.append(f"| {title}, n = {order} | {bits:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="pydoc_topics")
    parser.add_argument("--holdout", choices=("tail", "texts"), default="tail")
    parser.add_argument("--valid-fraction", type=float, default=0.1)
    options = parser.parse_args()
    print(table(TextData(**vars(options))))


if __name__ == "__main__":
    main()
