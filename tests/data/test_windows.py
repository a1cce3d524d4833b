"""Packing: nothing lost, nothing over, and few bins."""

import numpy as np
import pytest

from genaug.data.windows import Document, best_fit, lay, pack, shorten
from genaug.types import DataError


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_loses_nothing_and_wastes_little(seed):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, 65, 300).tolist()
    bins = best_fit(sizes, 64)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(300))
    assert all(sum(sizes[i] for i in bin_) <= 64 for bin_ in bins)
    # Best fit decreasing needs at most 11/9 of the best possible number, plus 4 (Johnson et al.
    # 1974), and no packing beats the sum; with random sizes it comes within a few per cent of it.
    assert len(bins) <= 1.05 * sum(sizes) / 64 + 1


def test_best_fit_takes_the_fullest_bin_that_has_room():
    # 7 and 5 open bins with room 3 and 5; 3 has room in both.
    assert best_fit([5, 7, 3], 10) == [[1, 2], [0]]
    assert best_fit([5, 5, 5], 10) == [[0, 1], [2]]
    assert best_fit([10], 10) == [[0]]
    assert best_fit([], 10) == []


def test_rows_of_a_pack_are_neighbours_of_one_class():
    documents = [
        Document(np.full(size, 10 * label + size), 0, label, "d")
        for label, size in ((0, 3), (1, 4), (0, 2), (1, 1), (0, 5))
    ]
    order, rows = pack(documents, 5, base=100)
    tokens, opens = lay(order, np.dtype(np.uint16))
    assert tokens.dtype == np.uint16
    found = [tokens[f - 100 : f - 100 + n].tolist() for f, n, _, _ in zip(*rows, strict=True)]
    assert found == [[5] * 5, [3] * 3 + [2] * 2, [14] * 4 + [11]]
    assert rows.label.tolist() == [0, 0, 1]
    assert np.flatnonzero(opens).tolist() == [0, 5, 8, 10, 14]


def test_a_document_that_just_fits_is_not_too_long():
    document = Document(np.arange(9), 0, 0, "poem 7")
    for too_long in ("error", "truncate", "split"):
        (same,) = shorten([document], 9, too_long)
        assert same is document
    with pytest.raises(
        DataError, match=r"poem 7 is 9 tokens .* a row holds 8: use --data.context 8"
    ):
        list(shorten([document], 8, "error"))
