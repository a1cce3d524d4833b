"""The scorecard: how it counts, and a few faults of every kind that needs no other process."""

import pytest

from benchmarks import reliability, reliability_faults


# Of a save that a disk refuses, Orbax leaves coroutines and threads behind that end in errors.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("name", ["damage", "devices", "sick", "disk"])
def test_a_few_faults_are_all_survived(name):
    (row,) = (row for row in reliability.ROWS if row.name == name)
    found = row.inject(row.short, 1)
    if found is None:
        pytest.skip("needs root and mount")
    assert (found.survived, found.tried) == (row.short, row.short), found.remark


def test_a_fault_that_is_not_survived_is_told():
    row = reliability.ROWS[0]
    text = reliability.line(row, reliability_faults.Counted(9, 10, "why"))
    assert "| **9 of 10** |" in text
    assert "| 10 of 10 |" in reliability.line(row, reliability_faults.Counted(10, 10))
    assert "not run" in reliability.line(row, None)


def test_the_interval_is_wilsons():
    """Values of R's binom.wilson (binom 1.1)."""
    for good, tried, low, high in [(500, 500, 0.9924, 1.0), (48, 48, 0.9259, 1.0),
                                   (8, 10, 0.4902, 0.9433)]:  # fmt: skip
        found = reliability.wilson(good, tried)
        assert found == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("found", [None, ({}, 20)])
def test_damage_that_is_not_gone_back_from_is_counted_as_such(monkeypatch, found):
    monkeypatch.setattr("genaug.checkpoint.restore", lambda *arguments, **options: found)
    assert reliability_faults.damaged(2, 0).survived == 0
