"""The scorecard: how it counts, and a few faults of every kind that needs no other process."""

import pytest

from benchmarks import reliability, reliability_faults


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


def test_damage_that_nobody_looks_for_is_counted_as_such(monkeypatch):
    """A checkpoint that is taken unseen: the row must tell."""
    monkeypatch.setattr("genaug.checkpoint.faults", lambda directory, step: [])
    monkeypatch.setattr("genaug.checkpoint._wrong", lambda named, wanted: [])
    monkeypatch.setattr(reliability_faults, "_emptied", reliability_faults._flip)
    monkeypatch.setattr(reliability_faults, "_half_copied", reliability_faults._flip)
    found = reliability_faults.damaged(2, 0)
    assert found.survived == 0
