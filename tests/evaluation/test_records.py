import sys

import numpy as np
import pytest
from peers import sdmetrics_dcr

from genaug.evaluation import Table, closest_records, records_closer_to_train
from genaug.types import UserError


def table(n, seed, p=5, q=3, missing=0.1):
    generator = np.random.default_rng(seed)
    numeric = generator.normal(size=(n, p)) * 10.0 ** np.arange(p) + 1e6
    numeric[generator.random(size=numeric.shape) < missing] = np.nan
    numeric[:, 1:2] = np.where(np.isnan(numeric[:, 1:2]), np.nan, 7.0)  # Constant.
    return Table(numeric, generator.integers(0, 4, size=(n, q)))


def naive(query, reference):
    """All pairs, one rule after the other."""
    low, high = np.nanmin(reference.numeric, axis=0), np.nanmax(reference.numeric, axis=0)
    total = np.zeros((len(query.codes), len(reference.codes)))
    for column in range(query.numeric.shape[1]):
        a, b = query.numeric[:, None, column], reference.numeric[None, :, column]
        span = high[column] - low[column]
        difference = np.minimum(np.abs(a - b) / span, 1) if span else (np.abs(a - b) > 0) * 1.0
        difference = np.where(np.isnan(a) ^ np.isnan(b), 1, difference)
        total += np.where(np.isnan(a) & np.isnan(b), 0, difference)
    for column in range(query.codes.shape[1]):
        total += query.codes[:, None, column] != reference.codes[None, :, column]
    return total / (query.numeric.shape[1] + query.codes.shape[1])


@pytest.mark.parametrize("n,m", [(300, 170), (5, 400)])
def test_agrees_with_all_pairs(n, m):
    query, reference = table(n, 0), table(m, 1)
    query.numeric[:3] *= 50  # Far outside the reference's range.
    query.numeric[3:5, 1] = 8.0  # Another value of a constant column.
    distances = naive(query, reference)
    found = closest_records(query, reference, block=64)
    np.testing.assert_allclose(found.distance, distances.min(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.distance, distances[np.arange(n), found.index], rtol=1e-12)
    assert found.distance.dtype == np.float64


def test_numbers_alone_and_categories_alone():
    for p, q in ((4, 0), (0, 4)):
        query, reference = table(50, 2, max(p, 2), q), table(60, 3, max(p, 2), q)
        query, reference = (Table(each.numeric[:, :p], each.codes) for each in (query, reference))
        expected = naive(query, reference).min(axis=1)
        np.testing.assert_allclose(closest_records(query, reference).distance, expected, atol=1e-6)


def test_equal_records_are_at_zero_and_a_column_without_values_counts_nothing():
    reference = table(80, 4)
    reference.numeric[:, 2] = np.nan
    assert (closest_records(Table(*(x[::2] for x in reference)), reference).distance == 0).all()
    query = Table(reference.numeric.copy(), reference.codes)
    query.numeric[:, 2] = 3.0
    np.testing.assert_allclose(closest_records(query, reference).distance, 1 / 8, rtol=1e-12)


def test_agrees_with_sdmetrics(monkeypatch):
    peer = sdmetrics_dcr(monkeypatch)
    pandas = sys.modules["pandas"]
    query, reference = table(120, 5), table(150, 6)
    query.numeric[:3] *= 50
    query.numeric[3:5, 1] = 8.0
    metadata = {f"n{i}": {"sdtype": "numerical"} for i in range(5)}
    metadata |= {f"c{i}": {"sdtype": "categorical"} for i in range(3)}

    def frame(records):
        words = np.array([None, "a", "b", "c"], object)[records.codes]
        columns = {f"n{i}": records.numeric[:, i] for i in range(5)}
        return pandas.DataFrame(columns | {f"c{i}": words[:, i] for i in range(3)})

    expected = peer.calculate_dcr(frame(query), frame(reference), {"columns": metadata})
    found = closest_records(query, reference).distance
    np.testing.assert_allclose(found, expected.to_numpy(), atol=1e-6)


def test_a_copyist_is_flagged_and_an_honest_table_is_not():
    train, holdout = table(300, 7), table(200, 8)
    copied = records_closer_to_train(Table(*(x[:200] for x in train)), train, holdout, seed=0)
    assert copied.low > 0.6  # A third of the originals were subsampled away.
    shares = [
        records_closer_to_train(table(150, 20 + seed), train, holdout, seed=seed)
        for seed in range(10)
    ]
    assert sum(share.low <= 0.5 <= share.high for share in shares) >= 8


def test_the_wider_of_two_sets_is_not_favoured():
    # One outlier in the held-out set: in ranges of its own everything would seem close to it.
    train, holdout = table(200, 9, missing=0.0), table(200, 10, missing=0.0)
    holdout.numeric[0] += 1e3 * np.ptp(holdout.numeric, axis=0)
    share = records_closer_to_train(table(200, 11, missing=0.0), train, holdout, seed=0)
    assert share.low <= 0.5 <= share.high


def test_ties_count_half():
    train = table(100, 12)
    assert records_closer_to_train(table(50, 13), train, train, seed=0).value == 0.5


def test_refusals():
    records = table(10, 14)
    with pytest.raises(UserError, match="5 and 3, 4 and 3"):
        closest_records(records, Table(records.numeric[:, :4], records.codes))
    with pytest.raises(UserError, match="reference has 10 rows of numbers and 9"):
        closest_records(records, Table(records.numeric, records.codes[:9]))
    with pytest.raises(UserError, match="query holds infinite"):
        closest_records(Table(records.numeric * np.inf, records.codes), records)
    with pytest.raises(UserError, match="0 and 0"):
        closest_records(*[Table(records.numeric[:, :0], records.codes[:, :0])] * 2)
