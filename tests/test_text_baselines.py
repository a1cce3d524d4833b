"""Kneser-Ney against the published formula counted out with dicts; xz against what a file takes."""

import importlib.util
import lzma
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from genaug.data import TextData

FILE = Path(__file__).parents[1] / "benchmarks" / "text_baselines.py"  # no part of the package
SPEC = importlib.util.spec_from_file_location("text_baselines", FILE)
assert SPEC is not None
assert SPEC.loader is not None
baselines = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(baselines)
bits_per_byte, kneser_ney = baselines.bits_per_byte, baselines.kneser_ney
repeated, xz_bits = baselines.repeated, baselines.xz_bits

TRAINING = [b"the cat sat on the mat", b"the dog sat", b"", b"a cat and a dog and the cat", b"tttt"]
TWICE = [b"the mat", b"the mat"]  # nothing is seen once: the discount has no estimate
THRICE = [b"abcdehh" + 3 * b"mastz"]  # far more is seen thrice than twice: D_2 would be negative
HELD_OUT = [
    (b"the cat", b" sat and the"),
    (b"", b"zebra the"),
    (b"at", b"\xff\x00 mat"),
    (b"t", b""),
]


def by_the_formula(training, order, modified):
    """p(byte, history) of Chen & Goodman (1998), sections 2.7 and 3, one sum at a time."""
    begin = ["<s>"] * (order - 1)
    highest, left = Counter(), [defaultdict(set) for _ in range(order)]
    for text in training:
        symbols = [*begin, *text]
        for i in range(order - 1, len(symbols)):
            highest[tuple(symbols[i - order + 1 : i + 1])] += 1
            for k in range(1, order):  # what stands before each shorter n-gram
                left[k][tuple(symbols[i - k + 1 : i + 1])].add(symbols[i - k])

    def count(gram):
        return highest[gram] if len(gram) == order else len(left[len(gram)].get(gram, ()))

    def discount(k, value):
        of_order = highest.values() if k == order else [len(s) for s in left[k].values()]
        n = [sum(1 for c in of_order if c == i) for i in range(5)]
        y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
        if not modified or not (n[1] and n[2] and n[3]):
            return y
        which = min(value, 3)
        plain = which - (which + 1) * y * n[which + 1] / n[which]
        return min(max(plain, 0), which)

    def probability(byte, history):
        if history is None:
            return 1 / 256
        shorter = probability(byte, history[1:] if history else None)
        followers = {b: count((*history, b)) for b in range(256) if count((*history, b))}
        total, k = sum(followers.values()), len(history) + 1
        if not total:
            return shorter
        freed = sum(discount(k, c) for c in followers.values())
        own = followers[byte] - discount(k, followers[byte]) if byte in followers else 0
        return own / total + freed / total * shorter

    return lambda byte, before: probability(byte, tuple([*begin, *before][len(before) :]))


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("training", [TRAINING, TWICE, THRICE])
def test_kneser_ney_is_the_published_formula(training, order, modified):
    probability = by_the_formula(training, order, modified)
    expected = [
        probability(text[i], context + text[:i])
        for context, text in HELD_OUT
        for i in range(len(text))
    ]
    ours = kneser_ney(training, HELD_OUT, order, modified=modified)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("context", [b"", b"t", b"the ca", b"never seen", b"\xff\xff", b"n the"])
@pytest.mark.parametrize("order", [1, 4, 8])
def test_probabilities_sum_to_one(context, order, modified):
    asked = [(context, bytes([byte])) for byte in range(256)]
    probabilities = kneser_ney(TRAINING, asked, order, modified=modified)
    assert probabilities.shape == (256,)
    assert (probabilities > 0).all()
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_held_out_text_does_not_enter_the_counts():
    alone = kneser_ney(TRAINING, HELD_OUT[:1], 4)
    among = kneser_ney(TRAINING, [*HELD_OUT[:1], *[(b"the cat", b" sat and the")] * 20], 4)
    np.testing.assert_array_equal(alone, among[: len(alone)])


def test_xz_counts_what_the_held_out_text_adds():
    noise = np.random.default_rng(0).integers(0, 256, 2000, np.uint8).tobytes()
    assert xz_bits(noise, noise) < 0.3  # all of it stands in the training text
    assert xz_bits(noise[:1000], noise[1000:]) == pytest.approx(8, abs=0.1)
    words = " ".join(str(i * i % 9973) for i in range(4000)).encode()
    alone = len(lzma.compress(words, preset=9 | lzma.PRESET_EXTREME))
    assert len(lzma.compress(words, preset=1)) > alone
    assert xz_bits(b"", words) == 8 * alone / len(words)


def test_bits_and_repeats():
    assert bits_per_byte(np.array([0.5, 0.125])) == 2
    assert repeated(b"abcdefgh", b"cdexx", length=3) == pytest.approx(1 / 3)


def test_the_table_is_over_the_held_out_bytes(tmp_path, capsys, monkeypatch):
    (tmp_path / "t.txt").write_text("one two three four five six seven eight nine ten " * 20)
    config = TextData(source=str(tmp_path / "t.txt"), holdout="tail")
    text = (tmp_path / "t.txt").read_bytes()
    head, tail = text[:882], text[882:]
    printed = baselines.table(config)
    assert "882 bytes of 1 texts to train on, 98 bytes of 1 held out" in printed
    for bits, row in (
        (xz_bits(head, tail), "xz -9e, after the training text"),
        (xz_bits(b"", tail), "xz -9e, alone"),
        (bits_per_byte(kneser_ney([head], [(head, tail)], 5)), "Kneser-Ney, n = 5"),
        (bits_per_byte(kneser_ney([head], [(head, tail)], 8, modified=True)), "ney, n = 8"),
    ):
        lines = [line for line in printed.splitlines() if row.lower() in line.lower()]
        assert any(line.endswith(f"| {bits:.3f} |") for line in lines)
    monkeypatch.setattr("sys.argv", ["text_baselines", "--source", config.source])
    baselines.main()
    assert capsys.readouterr().out.strip() == printed
